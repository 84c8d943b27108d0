"""The units that `multimix-site units` writes: accepted by systemd itself, hardened, and true about who may see what."""

import json
import re
import shutil
import subprocess

import pytest
import typer
from typer.testing import CliRunner

from client.settings import FILE, new_site, open_site
from client.units_cli import connector_packages, units

SYSTEMD = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on PATH")
SERVICES = ("multimix-agent.service", "multimix-connector.service", "multimix-intake.service")
RECEIVE = "multimix-receive.service"


@pytest.fixture
def written(tmp_path):
    return _written(tmp_path)


def _run(tmp_path, *options, settings=""):
    """Write units for a site below /srv as it were: this program may lie where units are refused."""
    if not (tmp_path / "site").exists():
        new_site(tmp_path / "site", "hospital-a", image_size=64)
    text = (tmp_path / "site" / FILE).read_text()
    (tmp_path / "site" / FILE).write_text(text.replace("[label_map]", f"{settings}\n[label_map]", 1))
    app = typer.Typer()
    app.command()(units)
    words = ["--site", tmp_path / "site", "--out", tmp_path / "units", "--bin", "/opt/multimix/bin", *options]
    return CliRunner().invoke(app, list(map(str, words)))


def _written(tmp_path, *options, settings=""):
    done = _run(tmp_path, *options, settings=settings)
    assert done.exit_code == 0, done.output
    return tmp_path / "units"


def _setting(text, name):
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{name}=")]


RECEIVER = '[receiver]\nae_title = "M"\nport = 11112\nallowed_calling_ae = ["PACS"]\n'


@SYSTEMD
@pytest.mark.parametrize("service", [*SERVICES, RECEIVE])
def test_systemd_accepts_the_unit_as_it_is(tmp_path, service):
    written = _written(tmp_path, "--server", "192.0.2.1", "--pacs", "192.0.2.7", settings=RECEIVER)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", written / service], capture_output=True, text=True
    )
    about_us = [line for line in checked.stderr.splitlines() if service in line]
    assert [line for line in about_us if "not executable" not in line and "not found" not in line.lower()] == []


@SYSTEMD
@pytest.mark.parametrize("service", [*SERVICES, RECEIVE])
def test_systemd_calls_the_unit_well_protected(tmp_path, service):
    written = _written(tmp_path, settings=RECEIVER)
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
    assert _setting(text, "IPAddressAllow") == ["192.0.2.7/32"]


def test_intake_without_a_pacs_has_no_network(written):
    assert _setting((written / "multimix-intake.service").read_text(), "PrivateNetwork") == ["yes"]


def test_a_name_instead_of_an_address_is_refused(tmp_path):
    for option in ("--pacs", "--server", "--proxy", "--dns"):
        done = _run(tmp_path, "--server", "192.0.2.1", option, "pacs.example")
        assert (done.exit_code, "address_needed" in done.output) == (2, True)


def test_the_connector_reaches_the_server_and_the_loopback_and_nothing_else(tmp_path):
    text = (_written(tmp_path, "--server", "192.0.2.1,2001:db8::1") / SERVICES[1]).read_text()
    assert _setting(text, "IPAddressDeny") == ["any"]
    assert _setting(text, "IPAddressAllow") == ["localhost 192.0.2.1/32 2001:db8::1/128"]


def test_behind_a_proxy_the_connector_reaches_the_proxy_and_who_resolves_names(tmp_path):
    options = ("--server", "192.0.2.1", "--proxy", "10.0.0.1", "--dns", "10.0.0.2")
    text = (_written(tmp_path, *options) / SERVICES[1]).read_text()
    assert _setting(text, "IPAddressAllow") == ["localhost 10.0.0.1/32 10.0.0.2/32"]


def test_a_connector_that_nothing_restricts_is_said_to_be_one(tmp_path):
    done = _run(tmp_path)
    text = (tmp_path / "units" / SERVICES[1]).read_text()
    assert _setting(text, "IPAddressDeny") == []
    assert "NOT RESTRICTED" in done.output
    assert "FIREWALL MUST" in text
    assert "NOT RESTRICTED" not in _run(tmp_path, "--proxy", "10.0.0.1").output


def test_the_receiver_listens_on_its_port_and_hears_the_pacs_alone(tmp_path):
    text = (_written(tmp_path, "--pacs", "192.0.2.7", settings=RECEIVER) / RECEIVE).read_text()
    assert _setting(text, "SocketBindDeny") == ["any"]
    assert _setting(text, "SocketBindAllow") == ["tcp:11112"]
    assert (_setting(text, "IPAddressDeny"), _setting(text, "IPAddressAllow")) == (["any"], ["192.0.2.7/32"])
    assert _setting(text, "ExecStart")[0].endswith(f"multimix-site receive --site {tmp_path / 'site'}")


def test_without_a_receiver_there_is_no_unit_for_one_nor_one_left_over(tmp_path):
    units_folder = _written(tmp_path, settings=RECEIVER)
    assert (units_folder / RECEIVE).exists()
    text = (tmp_path / "site" / FILE).read_text()
    (tmp_path / "site" / FILE).write_text(text.replace(RECEIVER, ""))
    _written(tmp_path)
    assert not (units_folder / RECEIVE).exists()


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_filter_does_not_allow_fails_and_kills_nothing(written, service):
    assert _setting((written / service).read_text(), "SystemCallErrorNumber") == ["EPERM"]


