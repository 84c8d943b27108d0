"""Who may connect: the SuperLink's register of node keys, kept as federation.toml says, by Flower's control API.

The SuperLink knows a node by its key. A key that was unregistered stays known to it and can never be registered again.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import httpx
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from multimix.errors import InputError
from server.log import log
from server.provision.folder import FederationFolder

_PATIENCE: Final = 2  # heartbeats that a node may miss: flwr.common.constant.HEARTBEAT_PATIENCE
_GONE: Final = "unregistered"  # flwr.supercore.constant.NodeStatus
_FINISHED: Final = "finished"  # flwr.common.constant.Status
_MOST_RUNS: Final = 20  # that are looked through for one that goes on


@dataclass(frozen=True)
class Node:
    """A key that the SuperLink knows; an unregistered one is kept out."""

    number: int
    key: bytes  # public, PEM
    registered: bool
    online: bool
    seen: datetime | None  # last heartbeat; None before the first


def local_address(folder: FederationFolder) -> str:
    """Return host:port of the SuperLink as this machine reaches it."""
    settings = folder.settings
    host = "127.0.0.1" if settings.bind_host in {"0.0.0.0", "::"} else settings.bind_host  # noqa: S104  (compared)
    return f"[{host}]:{settings.bind_port}" if ":" in host else f"{host}:{settings.bind_port}"


def trusted(folder: FederationFolder) -> ssl.SSLContext:
    """Trust the federation's own authorities only.

    Raises:
        InputError: `authority_unusable`.
    """
    try:
        return ssl.create_default_context(cafile=str(folder.ca))
    except (OSError, ssl.SSLError):
        raise _no_authority() from None


def is_running(folder: FederationFolder) -> bool:
    """Say whether the federation's SuperLink answers on this machine, with the federation's certificate."""
    try:
        answer = httpx.get(
            f"https://{local_address(folder)}/health", verify=trusted(folder), timeout=5, trust_env=False
        )
    except httpx.HTTPError:
        return False
    return answer.is_success


def list_nodes(folder: FederationFolder) -> list[Node]:
    """Return every node that was ever registered; InputError `superlink_away`."""
    with _control(folder) as control:
        return _nodes(control)


def synchronise(folder: FederationFolder) -> tuple[int, int]:
    """Register admitted keys, unregister all others; return how many of each. InputError `superlink_away`.

    A node that is unregistered while it is connected is turned away at its next message.
    """
    admitted = {site.flower_key for site in folder.settings.admitted.values()}
    with _control(folder) as control:
        known = _nodes(control)
        new = admitted - {node.key for node in known}
        gone = [node for node in known if node.registered and node.key not in admitted]
        for key in sorted(new):
            control.RegisterNode(RegisterNodeRequest(public_key=key))
        for node in gone:
            control.UnregisterNode(UnregisterNodeRequest(node_id=node.number))
        _warn_of_burnt(admitted, known)
    return len(new), len(gone)


def runs_going_on(folder: FederationFolder) -> list[tuple[int, str]]:
    """Return number and run folder's name of each run that has not ended; InputError `superlink_away`."""
    with _control(folder) as control:
        listed = control.ListRuns(ListRunsRequest(limit=_MOST_RUNS)).run_dict
    return [(number, run.override_config["out"].string) for number, run in listed.items() if not _has_ended(run)]


def stop_run(folder: FederationFolder, number: int) -> None:
    """Stop a run; its ServerApp ends within seconds. InputError `superlink_away`."""
    with _control(folder) as control:
        control.StopRun(StopRunRequest(run_id=number))


def _has_ended(run: object) -> bool:
    status: str = run.status.status  # type: ignore[attr-defined]
    return status.startswith(_FINISHED)


def _warn_of_burnt(admitted: set[bytes], known: list[Node]) -> None:
    burnt = admitted & {node.key for node in known if not node.registered}
    if burnt:
        log.warning("%d admitted key(s) were unregistered before, and stay so: those sites need a new key", len(burnt))


def _nodes(control: ControlHttpClient) -> list[Node]:
    answer = control.ListNodes(ListNodesRequest())
    now = datetime.fromisoformat(answer.now)
    return [
        Node(
            number=info.node_id,
            key=bytes(info.public_key),
            registered=info.status != _GONE,
            online=info.status == "online",
            seen=_seen(info, now),
        )
        for info in answer.nodes_info
    ]


def _seen(info: object, now: datetime) -> datetime | None:
    """Return a node's last heartbeat, or when it left: `online_until` is as many heartbeats later as may be missed."""
    status, until = info.status, info.online_until  # type: ignore[attr-defined]
    if not until:
        return None
    if status == "online":
        return datetime.fromtimestamp(until - _PATIENCE * info.heartbeat_interval, UTC)  # type: ignore[attr-defined]
    return min(datetime.fromtimestamp(until, UTC), now)


def _no_authority() -> InputError:
    return InputError("authority_unusable", "ca.pem of the federation's folder cannot be read. Restore it.")


@contextmanager
def _control(folder: FederationFolder) -> Iterator[ControlHttpClient]:
    try:
        client = ControlHttpClient.from_server_address(
            local_address(folder),
            insecure=False,
            root_certificates=str(folder.ca),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
    except (OSError, ssl.SSLError):
        raise _no_authority() from None
    try:
        yield client
    except httpx.HTTPStatusError as refused:
        raise InputError(
            "superlink_refused",
            f"The SuperLink refused a request (HTTP {refused.response.status_code}). Its log says why.",
        ) from None
    except (httpx.HTTPError, ValueError):
        raise InputError(
            "superlink_away", "The federation's server does not answer here. Start it: multimix-server start."
        ) from None
    finally:
        client.close()
