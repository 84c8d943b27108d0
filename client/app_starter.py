"""Starts the ClientApp in a tenth of a second: `python -m client.app_starter SOCKET`, run by client/supernode.py.

Flower starts a process for each message, `flwr-clientapp`, found by PATH; it imports for two seconds of processor time
what it imported for the last one. Here a process that has imported Flower and what the app needs waits on a socket in
the connector's folder, and forks for each message; `put_in_place` puts a `flwr-clientapp` on the PATH that asks it to,
and runs Flower's own where it does not answer. The app itself, the bundle, is loaded anew each time.
"""

import importlib
import json
import os
import random
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final

from multimix.processes import installed

PROGRAM: Final = "flwr-clientapp"
_NEEDED: Final = (
    *("flwr.supernode.cli", "flwr.clientapp", "flwr.app", "grpc", "google.protobuf", "numpy", "pydantic"),
    *(
        "cryptography.hazmat.primitives.asymmetric.ed25519",
        "cryptography.hazmat.primitives.serialization",
        "safetensors",
    ),
)
_OURS: Final = ("client", "multimix", "server", "sim")
_LONGEST: Final = 65_536  # of a command line
_OBJECTS_S: Final = 60.0  # the SuperLink has them before a site hears of the message, but for a moment

_ASK = """#!{python} -IS
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX)
try:
    asked.connect({socket!r})
except OSError:
    os.execv({program!r}, [{program!r}, *sys.argv[1:]])
asked.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
asked.recv(1)  # returns when the app has ended
"""


def put_in_place(folder: Path, starter: Path) -> None:
    """Write a `flwr-clientapp` that asks the starter, for the front of the PATH."""
    folder.mkdir(mode=0o700, exist_ok=True)
    text = _ASK.format(python=sys.executable, socket=str(starter), program=installed(PROGRAM))
    (folder / PROGRAM).write_text(text)
    (folder / PROGRAM).chmod(0o700)


def wait_less(module: ModuleType) -> None:
    """Let Flower's `pull_objects` in a module wait so long for what a killed ServerApp never sent; else it is hours."""
    vars(module)["pull_objects"] = partial(vars(module)["pull_objects"], max_time=_OBJECTS_S)


def preload() -> None:
    """Import what apps need, and forget our own modules: the bundle brings its own."""
    for name in _NEEDED:
        importlib.import_module(name)
    wait_less(importlib.import_module("flwr.supercore.inflatable.inflatable_utils"))
    for name in [name for name in sys.modules if name.split(".")[0] in _OURS]:
        del sys.modules[name]


def serve(path: Path) -> None:
    """Wait for command lines, and fork a ClientApp for each, until this process is ended."""
    preload()
    path.unlink(missing_ok=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        while True:
            asked, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                os._exit(_run(asked))
            asked.close()


def _run(asked: socket.socket) -> int:
    """Be `flwr-clientapp`: in a fork, with the command line that comes over the socket."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    random.seed()
    arguments = json.loads(asked.makefile("r").readline(_LONGEST))
    threading.Thread(target=_end_with, args=(asked,), daemon=True).start()
    sys.argv = [PROGRAM, *arguments]
    try:
        importlib.import_module("flwr.supernode.cli").flwr_clientapp()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _end_with(asked: socket.socket) -> None:
    """End when whoever asked is gone: what kills the one kills the other."""
    asked.recv(1)
    os._exit(1)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