@pytest.mark.parametrize("service", [SERVICES[0], SERVICES[2]])
def test_who_gives_files_to_a_group_is_let_do_so(written, service):
    assert _setting((written / service).read_text(), "SystemCallFilter")[-1] == "@chown"


def test_the_agent_sees_what_cuda_reads_of_the_driver(written):
    assert _setting((written / SERVICES[0]).read_text(), "ProcSubset") == ["all"]


def test_a_ledger_elsewhere_may_be_written_and_belongs_to_the_agent(tmp_path):
    kept = tmp_path / "kept"
    settings = f'[population]\ndeclared_patients = 9\nledger = "{kept}"\n'
    written = _written(tmp_path, settings=settings)
    assert str(kept) in _setting((written / SERVICES[0]).read_text(), "ReadWritePaths")[0].split()
    assert f"d {kept} 0700 multimix-agent multimix-agent -" in (written / "multimix-site.tmpfiles.conf").read_text()


def test_metrics_for_monitoring_lie_where_all_may_read_and_the_agent_may_write(tmp_path):
    metrics = tmp_path / "metrics"
    written = _written(tmp_path, settings=f'[agent]\nmetrics_folder = "{metrics}"\n')
    assert str(metrics) in _setting((written / SERVICES[0]).read_text(), "ReadWritePaths")[0].split()
    assert f"d {metrics} 0755 multimix-agent" in (written / "multimix-site.tmpfiles.conf").read_text()


def test_agent_and_connector_use_the_socket_that_site_toml_names(tmp_path):
    written = _written(tmp_path, settings=f'[agent]\nsocket = "{tmp_path}/ours/s"\n')
    for service in SERVICES[:2]:
        assert _setting((written / service).read_text(), "ExecStart")[0].endswith(f"--socket {tmp_path}/ours/s")
    assert (
        f"d {tmp_path}/ours 0750 multimix-agent multimix-connector -"
        in (written / "multimix-site.tmpfiles.conf").read_text()
    )
    assert _setting((written / SERVICES[0]).read_text(), "RuntimeDirectory") == []


@pytest.mark.parametrize("place", ["/home/anna/bin", "/root/bin"])
def test_a_program_that_the_services_cannot_see_is_refused(tmp_path, place):
    done = _run(tmp_path, "--bin", place)
    assert (done.exit_code, "folder_hidden" in done.output) == (2, True)


def test_what_site_toml_lacks_is_shown_and_with_apply_written(tmp_path):
    shown = _run(tmp_path).output
    for key in ("store_group", "connector_folder", "connector_group", "socket"):
        assert f"{key} = " in shown
    assert open_site(tmp_path / "site").settings.store_group == ""
    _written(tmp_path, "--apply")
    assert open_site(tmp_path / "site").settings.store_group == "multimix-agent"
    assert "does not say" not in _run(tmp_path).output


@pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="no systemd-sysusers on PATH")
def test_users_and_permissions_come_out_as_the_agent_needs_them(written, tmp_path):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    site = root / tmp_path.relative_to("/") / "site"
    (site / "store").mkdir(parents=True)
    (site / "intake").mkdir()
    (site / "site.toml").write_text("")
    (site / "site.secret").write_text("")
    (site.with_name("site-agent") / "ledger").mkdir(parents=True)
    for name in ("in-use.json", "ledger/ledger.key"):
        (site.with_name("site-agent") / name).write_text("")
        (site.with_name("site-agent") / name).chmod(0o600)
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
    assert owned(site.with_name("site-agent")) == (agent, agents, "0o710")
    assert owned(site.with_name("site-agent") / "in-use.json") == (agent, agents, "0o640")
    assert owned(site.with_name("site-agent") / "ledger" / "ledger.key") == (agent, agents, "0o600")
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


def test_in_the_containers_everything_has_the_place_that_site_toml_says(tmp_path):
    settings = f'[population]\ndeclared_patients = 9\nledger = "{tmp_path}/kept"\n'
    metrics = f'[agent]\nmetrics_folder = "{tmp_path}/metrics"\n'
    written = _written(tmp_path, "--apply", settings=settings + metrics)
    site = open_site(tmp_path / "site")
    mounts = {
        name: dict(_mounts(written / f"Containerfile.{name}")) | {"/etc/group": "/etc/group"}
        for name in ("agent", "connector")
    }
    needed = {"agent": (site.path, site.agent, site.ledger, site.metrics), "connector": (site.connector,)}
    for name, paths in needed.items():
        for path in (*paths, site.socket.parent):
            assert any(path.is_relative_to(where) for where in mounts[name]), path
        assert all(inside == outside for outside, inside in mounts[name].items())
        entry = json.loads((written / f"Containerfile.{name}").read_text().split("ENTRYPOINT ")[1])
        assert entry[-1] == str(site.socket)
    assert f"{site.path}:{site.path}:ro" in (written / "Containerfile.agent").read_text()


def _mounts(file):
    """Return what is mounted where."""
    return [tuple(each.split(":")[:2]) for each in re.findall(r"--volume (\S+)", file.read_text())]
