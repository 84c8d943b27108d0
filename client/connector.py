"""The connector: keeps Flower's SuperNode running, with nothing of the site but the folder that `join` filled for it.

It calls the server and is never called. Before each start it looks who answers there, and starts nothing towards a
server that another authority than the kit's vouches for, or that would refuse every message for this machine's clock.
What SuperNode and app see of this machine's environment is a short list of names.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, ValidationError

from client.preflight.lines import Line
from client.preflight.network import reachability
from multimix.config import Frozen
from multimix.contract.kit import AUTHORITY, KIT, Kit
from multimix.errors import SiteError
from multimix.files import write_atomically
from multimix.locks import held
from multimix.processes import NOT_STARTED, environment, free_port, keep_running, start

NODE_KEY: Final = "node.key"  # as client/join.py names it
STATE: Final = "connector.json"
NOT_ADMITTED, SERVER_AWAY = 3, 4  # exit codes of client/supernode.py
_LOCK: Final = "connect.lock"
_PROXY: Final = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
_WORDS: Final = {
    NOT_ADMITTED: (
        "not_admitted",
        (
            "The server does not take this site's key. Send the coordinator what `multimix-site join` printed; a "
            "revoked key needs another one: multimix-site join KIT --new-key. Check this machine's clock, too: it may "
            "be 5 s ahead of the server's at most."
        ),
    ),
    SERVER_AWAY: ("server_away", "The server did not answer."),
}

State = Literal["connecting", "running", "waiting", "stopped"]
Say = Callable[[str, str], None]  # a reason code, and words for a person


class ConnectorState(Frozen):
    """What the connector does, for `multimix-site status`: `connector.json` in its folder."""

    state: State
    reason: str = ""
    since: AwareDatetime


@dataclass(frozen=True)
class Connector:
    """What a connector needs to know."""

    folder: Path
    socket: Path
    kit: Kit
    polling: Literal["quick", "flower"] = "quick"

    @property
    def authorities(self) -> Path:
        """The only authorities that may vouch for the server."""
        return self.folder / AUTHORITY


def open_connector(folder: Path, socket: Path, *, polling: Literal["quick", "flower"] = "quick") -> Connector:
    """Read what `join` left for the connector.

    Raises:
        SiteError: `not_joined`, `node_key_not_private`.
    """
    try:
        kit = Kit.model_validate_json((folder / KIT).read_bytes())
        mode = (folder / NODE_KEY).stat().st_mode
        os.close(os.open(folder / AUTHORITY, os.O_RDONLY))
    except (OSError, ValidationError):
        raise SiteError(
            "not_joined", "The connector's folder is not complete for this user. Run: multimix-site join KIT"
        ) from None
    if mode & 0o077:
        raise SiteError(
            "node_key_not_private", "Others may read connector/node.key. Join with --new-key, and have that admitted."
        )
    return Connector(folder.absolute(), socket.absolute(), kit, polling)


def connect(connector: Connector, stopped: threading.Event, say: Say, *, once: bool = False) -> int:
    """Keep the SuperNode running until `stopped`; return its last exit code, -1 where it could not be started.

    Raises:
        SiteError: `connector_running`, `bad_authority`.
    """
    home = connector.folder / "flower"
    home.mkdir(mode=0o700, exist_ok=True)

    def begin() -> subprocess.Popen[bytes] | None:
        _note(connector, "connecting")
        if (failed := _obstacle(connector, say)) is not None:
            _note(connector, "waiting", failed)
            return None
        process = start(command(connector), env=supernode_environment(home, os.environ), cwd=home)
        _note(connector, "running")
        return process

    def ended(code: int, pause_s: float) -> None:
        reason, words = _WORDS.get(code, ("supernode_ended", f"The SuperNode ended (exit code {code})."))
        if code != NOT_STARTED:
            say(reason, words)
            _note(connector, "waiting", reason)
        say("again", f"Trying again in {pause_s:.0f} s.")

    with _alone(connector.folder):
        try:
            code = keep_running(begin, stopped, ended=ended, once=once)
        finally:
            _note(connector, "stopped")
    if once and code in _WORDS:
        say(*_WORDS[code])
    return code


def command(connector: Connector) -> list[str]:
    """Return the command of the SuperNode; its own API for the app is on a free port of the loopback."""
    quick = [sys.executable, "-P", "-m", "client.supernode", str(connector.folder)]
    plain = [str(Path(sys.executable).parent / "flower-supernode")]
    return [
        *(quick if connector.polling == "quick" else plain),
        *("--superlink", connector.kit.address, "--root-certificates", str(connector.authorities)),
        *("--auth-supernode-private-key", str(connector.folder / NODE_KEY)),
        *("--host", "127.0.0.1", "--port", str(free_port())),
        *("--node-config", f'agent-socket="{connector.socket}"'),
    ]


def supernode_environment(home: Path, ours: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of SuperNode and app: of ours only language, time zone and the way through the proxy."""
    proxy = {name: ours[name] for name in _PROXY if name in ours}
    return environment(
        HOME=str(home),
        FLWR_HOME=str(home),
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
        FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.25",  # 0.1 keeps a tenth of a core busy
        OMP_NUM_THREADS="1",
        PYTHONUNBUFFERED="1",
        **proxy,
    )


def _obstacle(connector: Connector, say: Say) -> str | None:
    """Look who answers at the server's address; return a reason code where nothing is to be started."""
    lines = reachability(connector.kit.address, ca=connector.authorities.read_bytes())
    for line in lines:
        if line.status != "PASS":
            say(_code(line), f"{line.finding} {line.fix}")
    failed = [line for line in lines if line.status == "FAIL"]
    return _code(failed[0]) if failed else None


def _code(line: Line) -> str:
    """Return the reason code that a FAIL line ends with; else its name."""
    _, bracket, rest = line.finding.rpartition("(")
    return rest.rstrip(").") if line.status == "FAIL" and bracket else line.name


def read_state(folder: Path) -> ConnectorState | None:
    """Return what the connector last said that it does; None where it never ran."""
    try:
        return ConnectorState.model_validate_json((folder / STATE).read_bytes())
    except (OSError, ValidationError):
        return None


def _note(connector: Connector, state: State, reason: str = "") -> None:
    noted = ConnectorState(state=state, reason=reason, since=datetime.now(UTC))
    write_atomically(connector.folder / STATE, noted.model_dump_json().encode(), mode=0o644)


def _alone(folder: Path) -> AbstractContextManager[None]:
    busy = SiteError("connector_running", "This site's connector runs already. Stop it first.")
    return held(folder / _LOCK, busy=busy)
