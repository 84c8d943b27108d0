"""docs/audit.md is true: its commands run as they stand, in order, in an empty folder, and show what it says.

Blocks marked `bash` are run; those marked `sh` need a hospital or a network: `tests/audit/test_audit_reasons.py` reads
their options.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOC = Path(__file__).parents[2] / "docs" / "audit.md"
COMMANDS = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def run(commands: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment.pop("MULTIMIX_SITE", None)
    script = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_walk_through_shows_what_the_page_says(tmp_path):
    printed = "".join(run(block, tmp_path) for block in COMMANDS.findall(DOC.read_text()))
    said = (
        "ledger key  ",
        "truncation: checked\n\nNO VIOLATION",
        "missing, as all up to 5: the server was shown 6\n\nVIOLATIONS\nexit code 3",
        "NOTHING FLAGGED",
        "permits AUC",
        "\nCONSISTENT",
        "\nHOLDS",
    )
    assert [words for words in said if words not in printed] == []
    assert printed.count("\nAGREES") == 2, "once by the command, once by the file alone"
    assert printed.count("reproduced  0.0e+00") == 2
    assert json.loads((tmp_path / "evidence" / "evidence.json").read_text())["judgement"]["gaps"] == []


def test_the_page_has_blocks_to_run():
    assert len(COMMANDS.findall(DOC.read_text())) == 9
