"""A federation and its sites on this machine, made in no time, and the commands that run them as processes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.join import join, read_kit
from server.provision.admission import admit
from server.provision.folder import FederationFolder, FederationSettings, open_federation
from server.provision.kits import kit_bytes
from server.provision.rotation import new_federation
from tests.deployment.processes import Program
from tests.orthanc import free_port

CODE = "import typer, {module} as c; app = typer.Typer(); c.register(app); app.command('x')(print); app()"


def federation(path: Path, *, address: str = "", port: int | None = None) -> FederationFolder:
    """A federation without sites; its server listens where sites reach it unless another address is given."""
    port = port or free_port()
    return new_federation(
        path, FederationSettings(name="lungs", address=address or f"127.0.0.1:{port}", bind_port=port)
    )


def joined(folder: FederationFolder, site: Path, *, admitted: bool = True) -> Path:
    """A site that joined by its kit, and was admitted or not; returns its folder."""
    kit = site.with_suffix(".kit.zip")
    kit.write_bytes(kit_bytes(folder, site.name))
    public = join(read_kit(kit), site, image_size=32).public_key
    if admitted:
        admit(folder.path, site.name, public)
    return site


def server_command(*words: object) -> list[str]:
    return [sys.executable, "-c", CODE.format(module="server.run_cli"), *map(str, words)]


def connect_command(*words: object) -> list[str]:
    return [sys.executable, "-c", CODE.format(module="client.connect_cli"), "connect", *map(str, words)]


@contextmanager
def running(command: list[str], log: Path) -> Iterator[Program]:
    with log.open("ab") as output:
        program = Program(subprocess.Popen(command, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT), log)
    try:
        yield program
    finally:
        program.stop()


@contextmanager
def server_running(folder: FederationFolder) -> Iterator[Program]:
    with running(server_command("start", "-f", folder.path), folder.path / "start.log") as server:
        server.says("server up")
        yield server


def again(folder: FederationFolder) -> FederationFolder:
    """The federation as its file says it is now."""
    return open_federation(folder.path)
