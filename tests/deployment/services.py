"""A machine of its own for the services of a site: /etc, /srv and /run in a mount namespace, and what systemd would do.

Users are made there by systemd-sysusers, owners set by systemd-tmpfiles. A service is started as its unit says: user and
groups, no network, the paths that it may read and write, and the system calls (`unit_filter`). Needs root.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.deployment.federation import environment
from tests.deployment.processes import Program
from tests.deployment.unit_filter import settings

FILTER = Path(__file__).with_name("unit_filter.py")
TOOLS = ("systemd-tmpfiles", "systemd-sysusers", "systemd-analyze", "setpriv", "nsenter", "unshare", "runuser")
ROOT = Path(__file__).parents[2]
_BEGIN = """set -e
{opened}
mount -t tmpfs -o mode=755 tmpfs /srv
cp -a /etc {folder}/etc && mount --bind {folder}/etc /etc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /etc/systemd/system /etc/sysusers.d /etc/tmpfiles.d /etc/logrotate.d
touch {folder}/ready
exec sleep 3600
"""


def impossible() -> str | None:
    if os.geteuid() or not all(map(shutil.which, TOOLS)):
        return f"needs root and {', '.join(TOOLS)}"
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/srv"], capture_output=True).returncode:
        return "no mount namespaces here"
    return None


@dataclass
class Machine:
    """See `machine`."""

    folder: Path
    pid: int
    programs: dict[str, Program] = field(default_factory=dict)

    def inside(self, *command: object) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--wdns={self.folder}", *map(str, command)]

    def run(self, script: str, **more: str) -> subprocess.CompletedProcess:
        """Run lines of a shell as root."""
        env = environment(**more)
        env["PATH"] = f"{self.folder / 'stubs'}:{env['PATH']}"
        command = self.inside("bash", "-euo", "pipefail", "-c", script)
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)

    def text(self, path: str) -> str:
        return self.run(f"cat {path}").stdout

    def unit(self, name: str) -> Path:
        """Return a copy of an installed unit that every user of this test can read."""
        copy = self.folder / name
        copy.write_text(self.text(f"/etc/systemd/system/{name}"))
        copy.chmod(0o644)
        return copy

    def start(self, name: str, *more: object) -> Program:
        """Start a service as its unit says, with more arguments."""
        unit = self.unit(name)
        user = settings(unit, "User")[0]
        net = ["unshare", "--net"] if settings(unit, "PrivateNetwork") == ["yes"] else []
        command = [*settings(unit, "ExecStart")[0].split(), *map(str, more)]
        setpriv = [
            "setpriv",
            "--reuid",
            user,
            "--regid",
            user,
            "--init-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ]
        log = self.folder / f"{name}.log"
        with log.open("ab") as said:
            process = subprocess.Popen(
                self.inside(*net, "unshare", "--mount", "bash", "-euc", f'{_places(unit, user)}\nexec "$@"', "-",
                            *setpriv, sys.executable, "-P", FILTER, unit, *command),
                env=environment(HOME="/"), stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        self.programs[name] = Program(process, log)
        return self.programs[name]

    def as_user(self, user: str, *command: object) -> subprocess.CompletedProcess:
        whole = self.inside("setpriv", "--reuid", user, "--regid", user, "--init-groups", *command)
        return subprocess.run(whole, env=environment(PYTHONPATH=str(FILTER.parents[2])), capture_output=True, text=True)


def _opened(aside: Path) -> str:
    """Return what lets other users reach this Python and this code where a folder above is closed to them: /root, say."""
    lines, closed = [], set()
    for number, path in enumerate({Path(sys.base_prefix).resolve(), ROOT.resolve()}):
        above = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
        if above:
            closed.add(above[0])
            lines.insert(0, f"mkdir -p {aside}/{number}; mount --bind {path} {aside}/{number}")
            lines.append(f"mkdir -p {path}; mount --bind {aside}/{number} {path}")
    binds, back = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    return "\n".join([*binds, *(f"mount -t tmpfs -o mode=755 tmpfs {each}" for each in sorted(closed)), *back])


def _places(unit: Path, user: str) -> str:
    """Return what mounts the paths of a unit as it says; of ProtectSystem=strict, /srv and /etc."""
    lines = ["umask 0077", "cd /"]
    for name in settings(unit, "RuntimeDirectory"):
        lines += [f"mkdir -p /run/{name}", f"chown {user}:{user} /run/{name}", f"chmod 0750 /run/{name}"]
    for path in ("/srv", "/etc"):
        lines += [f"mount --bind {path} {path}", f"mount -o remount,bind,ro {path}"]
    for path in " ".join(settings(unit, "ReadWritePaths")).split():
        lines += [f"mount --bind {path} {path}", f"mount -o remount,bind,rw {path}"]
    for path in " ".join(settings(unit, "InaccessiblePaths")).split():
        hidden = path.removeprefix("-")
        empty = f"mount -t tmpfs -o mode=000 tmpfs {hidden}"
        lines.append(
            f"if [ -d {hidden} ]; then {empty}; elif [ -e {hidden} ]; then mount --bind /dev/null {hidden}; fi"
        )
    return "\n".join(lines)


@contextmanager
def machine() -> Iterator[Machine]:
    """A machine with nothing in /srv and /run, and users of its own; what was started on it is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="mm-site-") as name:  # pytest's own is closed to other users
        folder = Path(name)
        folder.chmod(0o711)
        stub = folder / "stubs" / "systemctl"
        stub.parent.mkdir()
        stub.write_text(f'#!/bin/sh\necho "$@" >> {folder}/systemctl\n')
        stub.chmod(0o755)
        script = _BEGIN.format(folder=folder, opened=_opened(folder / "opened"))
        process = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "bash", "-c", script])
        made = Machine(folder, process.pid)
        try:
            while not (folder / "ready").exists():
                assert process.poll() is None
                time.sleep(0.05)
            yield made
        finally:
            for program in made.programs.values():
                program.stop()
            process.kill()
            process.wait()
