"""The agent as a process: its sockets, its lock, its end. It opens two unix sockets and nothing else.

Who may use them is decided by the file system. The folder is 0750 and the agent's socket 0660, of the connector's
group; `local.sock` beside it is 0600, for the agent's own user. Each has threads and limits of its own.
"""

import grp
import logging
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from client.agent import agent_pb2_grpc
from client.agent.activity import ActivityLog
from client.agent.control import check_taken, note_waiting, read_control
from client.agent.local import Health, LocalService
from client.agent.metrics import FILE as METRICS
from client.agent.metrics import Metrics, epsilon_spent
from client.agent.orders import Order, Orders
from client.agent.service import AgentService, Records
from client.agent.warm import WarmSite
from client.agent.wire import OPTIONS, local_socket, target
from client.published import publish_in_use
from client.settings import SiteFolder
from multimix.contract.messages import RoundPlan
from multimix.errors import Refused, SiteError
from multimix.locks import held
from multimix.privacy.ledger import read_ledger

log = logging.getLogger("multimix.agent")

_LOCK: Final = ".lock"
_THREADS: Final = 16  # calls at once; each that waits for a round takes one, and one more is turned away
_LOCAL_THREADS: Final = 4  # the same, of the hospital's own
_MOST_CONNECTIONS: Final = 64  # each takes a file descriptor, and what trains needs some
_GRACE_S: Final = 20.0  # for the step that runs
_LONGEST_PATH: Final = 107  # of a unix socket: unix(7)


def run_agent(site: SiteFolder, socket: Path, *, ready: Callable[[], None] = lambda: None) -> bool:
    """Serve a site until SIGTERM or SIGINT; what runs then is cancelled. Return whether it ended in time.

    Raises:
        SiteError: `agent_running`, `socket_unusable`, `group_unknown`, `control_unusable`, as
            `client.hospital.local_site`.
    """
    agent = site.settings.agent
    group = _group(agent.connector_group)
    with ExitStack() as stack:
        stack.enter_context(_only_agent(site.agent / "agent.lock"))
        warm = WarmSite(site.path)
        warm.served()  # what keeps it from training is said now, to the person who starts it
        read_control(site.agent)
        limit = site.population.epsilon_lifetime

        def epsilon_fraction() -> float | None:
            spent = epsilon_spent(site)
            return None if spent is None else spent / limit

        records = Records(
            ActivityLog(site.agent),
            Metrics(site.metrics / METRICS),
            epsilon_fraction,
            lambda job: note_waiting(site.agent, job),
        )
        stack.callback(records.close)
        records.metrics.budget(epsilon_fraction())
        records.metrics.write()
        publish_in_use(site)

        def began() -> None:
            publish_in_use(site)
            records.began()

        def ended(order: Order, seconds: float) -> None:
            records.ended(order, seconds)
            publish_in_use(site)

        orders = Orders(
            stopped=lambda plan: not _still_taken(site, plan),
            began=began,
            ended=ended,
            prepare=lambda: set_threads(agent.threads),
        )
        service = AgentService(warm.served, lambda: read_control(site.agent), orders, records)
        return serve(service, orders, socket, group=group, ready=ready, check=lambda: check_usable(site, warm))


def _still_taken(site: SiteFolder, plan: RoundPlan) -> bool:
    try:
        check_taken(read_control(site.agent), site.settings.policy, plan.job_id)
    except Refused:
        return False
    return True


def check_usable(site: SiteFolder, warm: WarmSite) -> None:
    """Raise what keeps the agent from training: of decisions, settings, store or ledger."""
    read_control(site.agent)
    warm.served()
    read_ledger(site.ledger, site=site.settings.name, population=site.population.name)


