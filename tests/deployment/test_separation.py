"""Three users at a site, as `multimix-site units` lays it out: the connector's can use the socket and read nothing else.

The users are Debian's own (bin, daemon, games), so that none has to be made. Needs root and systemd-tmpfiles.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from multimix.data.phantom import write_phantoms
from tests.deployment.federation import BIN, SIZE, environment, wait_for

INTAKE, AGENT, CONNECTOR = "bin", "daemon", "games"
_ASK = """
import json, os, sys
from pathlib import Path
site, agent, socket = map(Path, sys.argv[1:])
read = []
for folder in (site, agent):
    for path in [folder, *(folder / name for name in ("site.toml", "site.secret", "store", "intake", "ledger",
                 "store/current/images.bin", "ledger/ledger.jsonl", "ledger/ledger.key", "control.json"))]:
        try:
            os.listdir(path) if path.is_dir() else path.read_bytes()
            read.append(str(path))
        except (PermissionError, FileNotFoundError):
            pass
import client.app
from client.agent.remote import RemoteSite, agent_progress
from multimix.contract.signing import SignedPlan
from multimix.errors import Refused
try:
    RemoteSite(socket, "", 5.0).train(SignedPlan("{}", "AAAA"), {})
    refused = None
except Refused as error:
    refused = error.reason
print(json.dumps({"read": read, "torch": "torch" in sys.modules, "agent": agent_progress(socket) is not None,
                  "refused": refused, "site": RemoteSite(socket, "", 5.0).describe().site}))
"""


def as_user(user, *command, groups=()):
    more = ("--groups", ",".join(groups)) if groups else ("--clear-groups",)
    return ["setpriv", "--reuid", user, "--regid", user, *more, *map(str, command)]


def impossible():
    if os.geteuid() or not shutil.which("systemd-tmpfiles"):
        return "needs root and systemd-tmpfiles"
    tried = subprocess.run(as_user(CONNECTOR, sys.executable, "-c", "import numpy"), capture_output=True)
    return "other users cannot run this Python" if tried.returncode else None


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="mm-sep-") as name:  # pytest's own is closed to other users
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.mark.skipif(bool(impossible()), reason=str(impossible()))
def test_the_connectors_user_reaches_the_agent_and_reads_nothing_of_the_site(folder):
    site, agent, socket = folder / "site", folder / "site-agent", folder / "run" / "agent.sock"

    def run(*command):
        done = subprocess.run([str(BIN / "multimix-site"), *map(str, command)], cwd=folder, env=environment(), capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("init", "clinic", "--site", site, "--image-size", SIZE)
    text = (site / "site.toml").read_text().replace("minimum_cohort = 10", "minimum_cohort = 1")
    text = text.replace("# store_group", f'store_group = "{AGENT}"  #', 1)
    text = text.replace("# [agent]", f'[agent]\nfolder = "{agent}"\nconnector_group = "{CONNECTOR}"\n#')
    key = "9" * 42 + "8="
    text = text.replace("# [server]", f'[server]\naddress = "127.0.0.1:1"\ncoordinator_key = "{key}"\n#')
    population = "[population]\ndeclared_patients = 20\nepsilon_per_run = 3.0\nepsilon_lifetime = 8.0\ndelta = 0.001\n"
    text = text.replace("# [population]", population + "#")
    (site / "site.toml").write_text(text)
    run("intake", write_phantoms(folder / "images", hospitals=1, patients=12, image_size=64, seed=0), "--site", site)
    run("ledger", "begin", "--site", site)
    run("units", "--site", site, "--out", folder / "units", "--connector-folder", folder / "connector")
    rules = (folder / "units" / "multimix-site.tmpfiles.conf").read_text()
    for what, user in (("intake", INTAKE), ("agent", AGENT), ("connector", CONNECTOR)):
        rules = rules.replace(f"multimix-{what}", user)
    (folder / "rules.conf").write_text(rules)
    subprocess.run(["systemd-tmpfiles", "--create", folder / "rules.conf"], check=True, capture_output=True)
    socket.parent.mkdir()
    shutil.chown(socket.parent, AGENT, AGENT)
    log = folder / "agent.log"
    with log.open("wb") as said:
        command = as_user(AGENT, BIN / "multimix-site", "agent", "--site", site, "--socket", socket, groups=(AGENT, CONNECTOR))  # fmt: skip
        process = subprocess.Popen(command, env=environment(), stdout=said, stderr=said)
    try:
        wait_for("the agent is ready", lambda: "ready" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        asked = subprocess.run(as_user(CONNECTOR, sys.executable, "-c", _ASK, site, agent, socket), cwd="/", env=environment(PYTHONPATH=str(Path(__file__).parents[2])), capture_output=True, text=True)  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        seen = json.loads(asked.stdout)
        assert seen == {"read": [], "torch": False, "agent": True, "refused": "plan_signature", "site": "clinic"}
        stranger = subprocess.run(as_user("lp", sys.executable, "-c", "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])", socket), capture_output=True, text=True)  # fmt: skip
        assert "PermissionError" in stranger.stderr
    finally:
        process.terminate()
        process.wait(timeout=40)
