import json
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from multimix.contract.privacy import Countersignature, Extension, LedgerHead, chained
from multimix.contract.signing import simulation_key
from server.cli import app
from server.heads import Heads

KEY = simulation_key(0)
DIGESTS = tuple(character * 64 for character in "abcde")


def _extension(since, length):
    heads = [LedgerHead(length=n, sha256=chained("0" * 64, DIGESTS[:n])) for n in (since, length)]
    return Extension(public_key="a2V5", since=heads[0], digests=DIGESTS[since:length], head=heads[1])


@pytest.fixture
def file(tmp_path):
    heads = Heads(tmp_path / "heads.jsonl", now=lambda: datetime(2026, 11, 3, 12, 30, tzinfo=UTC))
    heads.countersign("north", _extension(0, 2), KEY, job_id="job-a", round_number=1)
    heads.countersign("north", _extension(2, 5), KEY, job_id="job-a", round_number=2)
    return tmp_path / "heads.jsonl"


def _run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_heads_shows_length_head_time_job_round_and_signature(file):
    done = _run("heads", "north", "--file", file)
    assert done.exit_code == 0
    last = Heads(file).last("north")
    for shown in ("2026-11-03 12:30:00", "job-a round 2", "5 entries", last.head.sha256, last.signature, "a2V5"):
        assert shown in done.stdout


def test_heads_as_json_can_be_verified_with_the_key_of_the_server(file):
    document = json.loads(_run("heads", "north", "--file", file, "--json").stdout)
    assert [record["round"] for record in document["countersigned"]] == [1, 2]
    for record in document["countersigned"]:
        assert Countersignature.model_validate(record["countersignature"]).by(KEY.public_key())


def test_the_export_holds_what_json_prints(file, tmp_path):
    done = _run("heads", "north", "--file", file, "--json", "--export", tmp_path / "north.json")
    assert json.loads((tmp_path / "north.json").read_text()) == json.loads(done.stdout)


def test_the_file_is_looked_for_in_the_current_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert _run("heads", "north").exit_code == 0


@pytest.mark.parametrize("spoilt", [b"{}\n", b"[red]\n"])
def test_a_damaged_file_is_said_so(file, spoilt):
    file.write_bytes(file.read_bytes() + spoilt)
    done = _run("heads", "north", "--file", file)
    assert (done.exit_code, "heads_damaged" in done.stderr, done.stdout) == (2, True, "")


def test_a_site_without_heads_is_said_so(file):
    done = _run("heads", "south", "--file", file)
    assert (done.exit_code, "heads_unknown_site" in done.stderr) == (2, True)


def test_a_missing_file_is_said_so_and_not_made(tmp_path):
    done = _run("heads", "north", "--file", tmp_path / "none.jsonl")
    assert (done.exit_code, "heads_missing" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_cannot_be_written_is_said_so(file, tmp_path):
    done = _run("heads", "north", "--file", file, "--export", file / "below-a-file.json")
    assert (done.exit_code, "unwritable-file" in done.stderr) == (2, True)


def test_noise_prints_the_explanation_and_a_line_for_each_number_of_sites():
    done = _run("noise", "--sites", 5, "--epsilon", 8, "--rounds", 50)
    assert done.exit_code == 0
    assert "each of 5 sites" in done.stdout
    assert "--accept" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines if line and line[-1] == "yes"] == ["3", "5", "10", "100", "1,000"]


def test_noise_as_json_has_figures():
    done = _run(
        "noise", "--sites", 1000, "--epsilon", 8, "--rounds", 10, "--parameters", 100, "--delta", 1e-5, "--json"
    )
    rows = {row["sites"]: row for row in json.loads(done.stdout)["sites"]}
    assert set(rows) == {3, 10, 100, 1000}
    assert {row["delta"] for row in rows.values()} == {1e-5}
    row = rows[1000]
    assert row["noise_to_signal"] == pytest.approx(row["noise_multiplier"] * 10 / 1000)  # z sqrt(100) / n
    assert (row["hollow"], rows[3]["hollow"]) == (False, True)


@pytest.mark.parametrize("wrong", [("--epsilon", -1), ("--epsilon", "nan"), ("--epsilon", 1, "--delta", 2)])
def test_noise_that_nothing_can_meet_is_said_so(wrong):
    done = _run("noise", "--sites", 5, "--rounds", 10, *wrong)
    assert (done.exit_code, "site_level" in done.stderr) == (2, True)