def serve(
    service: AgentService,
    orders: Orders,
    socket: Path,
    *,
    group: int = -1,
    ready: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Answer at the socket until a signal; return whether what ran has ended. Raises as `run_agent`."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logging.getLogger("grpc").setLevel(logging.CRITICAL)  # it logs what fails with its text
    with listening(service, socket, group=group, check=check):
        ready()
        stop.wait()
        log.info("stopping")
    return orders.close(grace_s=_GRACE_S)


@contextmanager
def listening(
    service: AgentService, socket: Path, *, group: int = -1, check: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Listen at the agent's socket and at the hospital's own beside it, with `grpc.health.v1` at both.

    Calls that are open at the end are cut off. `check` raises where the agent cannot work.
    """
    with _socket_folder(socket, group):
        local, health = local_socket(socket), Health(check)
        for_all, for_hospital = _server(_THREADS, health), _server(_LOCAL_THREADS, health)
        agent_pb2_grpc.add_AgentServicer_to_server(service, for_all)
        agent_pb2_grpc.add_LocalServicer_to_server(LocalService(service.orders), for_hospital)
        with _started(for_hospital, local, group=-1, mode=0o600), _started(for_all, socket, group=group, mode=0o660):
            yield


def _server(threads: int, health: Health) -> grpc.Server:
    """Return a server that turns away what it has no thread for, before it reads or keeps anything of it."""
    options = (
        *OPTIONS,
        ("grpc.max_concurrent_streams", threads),
        ("grpc.max_allowed_incoming_connections", _MOST_CONNECTIONS),
    )
    server = grpc.server(ThreadPoolExecutor(threads, "call"), options=options, maximum_concurrent_rpcs=threads)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    return server


@contextmanager
def _started(server: grpc.Server, socket: Path, *, group: int, mode: int) -> Iterator[None]:
    _bind(server, socket, group, mode)
    server.start()
    try:
        yield
    finally:
        server.stop(grace=None).wait()
        with suppress(OSError):
            socket.unlink(missing_ok=True)


def set_threads(threads: int) -> None:
    """Tell torch how many threads to take; 0 leaves it to torch."""
    import torch  # noqa: PLC0415  (slow, and an agent without a site has no use for it)

    if threads:
        torch.set_num_threads(threads)


@contextmanager
def _socket_folder(socket: Path, group: int) -> Iterator[None]:
    """Make the sockets' folder and hold its lock; sockets that a killed agent left are removed."""
    folder, local = socket.parent, local_socket(socket)
    if max(len(os.fsencode(each.absolute())) for each in (socket, local)) > _LONGEST_PATH:
        raise SiteError("socket_unusable", f"The socket's path is longer than {_LONGEST_PATH} bytes. Give --socket.")
    if socket == local:
        raise SiteError("socket_unusable", f"{local.name} is the name of another socket. Give another --socket.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_agent(socket.with_name(socket.name + _LOCK)):
        for each in (socket, local):
            _remove_left(each)
        _give(folder, group, 0o750)
        yield


def _remove_left(socket: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(socket.lstat().st_mode):
            raise SiteError("socket_unusable", "In the socket's place is something else. Give another --socket.")
        socket.unlink()


def _bind(server: grpc.Server, socket: Path, group: int, mode: int) -> None:
    before = os.umask(0o177)  # so that nobody connects before the group is set
    try:
        server.add_insecure_port(target(str(socket.absolute())))
    except RuntimeError:
        raise SiteError("socket_unusable", "The socket cannot be made there. Give another --socket.") from None
    finally:
        os.umask(before)
    _give(socket, group, mode)


def _give(path: Path, group: int, mode: int) -> None:
    try:
        os.chown(path, -1, group)
        path.chmod(mode)
    except PermissionError:
        raise SiteError(
            "group_unusable",
            "The socket cannot be given to agent.connector_group. Let the agent's user be a member of that group, and "
            "own the socket's folder.",
        ) from None


def _group(name: str) -> int:
    """Return the number of a group, -1 for none; SiteError `group_unknown`."""
    try:
        return grp.getgrnam(name).gr_gid if name else -1
    except KeyError:
        raise SiteError("group_unknown", "There is no such group as agent.connector_group on this machine.") from None


def _only_agent(lock: Path) -> AbstractContextManager[None]:
    """Hold the place of the one agent; SiteError `agent_running`."""
    return held(lock, busy=SiteError("agent_running", "An agent runs here already. Stop it first."))
