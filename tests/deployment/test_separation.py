"""Three users at a site, set up by docs/deploy.md, "For good", as it stands: what works, and who reads what.

The services run as their units say, on a machine of their own (`tests.deployment.services`). Needs root.
"""

import json
import re
import socket
import sys
import threading
from pathlib import Path

import pytest

from multimix.data.phantom import write_phantoms
from tests.deployment.federation import BIN, wait_for
from tests.deployment.services import FILTER, impossible, machine

DOC = Path(__file__).parents[2] / "docs" / "deploy.md"
SITE, AGENT, SOCKET = "/srv/multimix/site", "/srv/multimix/site-agent", "/run/multimix/agent.sock"
CONNECTOR = "/srv/multimix/site-connector"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(impossible()), reason=str(impossible())),
    pytest.mark.timeout(300),
]
_ASK = """
import json, os, sys
from pathlib import Path
site, agent, socket = map(Path, sys.argv[1:])
read = []
for folder in (site, agent):
    for path in [folder, *(folder / name for name in ("site.toml", "site.secret", "store", "intake", "ledger",
                 "store/current/images.u8", "ledger/ledger.jsonl", "ledger/ledger.key", "control.json", "in-use.json"))]:
        try:
            os.listdir(path) if path.is_dir() else path.read_bytes()
            read.append(str(path))
        except (PermissionError, FileNotFoundError):
            pass
import client.app
from client.agent.remote import RemoteSite
from multimix.contract.signing import SignedPlan
from multimix.errors import Refused
try:
    RemoteSite(socket, "", 5.0).train(SignedPlan("{}", "AAAA"), {})
    refused = None
except Refused as error:
    refused = error.reason
print(json.dumps({"read": read, "torch": "torch" in sys.modules, "refused": refused,
                  "site": RemoteSite(socket, "", 5.0).describe().site}))
"""


def documented():
    """Return the two blocks of the section."""
    section = DOC.read_text().split("\n## For good\n")[1].split("\n### ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def server():
    """Something that accepts connections and is no server; `calls` counts them."""
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return
                calls.append(1)

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], calls


@pytest.fixture(scope="module")
def site(server):
    """The site that the document makes; its agent runs."""
    with machine() as made:
        manifest = write_phantoms(made.folder / "images", hospitals=1, patients=40, image_size=64, seed=0)
        manifest.rename(manifest.with_name("more.csv"))
        few = manifest.with_name("more.csv").read_text().splitlines(keepends=True)[:-5]
        manifest.write_text("".join(few))
        made.run("mkdir -p /srv/multimix && cp -r images /srv/multimix && chmod -R a+rX /srv/multimix")
        init = made.run(
            f"multimix-server init 127.0.0.1:{server[0]} > federation.txt && multimix-server kit hospital-a"
        )
        assert init.returncode == 0, init.stderr
        # This very multimix may lie below /home, which `units` refuses unless told where to start it from.
        done = made.run(f"{heard()}\n{documented()[0].replace('--apply', f'--apply --bin {BIN}')}")
        assert done.returncode == 0, done.stdout + done.stderr
        agent = made.start("multimix-agent.service")
        wait_for("the agent is ready", lambda: "ready" in agent.said or agent.process.poll() is not None)
        assert agent.process.poll() is None, agent.said
        yield made


def heard():
    return "fingerprint=$(sed -n 's/^fingerprint *//p' federation.txt)"


def test_the_documented_steps_end_with_services_that_are_enabled(site):
    enabled = (site.folder / "systemctl").read_text()
    assert "enable --now multimix-agent multimix-connector multimix-intake.timer" in enabled


def test_the_agent_runs_under_its_own_unit(site):
    assert site.programs["multimix-agent.service"].process.poll() is None
    assert site.run(f"stat -c '%U %G %a' {SOCKET}").stdout.split() == ["multimix-agent", "multimix-connector", "660"]


def test_the_connectors_user_reaches_the_agent_and_reads_nothing_of_the_site(site):
    asked = site.as_user("multimix-connector", sys.executable, "-c", _ASK, SITE, AGENT, SOCKET)
    assert asked.returncode == 0, asked.stderr
    seen = json.loads(asked.stdout)
    assert seen == {"read": [], "torch": False, "refused": "plan_signature", "site": "hospital-a"}


def test_another_user_of_the_machine_does_not_reach_the_agent(site):
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    assert "PermissionError" in site.as_user("games", sys.executable, "-c", code, SOCKET).stderr


