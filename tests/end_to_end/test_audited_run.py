"""From a private run to a filed bundle: the six commands, each a process of its own, in a privacy officer's order."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.audit.cli import app
from client.officer_key import new_key
from multimix.contract.run_config import RunConfig
from multimix.contract.signing import public_text, simulation_key
from multimix.privacy.ledger import read_ledger
from sim.run import simulate
from tests.browser import load_in_browser

COMMAND = str(Path(sys.executable).parent / "multimix-audit")
SENTINEL = "SENTINELMARIE"
SITE = "phantom-a"
ROUNDS = 2
pytestmark = pytest.mark.slow

EVERY_COMMAND = ("verify", "recompute", "empirical", "replay", "report", "check")


@dataclass(frozen=True)
class Called:
    """A command that ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Audit:
    """What an officer has: a run folder, a site's ledger, keys got by other means, and a folder to work in."""

    folder: Path
    config: RunConfig
    auditor: str

    @property
    def ledger(self) -> Path:
        (job,) = (Path(self.config.cache) / "ledgers").iterdir()
        return job / SITE

    @property
    def words(self) -> dict[str, tuple[object, ...]]:
        """The words of each command; results go where `report` looks for them."""
        run, books = Path(self.config.out), read_ledger(self.ledger)
        keys = ("--key", books.public_key, "--coordinator", public_text(simulation_key(self.config.seed)))
        heads = ("--heads", run / "heads.jsonl")
        site = ("--run", run, "--name", SITE, "--cache", self.config.cache, "--device", "cpu")
        attack = ("--model", run / "model.safetensors", "--shadows", 4)
        return {
            "verify": (self.ledger, *keys, *heads),
            "recompute": (self.ledger,),
            "empirical": (*site, *attack, "--canaries", 64, "--patients", 2),
            "replay": (*site, "--tolerance", 0),
            "report": (self.ledger, *keys, *heads, "--sign", "auditor.pem", "--out", "bundle", "--membership"),
            "check": ("bundle", "--signer", self.auditor),
        }

    def call(self, command: str) -> Called:
        words = [COMMAND, command, *map(str, self.words[command])]
        quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            words, cwd=self.folder, env=quiet, capture_output=True, text=True, timeout=240, check=False
        )
        return Called(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    """A finished private run on phantoms, and the folder of who audits it."""
    folder = tmp_path_factory.mktemp(SENTINEL)
    config = RunConfig(
        out=str(folder / "run"),
        cache=str(folder / "cache"),
        dp="patient",
        dp_noise_multiplier=1.0,
        dp_sampling_rate=0.5,
        image_size=32,
        width=2,
        rounds=ROUNDS,
        local_steps=1,
        phantom_hospitals=2,
        phantom_patients=12,
        pictures=0,
    )
    simulate(config)
    (folder / "officer").mkdir()
    key = new_key(folder / "officer" / "auditor.pem")
    return Audit(folder / "officer", config, public_text(key))


@pytest.fixture(scope="module")
def called(audit):
    """All six, once, in their order: the first four begin by twos, as they do not wait for each other."""
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(EVERY_COMMAND[:4], pool.map(audit.call, EVERY_COMMAND[:4]), strict=True))
    return found | {command: audit.call(command) for command in EVERY_COMMAND[4:]}


@pytest.fixture(scope="module")
def evidence(audit, called):
    return json.loads((audit.folder / "bundle" / "evidence.json").read_text())


def test_every_command_finds_an_honest_run_in_order_and_names_no_folder(called):
    assert {command: each.code for command, each in called.items()} == dict.fromkeys(EVERY_COMMAND, 0)
    last_words = ("NO VIOLATION", "AGREES", "NOTHING FLAGGED", "reproduced", "CONSISTENT", "HOLDS")
    assert all(words in called[command].out for command, words in zip(EVERY_COMMAND, last_words, strict=True))
    assert SENTINEL not in "".join(each.out + each.err for each in called.values())


def test_the_evidence_holds_what_was_looked_at(evidence, called, audit):
    assert evidence["verification"]["truncation"] == "checked"
    assert [each["verdict"] for each in evidence["replays"]] == ["reproduced"] * ROUNDS
    assert [each["difference"] for each in evidence["replays"]] == [0.0] * ROUNDS
    (measured,) = evidence["empirical"]
    assert (measured["steps"], measured["noise_multiplier"]) == (ROUNDS, 1.0)
    assert [each["name"] for each in evidence["membership"][0]["attacks"]] == ["loss threshold", "likelihood ratio"]
    (spent,) = evidence["recomputation"]["runs"].values()
    assert measured["claimed_epsilon"] == pytest.approx(spent)
    assert (evidence["judgement"], called["report"].code) == (
        {"word": "consistent", "contradictions": [], "gaps": []},
        0,
    )
    assert {path.name for path in (audit.folder / "bundle").iterdir()} == {
        *("evidence.html", "evidence.json", "heads.json", "ledger.jsonl", "manifest.json", "statement.html")
    }


def test_nothing_in_the_bundle_tells_where_it_was_made(audit, called):
    files = list((audit.folder / "bundle").iterdir())
    assert (called["report"].code, bool(files)) == (0, True)
    assert not any(SENTINEL.encode() in file.read_bytes() for file in files)


def test_the_results_of_one_site_are_not_filed_for_another(audit, called):
    assert called["empirical"].code == 0
    other, bundle = audit.ledger.with_name("phantom-b"), audit.folder / "other"
    key, results = read_ledger(other).public_key, audit.folder / "audit"
    words = ("report", other, "--key", key, "--sign", audit.folder / "auditor.pem", "--results", results)
    done = CliRunner().invoke(app, [*map(str, words), "--out", str(bundle)])
    assert (done.exit_code, "(results_of_another_ledger)" in done.stderr) == (2, True)
    assert not bundle.exists()


@pytest.mark.browser
def test_a_browser_shows_the_verdict_and_is_asked_to_fetch_nothing(audit, called, tmp_path):
    assert called["report"].code == 0
    page = audit.folder / "bundle" / "evidence.html"
    dom, console = load_in_browser(page, tmp_path / "profile")
    assert (">Consistent" in dom, "<svg" in dom, console) == (True, True, [])  # its policy tells of any attempt
    asking = tmp_path / "asking.html"
    asking.write_text(page.read_text().replace("</body>", '<img src="https://example.invalid/x.png"></body>'))
    assert load_in_browser(asking, tmp_path / "profile")[1] != []
