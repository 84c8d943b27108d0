"""The units that `multimix-site units` writes: accepted by systemd itself, hardened, and true about who may see what."""

import shutil
import subprocess

import pytest
import typer
from typer.testing import CliRunner

from client.settings import new_site
from client.units_cli import connector_packages, units

SYSTEMD = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on PATH")
SERVICES = ("multimix-agent.service", "multimix-connector.service", "multimix-intake.service")


@pytest.fixture
def written(tmp_path):
    return _written(tmp_path)


def _written(tmp_path, *options):
    site = new_site(tmp_path / "site", "hospital-a", image_size=64)
    app = typer.Typer()
    app.command()(units)
    done = CliRunner().invoke(app, ["--site", str(site.path), "--out", str(tmp_path / "units"), *options])
    assert done.exit_code == 0, done.output
    return tmp_path / "units"


def _setting(text, name):
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{name}=")]


@SYSTEMD
@pytest.mark.parametrize("service", SERVICES)
def test_systemd_accepts_the_unit_as_it_is(written, service):
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", written / service], capture_output=True, text=True
    )
    about_us = [line for line in checked.stderr.splitlines() if service in line]
    assert [line for line in about_us if "not executable" not in line and "not found" not in line.lower()] == []


@SYSTEMD
@pytest.mark.parametrize("service", SERVICES)
def test_systemd_calls_the_unit_well_protected(written, service):
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", written / service]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout[-600:]  # exposure of at most 2.5 of 10


def test_the_agent_has_no_network_and_the_connector_sees_no_image(written, tmp_path):
    agent, connector = (written / name for name in SERVICES[:2])
    assert _setting(agent.read_text(), "PrivateNetwork") == ["yes"]
    assert _setting(agent.read_text(), "RestrictAddressFamilies") == ["AF_UNIX"]
    hidden = _setting(connector.read_text(), "InaccessiblePaths")[0]
    assert hidden == f"-{tmp_path / 'site'} -{tmp_path / 'site-agent'}"


def test_agent_and_connector_are_started_again_whatever_ends_them(written):
    for service in SERVICES[:2]:
        assert _setting((written / service).read_text(), "Restart") == ["always"]


def test_each_service_has_a_user_of_its_own_that_is_not_root(written):
    users = [_setting((written / service).read_text(), "User")[0] for service in SERVICES]
    assert sorted(users) == ["multimix-agent", "multimix-connector", "multimix-intake"]


def test_intake_reaches_the_pacs_and_nothing_else(tmp_path):
    text = (_written(tmp_path, "--pacs", "192.0.2.7") / "multimix-intake.service").read_text()
    assert _setting(text, "IPAddressDeny") == ["any"]
    assert _setting(text, "IPAddressAllow") == ["192.0.2.7"]


def test_intake_without_a_pacs_has_no_network(written):
    assert _setting((written / "multimix-intake.service").read_text(), "PrivateNetwork") == ["yes"]


def test_a_name_instead_of_an_address_is_refused(tmp_path):
    site = new_site(tmp_path / "site", "hospital-a", image_size=64)
    app = typer.Typer()
    app.command()(units)
    done = CliRunner().invoke(app, ["--site", str(site.path), "--pacs", "pacs.example"])
    assert done.exit_code == 2


@pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="no systemd-sysusers on PATH")
def test_users_and_permissions_come_out_as_the_agent_needs_them(written, tmp_path):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    site = root / tmp_path.relative_to("/") / "site"
    (site / "store").mkdir(parents=True)
    (site / "intake").mkdir()
    (site / "site.toml").write_text("")
    (site / "site.secret").write_text("")
    for tool, name, options in (
        ("systemd-sysusers", "multimix-site.sysusers.conf", ()),
        ("systemd-tmpfiles", "multimix-site.tmpfiles.conf", ("--create",)),
    ):
        done = subprocess.run([tool, f"--root={root}", *options, written / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    users = {line.split(":")[0]: int(line.split(":")[2]) for line in (root / "etc/passwd").read_text().splitlines()}
    groups = {line.split(":")[0]: line.split(":") for line in (root / "etc/group").read_text().splitlines()}

    def owned(path):
        found = path.stat()
        return found.st_uid, found.st_gid, oct(found.st_mode & 0o777)

    intake, agent = users["multimix-intake"], users["multimix-agent"]
    agents = int(groups["multimix-agent"][2])
    assert owned(site) == (intake, agents, "0o710")
    assert owned(site / "site.toml") == (intake, agents, "0o640")
    assert owned(site / "store") == (intake, agents, "0o750")
    assert owned(site / "site.secret") == (intake, int(groups["multimix-intake"][2]), "0o600")
    assert owned(site.with_name("site-agent")) == (agent, agents, "0o700")
    assert groups["multimix-connector"][3] == "multimix-agent"


def test_the_connectors_container_gets_no_torch(written):
    assert not [each for each in connector_packages() if "torch" in each or "opacus" in each]
    installs = [
        line for line in (written / "Containerfile.connector").read_text().splitlines() if "pip install" in line
    ]
    assert installs
    assert "torch" not in "".join(installs)


def test_the_agents_container_is_described_without_a_network(written):
    assert "--network none" in (written / "Containerfile.agent").read_text()
