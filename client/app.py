"""The thin Flower ClientApp: unpack, hand to the site, pack. Runs on the networked side; imports no torch itself.

The server delivers this file in the app bundle, so a hospital's safety never rests on it. Replies carry reports or
reason codes, never exception text.
"""

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from multimix.contract.records import card_reply, evaluated_reply, read_request, refusal_reply, trained_reply
from multimix.contract.run_config import Scalar, read_run_config
from multimix.contract.site import Site
from multimix.errors import InputError, Refused
from multimix.version import code_sha256

log = logging.getLogger("multimix.client")

_AGENT_WAIT_S = 120.0  # for an agent that is restarted

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator]
def describe(message: Message, context: Context) -> Message:
    """Answer with the site card."""
    return _answer(message, lambda: card_reply(site_of(context).describe()))


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Answer with trained weights and their report."""
    return _answer(message, lambda: trained_reply(site_of(context).train(*read_request(message.content))))


@app.evaluate()  # type: ignore[untyped-decorator]
def evaluate(message: Message, context: Context) -> Message:
    """Answer with sufficient statistics."""
    return _answer(message, lambda: evaluated_reply(site_of(context).evaluate(*read_request(message.content))))


def site_of(context: Context) -> Site:
    """Return the site behind this node, kept warm in this process between rounds."""
    if "agent-socket" in context.node_config:
        return _agent(str(context.node_config["agent-socket"]), context.node_config.get("agent-wait-s", _AGENT_WAIT_S))
    if "partition-id" not in context.node_config:
        raise Refused("site_not_configured", "the node has neither an agent-socket nor a partition-id")
    partition, nodes = context.node_config["partition-id"], context.node_config.get("num-partitions")
    if not (isinstance(partition, int) and isinstance(nodes, int) and 0 <= partition < nodes):
        raise Refused("site_not_configured", "partition-id is none of the num-partitions")
    return _simulated_site(tuple(sorted(context.run_config.items())), partition, nodes)


@cache
def _agent(socket: str, wait_s: object) -> Site:
    """Return the site behind its agent's socket. The hash of this code goes along as what it is: a claim."""
    from client.agent.remote import RemoteSite  # noqa: PLC0415  (a simulation needs no gRPC)

    if not isinstance(wait_s, int | float):
        raise Refused("site_not_configured", "agent-wait-s is no number of seconds")
    return RemoteSite(Path(socket), code_sha256(), float(wait_s))


@cache
def _simulated_site(run_config: tuple[tuple[str, Scalar], ...], partition: int, nodes: int) -> Site:
    """Import torch and the site only where a simulation trains in this very process."""
    import torch  # noqa: PLC0415

    from client.simulated import simulated_site  # noqa: PLC0415

    torch.set_num_threads(1)
    return simulated_site(read_run_config(dict(run_config)), partition=partition, nodes=nodes)


def _answer(message: Message, work: Callable[[], RecordDict]) -> Message:
    try:
        content = work()
    except Refused as refused:
        content = refusal_reply(refused)
    except InputError as error:
        log.error("refused: %s", error.reason)  # noqa: TRY400  (its message names files and rows)
        content = refusal_reply(Refused(error.reason))
    except Exception as error:
        # Flower would send the text of an exception to the server. A developer may see it, on this machine only.
        shown = bool(os.environ.get("MULTIMIX_DEBUG"))
        log.error("failed: internal_error (%s)", type(error).__name__, exc_info=shown)  # noqa: TRY400
        content = refusal_reply(Refused("internal_error"))
    return Message(content, reply_to=message)
