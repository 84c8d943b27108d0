"""Several hosts on one machine: network namespaces with an address each, joined by a bridge in a namespace of its own.

Cables can be pulled and plugged in again. Names are of this process, so two test runs do not meet; what is left of a
killed one is removed by `Network.close`, never by pattern.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Self

_networks = count()


def unavailable() -> str | None:
    """Return why namespaces cannot be made here; None where they can."""
    if not shutil.which("ip"):
        return "no ip command (apt install iproute2)"
    name = f"mmtry{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if tried.returncode:
        return "network namespaces are not permitted here"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


def ip(*arguments: str) -> None:
    """Run iproute2's command; what it says comes with the error."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@dataclass
class Host:
    """One host: commands run in it reach the other hosts of its network and nothing else."""

    name: str
    address: str
    namespace: str
    cable: str  # the end of the cable that is in the switch
    switch: str  # the namespace of the bridge

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs there; ip becomes the command, so its process id is the command's."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def start(self, arguments: Sequence[str], *, env: Mapping[str, str], log, cwd=None) -> subprocess.Popen[bytes]:
        """Start a process there, in a session of its own, its output in a file."""
        return subprocess.Popen(
            self.command(*arguments),
            env=dict(env),
            cwd=cwd,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end."""
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False, **options)

    def unplug(self) -> None:
        """Pull the cable: packets are lost, nobody is told."""
        ip("-n", self.switch, "link", "set", self.cable, "down")

    def plug_in(self) -> None:
        """Plug the cable in again."""
        ip("-n", self.switch, "link", "set", self.cable, "up")


@dataclass
class Network:
    """A switch and the hosts on it; a context manager."""

    prefix: str = field(default_factory=lambda: f"mm{os.getpid()}-{next(_networks)}")
    hosts: dict[str, Host] = field(default_factory=dict)
    _undo: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self._add_namespace(self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def switch(self) -> str:
        return f"{self.prefix}-switch"

    def host(self, name: str) -> Host:
        """Return a host, new where there is none of that name."""
        if name in self.hosts:
            return self.hosts[name]
        number = len(self.hosts) + 1
        namespace, cable, address = f"{self.prefix}-{name}", f"port{number}", f"10.77.0.{number}"
        self._add_namespace(namespace)
        ip("-n", self.switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("-n", self.switch, "link", "set", cable, "master", "bridge", "up")
        ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", namespace, "link", "set", device, "up")
        self.hosts[name] = Host(name, address, namespace, cable, self.switch)
        return self.hosts[name]

    def _add_namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._undo.callback(ip, "netns", "delete", name)

    def close(self) -> None:
        """Remove the namespaces, and with them the cables."""
        self._undo.close()