def test_the_connector_starts_under_its_own_unit_and_calls_the_server(site, server):
    before = len(server[1])
    connector = site.start("multimix-connector.service", "--once")
    assert connector.process.wait(timeout=120) == 1, connector.said
    assert "not_joined" not in connector.said
    assert len(server[1]) > before, connector.said


def test_the_nightly_intake_runs_under_its_own_unit_and_the_agent_goes_on_reading(site):
    night = site.start("multimix-intake.service")
    assert night.process.wait(timeout=120) == 0, night.said
    more = site.start("multimix-intake.service", "/srv/multimix/images/more.csv")  # a new generation
    assert more.process.wait(timeout=120) == 0, more.said
    assert site.run(f"readlink {SITE}/store/current").stdout.strip() == "generation-000002"
    before = site.programs["multimix-agent.service"]
    assert before.stop() == 0
    starts, agent = before.said.count("ready"), site.start("multimix-agent.service")
    wait_for("the agent is ready", lambda: agent.said.count("ready") > starts or agent.process.poll() is not None)
    assert agent.process.poll() is None, agent.said
    assert site.as_user("multimix-agent", "md5sum", f"{SITE}/store/current/images.u8").returncode == 0


def test_intake_reads_which_generations_the_agent_uses_and_nothing_else_of_it(site):
    begin = f"from pathlib import Path; from client.settings import open_site; site = open_site(Path('{SITE}'));"
    publish = "from client.published import publish_in_use; publish_in_use(site)"
    assert site.as_user("multimix-agent", sys.executable, "-c", begin + publish).returncode == 0
    read = "from client.intake.pinned import fingerprints_in_use as used; print(len(used(site)))"
    assert site.as_user("multimix-intake", sys.executable, "-c", begin + read).stdout == "1\n"
    for path in ("", "/ledger", "/activity.jsonl", "/agent.lock"):
        assert site.as_user("multimix-intake", "head", "-c1", f"{AGENT}{path}").returncode != 0
        assert site.as_user("multimix-intake", "ls", f"{AGENT}{path}/").returncode != 0


def test_a_newer_kit_keeps_the_owners_and_reaches_the_connector(site):
    modes = f"stat -c '%n %U %G %a' {SITE}/site.toml {SITE}/coordinator-ca.pem {CONNECTOR}/node.key"
    before, key = site.run(modes).stdout, site.text(f"{CONNECTOR}/node.key")
    assert f"{SITE}/site.toml multimix-intake multimix-agent 640" in before
    assert f"{CONNECTOR}/node.key multimix-connector multimix-connector 600" in before
    rotated = site.run("multimix-server rotate --ca && rm hospital-a.kit.zip && multimix-server kit hospital-a")
    assert rotated.returncode == 0, rotated.stderr
    done = site.run(f"{heard()}\n{documented()[1]}")
    assert done.returncode == 0, done.stderr
    assert site.run(modes).stdout == before
    assert site.text(f"{CONNECTOR}/node.key") == key
    assert site.text(f"{CONNECTOR}/ca.pem").count("BEGIN CERTIFICATE") == 2
    assert site.text(f"{SITE}/coordinator-ca.pem") == site.text(f"{CONNECTOR}/ca.pem")
    assert site.as_user("multimix-connector", "cat", f"{CONNECTOR}/ca.pem").returncode == 0
    assert site.as_user("multimix-agent", "cat", f"{SITE}/site.toml").returncode == 0


def test_a_new_key_of_a_new_kit_is_the_connectors_own(site):
    done = site.run(f"{heard()}\n{documented()[1].replace('kit.zip', 'kit.zip --new-key')}")
    assert done.returncode == 0, done.stderr
    owner = site.run(f"stat -c '%U %a' {CONNECTOR}/node.key {CONNECTOR}/ca.pem {CONNECTOR}/kit.json").stdout
    assert owner.splitlines() == ["multimix-connector 600", "multimix-connector 644", "multimix-connector 644"]


def test_a_unit_with_the_filter_that_killed_the_agent_kills_a_chown(site, tmp_path):
    """The filter of these tests is one: without it they would pass whatever the units say."""
    unit = site.folder / "killing.service"
    unit.write_text("SystemCallFilter=@system-service\nSystemCallFilter=~@privileged\n")
    code = f"import os; os.chown({str(tmp_path)!r}, -1, -1)"
    ended = site.as_user("root", sys.executable, FILTER, unit, sys.executable, "-c", code)
    assert ended.returncode in {-31, 159}  # SIGSYS
