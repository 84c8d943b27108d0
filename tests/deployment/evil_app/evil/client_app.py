"""The hostile ClientApp: in the hospital's connector, with the agent's socket in hand, it does what it was sent to do."""

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.agent.agent_pb2 import OrderPart
from client.agent.agent_pb2_grpc import AgentStub
from client.agent.remote import RemoteSite
from client.agent.wire import OPTIONS, PROTOCOL, order_parts, target
from multimix.contract.messages import Weights
from multimix.contract.privacy import Countersignature
from multimix.contract.records import card_reply, unpack_arrays
from multimix.contract.signing import SignedPlan
from multimix.errors import Refused

app = ClientApp()

MIB = 1 << 20
OPENED = "opened"  # a pickle that is opened writes this file
Way = Callable[[Path, SignedPlan, Weights], str]


@app.query()
def describe(message: Message, context: Context) -> Message:
    return Message(card_reply(RemoteSite(socket_of(context)).describe()), reply_to=message)


@app.train()
def attack(message: Message, context: Context) -> Message:
    """Put each order to the agent in the way that it names; answer with what came of it."""
    asked, socket = message.content.config_records["attacks"], socket_of(context)
    weights = unpack_arrays(message.content.array_records["arrays"])
    outcomes = []
    for way, *signed in zip(*(asked[key] for key in ("ways", "documents", "signatures", "heads")), strict=True):
        outcomes.append(called(socket, way) if way.startswith("/") else WAYS[way](socket, plan_of(*signed), weights))
    return Message(RecordDict({"outcomes": ConfigRecord({"outcomes": outcomes})}), reply_to=message)


def socket_of(context: Context) -> Path:
    return Path(str(context.node_config["agent-socket"]))


def plan_of(document: str, signature: str, head: str) -> SignedPlan:
    return SignedPlan(document, signature, Countersignature.model_validate_json(head) if head else None)


def train(socket: Path, signed: SignedPlan, weights: Weights) -> str:
    """As our own app does; an answer is told by the hash of its weights."""
    try:
        return f"answered {RemoteSite(socket).train(signed, weights).report.weights_sha256}"
    except Refused as refused:
        return refused.reason


def evaluate(socket: Path, signed: SignedPlan, weights: Weights) -> str:
    try:
        return f"answered {RemoteSite(socket).evaluate(signed, weights).report.statistics}"
    except Refused as refused:
        return refused.reason


def other_weights(socket: Path, signed: SignedPlan, weights: Weights) -> str:
    return train(socket, signed, {name: value + 1 for name, value in weights.items()})


def unknown_protocol(socket: Path, signed: SignedPlan, weights: Weights) -> str:
    first, *rest = order_parts(signed, weights, "")
    first.header.protocol = PROTOCOL + 98
    return streamed(socket, iter([first, *rest]))


class Trap:
    """Writes a file where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(Path.home() / OPENED),)


def pickled(socket: Path, signed: SignedPlan, weights: Weights) -> str:
    payload = pickle.dumps(Trap())
    return streamed(socket, iter([declared(signed, len(payload)), OrderPart(chunk=payload)]))


def ten_gigabytes(socket: Path, signed: SignedPlan, weights: Weights) -> str:
    """Declare 10 GB and go on sending until the agent hangs up."""

    def parts() -> Iterator[OrderPart]:
        yield declared(signed, 10 << 30)
        for _ in range(10 << 10):
            yield OrderPart(chunk=bytes(MIB))

    return streamed(socket, parts())


def never_sent(socket: Path, signed: SignedPlan, weights: Weights) -> str:
    """Declare the most that a site takes, and send one MiB of it."""
    return streamed(socket, iter([declared(signed, 2048 * MIB), OrderPart(chunk=bytes(MIB))]))


def declared(signed: SignedPlan, weights_bytes: int) -> OrderPart:
    first = next(order_parts(signed, {}, "f" * 64))
    first.header.weights_bytes = weights_bytes
    return first


def streamed(socket: Path, parts: Iterator[OrderPart]) -> str:
    with grpc.insecure_channel(target(str(socket)), options=OPTIONS) as channel:
        try:
            replies = list(AgentStub(channel).Train(parts, timeout=60))
        except grpc.RpcError as error:
            return error.code().name
    return replies[-1].refusal.reason or "answered"


def called(socket: Path, method: str) -> str:
    with grpc.insecure_channel(target(str(socket)), options=OPTIONS) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=60)
        except grpc.RpcError as error:
            return error.code().name
    return "answered"


WAYS: dict[str, Way] = {
    "train": train,
    "evaluate": evaluate,
    "other weights": other_weights,
    "unknown protocol": unknown_protocol,
    "pickle": pickled,
    "10 GB": ten_gigabytes,
    "never sent": never_sent,
}
