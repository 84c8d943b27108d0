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


def test_the_server_may_write_the_federations_folder_and_nothing_else(unit, tmp_path):
    lines = unit.read_text().splitlines()
    assert [line for line in lines if line.startswith("ReadWritePaths=")] == [
        f"ReadWritePaths={tmp_path / 'federation'}"
    ]
    assert "Restart=always" in lines
    assert "User=multimix-server" in lines
