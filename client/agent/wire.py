"""Orders and answers as messages of agent.proto and back; both ends of the socket use this file. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from client.agent.agent_pb2 import Busy, OrderHeader, OrderPart, PictureHeader, Refusal, ReplyHeader, ReplyPart
from multimix.contract.chunks import Buffer, Piece, chunked, pieces, read_weights, size_of
from multimix.contract.messages import EvaluateReport, Picture, TrainReport, Weights
from multimix.contract.privacy import Countersignature
from multimix.contract.signing import SignedPlan
from multimix.contract.site import Evaluated, Trained
from multimix.errors import Refused

PROTOCOL: Final = 1
SERVICE: Final = "multimix.agent.v1.Agent"
MOST_MESSAGE_BYTES: Final = 4 << 20
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # a unix socket is never behind one
)
_MOST_PICTURES: Final = 64  # as many as a plan may ask for
_MOST_TEXT: Final = {"document": 1 << 16, "signature": 256, "countersigned": 4096}  # characters in a header
_MOST_REPLY_BYTES: Final = 1 << 40  # the agent is trusted; a sum beyond this is a broken message

Answer = Trained | Evaluated


def target(socket: str) -> str:
    """Return the name under which gRPC knows a unix socket."""
    return f"unix:{socket}"


def local_socket(socket: Path) -> Path:
    """Return the socket of the agent's own user, beside the one of the connector's group."""
    return socket.with_name("local.sock")


def order_parts(signed: SignedPlan, weights: Weights, bundle_sha256: str) -> Iterator[OrderPart]:
    """Yield an order; Refused `request_malformed` for weights that are not plain floats."""
    packed = pieces(weights)
    yield OrderPart(
        header=OrderHeader(
            protocol=PROTOCOL,
            document=signed.document,
            signature=signed.signature,
            countersigned=signed.countersigned.model_dump_json() if signed.countersigned else "",
            weights_bytes=size_of(packed),
            bundle_sha256=bundle_sha256,
        )
    )
    for chunk in chunked(packed):
        yield OrderPart(chunk=chunk)


def read_order(part: OrderPart | None, *, most_bytes: int) -> tuple[SignedPlan, OrderHeader]:
    """Read the first part of an order, before any chunk and before anything of it is kept.

    Raises:
        Refused: `request_malformed`, `protocol_unknown`; `message_too_large` above the limit.
    """
    if part is None or part.WhichOneof("part") != "header":
        raise Refused("request_malformed", "an order begins with its header")
    header = part.header
    check_protocol(header.protocol)
    if header.weights_bytes > most_bytes:
        raise Refused("message_too_large", f"declared {header.weights_bytes} bytes, allowed {most_bytes}")
    if any(len(getattr(header, name)) > most for name, most in _MOST_TEXT.items()):
        raise Refused("request_malformed", "a text of the header is too long")
    try:
        known = Countersignature.model_validate_json(header.countersigned) if header.countersigned else None
    except ValidationError:
        raise Refused("request_malformed") from None
    return SignedPlan(header.document, header.signature, known), header


def check_protocol(asked: int) -> None:
    """Refused `protocol_unknown` unless both ends speak the same."""
    if asked != PROTOCOL:
        raise Refused("protocol_unknown", f"asked {asked}, spoken {PROTOCOL}")


def read_chunks(parts: Iterator[OrderPart], size: int) -> Weights:
    """Read the weights that follow a header; Refused `request_malformed` for more, less or anything else."""
    buffer = Buffer(size)
    for part in parts:
        buffer.add(part.chunk if part.WhichOneof("part") == "chunk" else b"")
    return read_weights(buffer.whole())


def reply_parts(answer: Answer) -> Iterator[ReplyPart]:
    """Yield an answer: its header, then weights, report and pictures in chunks."""
    packed: list[Piece] = pieces(answer.weights) if isinstance(answer, Trained) else []
    report = answer.report.model_dump_json().encode()
    pictures = answer.pictures if isinstance(answer, Evaluated) else ()
    yield ReplyPart(
        header=ReplyHeader(
            weights_bytes=size_of(packed),
            report_bytes=len(report),
            pictures=[PictureHeader(caption=each.caption, png_bytes=len(each.png)) for each in pictures],
        )
    )
    for chunk in chunked([*packed, report, *(each.png for each in pictures)]):
        yield ReplyPart(chunk=chunk)


def refusal_part(reason: str, detail: str = "") -> ReplyPart:
    """Return a refusal as the only part of an answer."""
    return ReplyPart(refusal=Refusal(reason=reason, detail=detail))


def busy_part() -> ReplyPart:
    """Return a sign of life, which says nothing else."""
    return ReplyPart(busy=Busy())


@dataclass(frozen=True)
class _Reply:
    """An answer that is being received."""

    header: ReplyHeader
    buffer: Buffer


def read_reply(parts: Iterator[ReplyPart], *, trained: bool) -> Answer:
    """Read an answer to its end; raise the agent's `Refused`, or `reply_malformed`."""
    reply: _Reply | None = None
    try:
        for part in parts:
            kind = part.WhichOneof("part")
            if kind == "refusal":
                raise Refused(part.refusal.reason, part.refusal.detail)
            if kind == "header" and reply is None:
                reply = _Reply(part.header, Buffer(_reply_bytes(part.header)))
            elif kind == "chunk" and reply is not None:
                reply.buffer.add(part.chunk)
            elif kind != "busy":
                raise Refused("reply_malformed")
        if reply is None:
            raise Refused("reply_malformed")
        return _unpacked(reply.header, reply.buffer.whole(), trained=trained)
    except ValidationError:
        raise Refused("reply_malformed") from None


def _reply_bytes(header: ReplyHeader) -> int:
    size = header.weights_bytes + header.report_bytes + sum(each.png_bytes for each in header.pictures)
    if size > _MOST_REPLY_BYTES or len(header.pictures) > _MOST_PICTURES:
        raise Refused("reply_malformed")
    return int(size)


def _unpacked(header: ReplyHeader, data: memoryview, *, trained: bool) -> Answer:
    end = header.weights_bytes + header.report_bytes
    report = bytes(data[header.weights_bytes : end])
    if trained:
        return Trained(TrainReport.model_validate_json(report), read_weights(data[: header.weights_bytes]))
    pictures = []
    for each in header.pictures:
        pictures.append(Picture(caption=each.caption, png=bytes(data[end : end + each.png_bytes])))
        end += each.png_bytes
    return Evaluated(EvaluateReport.model_validate_json(report), tuple(pictures))
