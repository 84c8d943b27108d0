"""Running the federation's SuperLink: TLS and node authentication on, its register kept as federation.toml says."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from multimix.errors import InputError
from multimix.files import write_atomically
from multimix.locks import held
from multimix.processes import environment, installed, keep_running, start, stop
from server.log import log
from server.metrics import serve_metrics
from server.nodes import is_running, local_address, synchronise
from server.provision.folder import FILE, FederationFolder, check_exposed, check_owner, open_federation
from server.provision.rotation import check_in_force, expiring, utcnow

CONNECTION: Final = "federation"  # the name of the SuperLink in Flower's config.toml
_READY_S: Final = 60.0
_LOG_HOURS, _LOGS = 24, 14  # of superlink.log
_LOCK: Final = "start.lock"

_CONNECTIONS = """[superlink]
default = "{name}"

[superlink.{name}]
address = "{address}"
root-certificates = "{ca}"
"""


def flower_environment(folder: FederationFolder) -> dict[str, str]:
    """Return the environment of everything of Flower's at the coordinator: SuperLink, ServerApp, `flwr`."""
    return environment(
        HOME=str(folder.flower.absolute()),
        FLWR_HOME=str(folder.flower.absolute()),
        MULTIMIX_FEDERATION=str(folder.path.absolute()),
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
        OMP_NUM_THREADS="1",
        PYTHONUNBUFFERED="1",
        NO_PROXY="*",  # nothing here calls out
    )


def superlink_command(folder: FederationFolder) -> list[str]:
    """Return the command of the SuperLink."""
    settings = folder.settings
    return [
        *(installed("flower-superlink"), "--isolation", "subprocess", "--enable-supernode-auth"),
        *("--disable-runtime-dependency-installation", "--database", str(folder.flower.absolute() / "superlink.db")),
        *("--host", settings.bind_host, "--port", str(settings.bind_port)),
        *("--ssl-ca-certfile", str(folder.ca.absolute()), "--ssl-certfile", str(folder.certificate.absolute())),
        *("--ssl-keyfile", str(folder.certificate_key.absolute())),
        *("--log-file", str(folder.flower.absolute() / "superlink.log")),
        *("--log-rotation-interval-hours", str(_LOG_HOURS), "--log-rotation-backup-count", str(_LOGS)),
    ]


def write_connection(folder: FederationFolder) -> None:
    """Tell `flwr` where the SuperLink is and whom to trust."""
    text = _CONNECTIONS.format(name=CONNECTION, address=local_address(folder), ca=folder.ca.absolute())
    write_atomically(folder.flower / "config.toml", text.encode())


def serve(folder: FederationFolder, stopped: threading.Event, *, metrics_port: int, once: bool = False) -> int:
    """Run the SuperLink until `stopped`, again when it dies; return its last exit code.

    Raises:
        InputError: `server_running`, `port_taken`, `authority_unusable`, and as `check_owner`, `check_exposed` and
            `check_in_force`.
    """
    check_owner(folder)
    check_exposed(folder.settings)
    check_in_force(folder, utcnow())
    folder.flower.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.runs.mkdir(mode=0o700, exist_ok=True)
    with _alone(folder), serve_metrics(folder.path, metrics_port):
        _warn_of_certificates(folder)
        write_connection(folder)
        register = _Register(folder)

        def begin() -> subprocess.Popen[bytes] | None:
            process = start(superlink_command(folder), env=flower_environment(folder), cwd=folder.flower)
            if _ready(folder, process, stopped) and register.read_again():
                return process
            stop(process)
            return None

        return keep_running(begin, stopped, ended=_say_ended, look=register.look, once=once)


class _Register:
    """Keeps the SuperLink's register of keys as federation.toml says, within a second of each change."""

    def __init__(self, folder: FederationFolder) -> None:
        self._path, self._seen, self._next = folder.path, 0, 0.0

    def look(self) -> None:
        """Read federation.toml again if it changed."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1
            if _changed_ns(self._path / FILE) != self._seen:
                self.read_again()

    def read_again(self) -> bool:
        """Return whether the register is as it should be; if not, the next look tries again."""
        changed = _changed_ns(self._path / FILE)
        try:
            registered, unregistered = synchronise(open_federation(self._path))
        except InputError as error:
            log.warning("the register of sites is as it was (%s)", error.reason)
            return False
        self._seen = changed
        if registered or unregistered:
            log.info("sites: %d let in, %d shut out", registered, unregistered)
        return True


def _changed_ns(file: os.PathLike[str]) -> int:
    try:
        return os.stat(file).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


def _ready(folder: FederationFolder, process: subprocess.Popen[bytes], stopped: threading.Event) -> bool:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and process.poll() is None and not stopped.is_set():
        if is_running(folder):
            log.info("server up: %s, for sites as %s", local_address(folder), folder.settings.address)
            return True
        time.sleep(0.2)
    return False


def _say_ended(code: int, pause_s: float) -> None:
    log.error("the SuperLink ended or did not start (exit code %d): again in %.0f s; see superlink.log", code, pause_s)


def _warn_of_certificates(folder: FederationFolder) -> None:
    for certificate in expiring(folder, utcnow()):
        log.warning("%s: %s (%d days left)", certificate.name, certificate.state, certificate.days_left)


@contextmanager
def _alone(folder: FederationFolder) -> Iterator[None]:
    busy = InputError("server_running", "This federation's server runs already: see multimix-server status.")
    with held(folder.flower / _LOCK, busy=busy):
        if is_running(folder):
            raise busy
        yield
