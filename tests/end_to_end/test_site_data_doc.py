"""docs/site-data.md is true: its commands run as they stand, its tables are those of the code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from client.intake.reasons import REASONS
from client.settings import SiteSettings
from tests.orthanc import running_orthanc

DOC = Path(__file__).parents[2] / "docs" / "site-data.md"
COMMANDS = re.compile(r"(<!-- with a PACS -->\n)?```bash\n(.*?)```", re.DOTALL)


def run(commands: str, folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment.pop("MULTIMIX_SITE", None)
    script = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"


def shown(folder: Path) -> dict[str, int]:
    command = [str(Path(sys.executable).parent / "multimix-site"), "show", "--json", "--site", str(folder / "site")]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.orthanc
def test_every_command_of_the_page_runs_in_an_empty_folder(tmp_path):
    blocks = COMMANDS.findall(DOC.read_text())
    assert len(blocks) >= 4
    with_pacs = [block for marker, block in blocks if marker]
    assert with_pacs
    for marker, block in blocks:
        if not marker:
            run(block, tmp_path)
            continue
        scratch = tmp_path / "pacs"
        scratch.mkdir()
        with running_orthanc(scratch) as orthanc:
            for file in sorted((tmp_path / "rehearsal").rglob("*.dcm"))[:3]:
                orthanc.upload(file.read_bytes())
            password = scratch / "password"
            password.touch(mode=0o600)
            password.write_text(orthanc.password)
            with (tmp_path / "site" / "site.toml").open("a") as file:
                file.write(
                    f'[pacs]\nurl = "{orthanc.dicomweb}"\nusername = "{orthanc.username}"\n'
                    f'password_file = "{password}"\n'
                )
            run(block, tmp_path)
    assert {name: shown(tmp_path)[name] for name in ("images", "masks", "patients")} == {
        "images": 40,
        "masks": 40,
        "patients": 40,
    }


def test_the_table_of_reasons_is_that_of_the_code():
    table = DOC.read_text().split("<!-- reasons -->")[1].split("<!-- /reasons -->")[0]
    rows = [tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in table.strip().splitlines()[2:]]
    told = {row[0].strip("`"): row[1] for row in rows}
    assert told == {name: reason.meaning for name, reason in REASONS.items()}


def test_the_defaults_of_the_settings_are_those_of_the_code():
    settings = SiteSettings(name="a")
    table = DOC.read_text().split("## Settings")[1]
    for line in table.strip().splitlines()[2:]:
        key, default, _ = (cell.strip() for cell in line.strip("|").split("|"))
        value = settings
        for part in key.strip("`").split("."):
            value = getattr(value, part)
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        assert key == "`name`" or default.strip("`") == shown, key
