"""docs/deploy.md is true: its commands run as they stand, in order, in an empty folder, and at most five a side.

They run in a network namespace of their own where that is permitted, so that the port of the page is free.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multimix.processes import descendants
from tests.deployment.hosts import unavailable

DOC = Path(__file__).parents[2] / "docs" / "deploy.md"
BLOCKS = re.compile(r"```bash\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"^(multimix-(?:server|site) [a-z]+)", re.MULTILINE)
LOOKING = {"multimix-server status", "multimix-site status", "multimix-site ledger"}


def setting_up():
    """Return the commands of each side, without those that only look."""
    found = [command for block in BLOCKS.findall(DOC.read_text()) for command in COMMANDS.findall(block)]
    sides = {side: [each for each in found if each.startswith(side)] for side in ("multimix-server", "multimix-site")}
    return {side: [each for each in commands if each not in LOOKING] for side, commands in sides.items()}


def test_a_first_round_takes_at_most_five_commands_a_side():
    assert setting_up() == {
        "multimix-server": [f"multimix-server {each}" for each in ("init", "kit", "admit", "start", "run")],
        "multimix-site": [f"multimix-site {each}" for each in ("join", "intake", "agent", "connect", "approve")],
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_walk_through_ends_in_a_model_a_report_and_a_ledger(tmp_path):
    script = "set -euo pipefail\n" + "\n".join(BLOCKS.findall(DOC.read_text()))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for name in ("MULTIMIX_SITE", "MULTIMIX_FEDERATION", "MULTIMIX_SOCKET"):
        environment.pop(name, None)
    alone = [] if unavailable() else ["unshare", "--net"]
    lo = "" if not alone else "ip link set lo up\n"
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            [*alone, "bash", "-c", lo + script], cwd=tmp_path, env=environment, stdout=said, stderr=said, start_new_session=True
        )  # fmt: skip
        try:
            code = process.wait(timeout=300)
            started = group_of(process.pid)
        finally:
            for pid in [*group_of(process.pid), *descendants(process.pid)]:
                os.kill(pid, signal.SIGTERM)
    said = (tmp_path / "said").read_text() + (tmp_path / "run.log").read_text()
    assert code == 0, said + (tmp_path / "agent.log").read_text() + (tmp_path / "connect.log").read_text()
    assert started, "server, agent and connector still run"
    run = tmp_path / "federation" / "runs" / "first"
    results = json.loads((run / "results.json").read_text())
    assert [record["sites"]["hospital-a"]["state"] for record in results["rounds"]] == ["accepted", "accepted"]
    assert (run / "model.safetensors").exists()
    assert (run / "report.html").exists()
    assert (run / "index.html").exists()
    assert shutil.which("multimix-site", path=environment["PATH"])


def group_of(session: int) -> list[int]:
    """Return the processes of a session that still live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found
