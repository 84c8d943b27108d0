"""nginx for the tests, as it is installed, with our server block in a configuration that needs no rights."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from server.nodes import trusted
from server.provision.folder import FederationFolder
from server.proxy import proxy_configuration

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_AROUND = """
daemon off; pid {base}/nginx.pid; error_log {base}/error.log warn; worker_processes 1;{user}
events {{ worker_connections 64; }}
http {{
    client_body_temp_path {base}/body; proxy_temp_path {base}/proxy; fastcgi_temp_path {base}/fastcgi;
    uwsgi_temp_path {base}/uwsgi; scgi_temp_path {base}/scgi;
    include {base}/multimix.conf;
}}
"""


def nginx_command(folder: FederationFolder, base: Path) -> list[str]:
    """Write nginx's files and return the command that runs it in the foreground."""
    base.mkdir()
    (base / "multimix.conf").write_text(proxy_configuration(folder))
    (base / "nginx.conf").write_text(_AROUND.format(base=base, user=" user root;" if os.getuid() == 0 else ""))
    return [str(NGINX), "-p", str(base), "-c", str(base / "nginx.conf")]


@contextmanager
def nginx_before(folder: FederationFolder, base: Path) -> Iterator[None]:
    """Run nginx with the federation's configuration; `base` is where it keeps its files."""
    process = subprocess.Popen(nginx_command(folder, base))
    try:
        _wait_until_it_answers(folder, process)
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


def _wait_until_it_answers(folder: FederationFolder, process: subprocess.Popen) -> None:
    for _ in range(100):
        assert process.poll() is None, "nginx ended"
        try:
            httpx.get(f"https://{folder.settings.address}/", verify=trusted(folder))
        except httpx.ConnectError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("nginx does not answer")
