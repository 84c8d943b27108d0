"""The unit that `multimix-server units` writes is accepted by systemd and well protected."""

import shutil
import subprocess

import pytest
import typer
from typer.testing import CliRunner

from server.units_cli import units

SYSTEMD = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on PATH")


@pytest.fixture
def unit(tmp_path):
    app = typer.Typer()
    app.command()(units)
    done = CliRunner().invoke(app, ["--federation", str(tmp_path / "federation"), "--out", str(tmp_path / "units")])
    assert done.exit_code == 0, done.output
    return tmp_path / "units" / "multimix-server.service"


@SYSTEMD
def test_systemd_calls_the_servers_unit_well_protected(unit):
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout[-600:]


def test_the_container_is_reached_from_its_own_host_only(unit):
    text = (unit.parent / "Containerfile.server").read_text()
    assert "--publish 127.0.0.1:8000:8000 " in text
    assert text.count("--publish") == 1
    assert "--bind-host 0.0.0.0" in text, "the container's loopback is reached by nobody"
    assert "--expose-superlink" in text
    assert "--app /opt/multimix" in text


def test_the_server_speaks_on_the_loopback_only(unit):
    lines = unit.read_text().splitlines()
    assert {"IPAddressDeny=any", "IPAddressAllow=localhost", "ProtectProc=invisible", "PrivateTmp=yes"} <= set(lines)


def test_the_server_may_write_the_federations_folder_and_nothing_else(unit, tmp_path):
    lines = unit.read_text().splitlines()
    assert [line for line in lines if line.startswith("ReadWritePaths=")] == [
        f"ReadWritePaths={tmp_path / 'federation'}"
    ]
    assert "Restart=always" in lines
    assert "User=multimix-server" in lines
