"""`multimix-audit verify` and `recompute`: what an officer gives them, what they answer, and in which words they fail."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.audit.cli import app
from multimix.contract.heads import HeadLines
from multimix.contract.signing import public_text
from multimix.privacy.ledger import FILE
from tests.audit.ledger_attacks import COORDINATOR, LEDGER, OTHER, heads_of, lines_of, signed_line, written
from tests.audit.sample_evidence import STEPS, everything, price_of, reservation
from tests.privacy import sample_ledger as sample

SENTINEL = "SENTINELMARIE"
KEY, COORDINATOR_KEY, OTHER_KEY = public_text(LEDGER), public_text(COORDINATOR), public_text(OTHER)
FOUND, UNREADABLE = 3, 2


def call(*words):
    """Run a command in this process; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [*map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def call_json(*words, code=0):
    """Return the one document that the command prints; any other word there is no JSON."""
    exit_code, out, err = call(*words, "--json")
    assert exit_code == code, err
    return json.loads(out)


def assert_refused(reason, *words, code=UNREADABLE):
    """It says the reason in plain words, names neither path nor content, and prints no half answer."""
    for every in (words, (*words, "--json")):
        exit_code, out, err = call(*every)
        assert (exit_code, out) == (code, "")
        assert f"cannot go on ({reason})\n" in err
        assert len(err.splitlines()[-1].split()) > 4  # a sentence
        assert not any(told in out + err for told in (SENTINEL, "Traceback", "tmp"))


def write_heads(file: Path, records) -> Path:
    """Write records as the server does."""
    lines = HeadLines()
    with file.open("wb") as opened:
        for record in records:
            text = lines.next_line(record).model_dump_json().encode()
            opened.write(text + b"\n")
            lines.take_in(text)
    return file


@pytest.fixture(scope="module")
def raw():
    """An honest ledger: two private rounds, and every other entry that costs nothing."""
    return written(everything())


@pytest.fixture
def ledger(raw, tmp_path):
    folder = tmp_path / f"ledger-{SENTINEL}"
    folder.mkdir()
    (folder / FILE).write_bytes(raw)
    return folder


@pytest.fixture
def heads(raw, tmp_path):
    return write_heads(tmp_path / f"heads-{SENTINEL}.jsonl", heads_of(raw, (3, len(lines_of(raw)))))


def cut(ledger):
    (ledger / FILE).write_bytes(b"".join(lines_of((ledger / FILE).read_bytes())[:-1]))


def reasons(found, severity="violation"):
    return {each["reason"] for each in found["findings"] if each["severity"] == severity}


# ---- verify


def test_an_honest_ledger_shows_no_violation(ledger, raw):
    code, out, _ = call("verify", ledger, "--key", KEY)
    assert (code, "NO VIOLATION" in out, "VIOLATIONS" in out) == (0, True, False)
    found = call_json("verify", ledger, "--key", KEY)
    assert (found["site"], found["population"], found["entries"]) == ("north", "adults", len(lines_of(raw)))
    assert reasons(found) == set()


def test_without_heads_the_answer_says_that_truncation_was_not_checkable(ledger):
    cut(ledger)
    code, out, _ = call("verify", ledger, "--key", KEY)
    assert (code, "truncation: not checkable" in out) == (0, True)


@pytest.mark.parametrize(
    ("given", "truncation"),
    [((), "checked, heads not authenticated"), (("--coordinator", COORDINATOR_KEY), "checked")],
    ids=["anybody's", "the coordinator's"],
)
def test_heads_show_a_cut_and_the_coordinator_s_key_whose_heads_they_are(ledger, heads, raw, given, truncation):
    words = ("verify", ledger, "--key", KEY, "--heads", heads, *given)
    assert call_json(*words)["truncation"] == truncation
    cut(ledger)
    found = call_json(*words, code=FOUND)
    assert (found["truncation"], reasons(found)) == (truncation, {"ledger_truncated"})
    (fault,) = (each for each in found["findings"] if each["severity"] == "violation")
    assert fault["entry"] == len(lines_of(raw)) - 1
    code, out, _ = call(*words)
    assert (code, "VIOLATIONS" in out, "ledger_truncated" in out) == (FOUND, True, True)


def test_heads_that_another_signed_are_a_violation(ledger, heads):
    words = ("verify", ledger, "--key", KEY, "--heads", heads, "--coordinator", OTHER_KEY)
    assert reasons(call_json(*words, code=FOUND)) == {"countersignature_invalid"}


def test_the_officer_s_key_tells_whose_decisions_a_ledger_rests_on(ledger):
    (ledger / FILE).write_bytes(written([sample.non_private()]))
    unknown = call_json("verify", ledger, "--key", KEY)
    assert (reasons(unknown), "officer_not_checked" in reasons(unknown, "notice")) == (set(), True)
    known = call_json("verify", ledger, "--key", KEY, "--officer", OTHER_KEY, code=FOUND)
    assert reasons(known) == {"non_private_not_signed"}


def test_another_site_s_key_is_a_violation(ledger):
    found = call_json("verify", ledger, "--key", OTHER_KEY, code=FOUND)
    assert reasons(found) == {"genesis_other_key", "signature_wrong"}


def test_a_changed_entry_is_named(ledger, raw):
    lines = lines_of(raw)
    lines[3] = lines[3].replace(b'\\"steps\\":16', b'\\"steps\\":15')
    assert lines[3] != lines_of(raw)[3]
    (ledger / FILE).write_bytes(b"".join(lines))
    found = call_json("verify", ledger, "--key", KEY, code=FOUND)
    assert min(each["entry"] for each in found["findings"] if each["severity"] == "violation") == 3


def test_a_ledger_is_its_folder_or_a_copy_of_the_file(ledger):
    for command in (("verify", "--key", KEY), ("recompute",)):
        assert call_json(*command, ledger) == call_json(*command, ledger / FILE)


@pytest.mark.parametrize("text", ["{}", " {}\n", 'officer_key = "{}"\n', "{}\nmade on Monday\n"])
def test_a_key_is_its_text_or_a_file_that_holds_it(ledger, heads, tmp_path, text):
    def given(key, name):
        (tmp_path / name).write_text(text.format(key))
        return tmp_path / name

    files = ("--key", given(KEY, "site.pub"), "--coordinator", given(COORDINATOR_KEY, "coordinator.pub"))
    texts = ("--key", KEY, "--coordinator", COORDINATOR_KEY)
    words = ("verify", ledger, "--heads", heads, "--officer")
    by_file = call_json(*words, given(OTHER_KEY, "officer.pub"), *files)
    assert by_file == call_json(*words, OTHER_KEY, *texts)
    assert by_file["truncation"] == "checked"


@pytest.mark.parametrize("spelled", [KEY, KEY[:-2] + chr(ord(KEY[-2]) + 1) + "="])
def test_a_key_spelled_in_another_way_is_the_same_key(ledger, spelled):
    assert call_json("verify", ledger, "--key", spelled)["public_key"] == KEY


# ---- recompute


def test_right_claims_agree_and_every_entry_has_its_row(ledger):
    code, out, _ = call("recompute", ledger)
    assert (code, "\nAGREES" in out) == (0, True)
    found = call_json("recompute", ledger)
    assert [row["entry"]["sequence"] for row in found["rows"]] == [1, 3]
    assert {row["verdict"] for row in found["rows"]} == {"agrees"}
    assert found["lifetime"] == found["runs"]["first"] == pytest.approx(price_of(2 * STEPS))


def test_a_claim_below_what_the_events_cost_does_not_agree(ledger):
    (ledger / FILE).write_bytes(written([reservation(), sample.commit(1), reservation(round_number=2)]))
    code, out, _ = call("recompute", ledger)
    assert (code, "DOES NOT AGREE" in out, "understated" in out) == (FOUND, True, True)
    found = call_json("recompute", ledger, code=FOUND)
    assert [row["verdict"] for row in found["rows"]] == ["agrees", "understated"]


def test_the_totals_are_at_the_delta_that_was_asked_for(ledger):
    claimed, smaller = call_json("recompute", ledger), call_json("recompute", ledger, "--delta", 1e-5)
    assert (claimed["delta"], smaller["delta"]) == (1e-3, 1e-5)
    assert smaller["lifetime"] > claimed["lifetime"]


def test_training_without_privacy_is_infinite_in_words_and_nothing_else_in_json(ledger):
    (ledger / FILE).write_bytes(written([sample.non_private()]))
    code, out, _ = call("recompute", ledger)
    assert (code, "lifetime: epsilon inf" in out) == (0, True)
    assert call_json("recompute", ledger)["lifetime"] is None


def test_the_newest_entries_are_shown_unless_all_are_asked_for(ledger):
    dear = {"epsilon_run": 3.9, "epsilon_lifetime": 3.9, "epsilon_private": 3.9}
    (ledger / FILE).write_bytes(written([sample.reservation("first", n, steps=1, **dear) for n in range(1, 43)]))

    def shown(*more):
        code, out, _ = call("recompute", ledger, *more)
        assert code == 0  # to claim too much is no lie
        return [int(words[0]) for words in map(str.split, out.splitlines()) if words[1:2] == ["first"]]

    assert shown() == list(range(3, 43))
    assert shown("--all") == list(range(1, 43))


# ---- what cannot be read


def test_a_ledger_that_is_not_there_is_told(tmp_path):
    (tmp_path / SENTINEL).mkdir()
    for place in (tmp_path / SENTINEL, tmp_path / SENTINEL / FILE, tmp_path / f"{SENTINEL}.jsonl"):
        assert_refused("ledger_unreadable", "verify", place, "--key", KEY)
        assert_refused("ledger_unreadable", "recompute", place)


@pytest.mark.parametrize("role", ["--key", "--coordinator", "--officer"])
@pytest.mark.parametrize("given", [SENTINEL, "", KEY[:-4], "a" * 5000, f"{SENTINEL}\0", "x.pub", "."])
def test_what_is_no_public_key_is_told(ledger, tmp_path, monkeypatch, role, given):
    monkeypatch.chdir(tmp_path)
    Path("x.pub").write_bytes(f"\xff{SENTINEL}".encode("latin-1"))
    keys = {"--key": KEY} | {role: given}
    assert_refused("key_unusable", "verify", ledger, *(word for pair in keys.items() for word in pair))


def test_heads_that_are_not_there_or_were_altered_are_told(ledger, heads, tmp_path):
    words = ("verify", ledger, "--key", KEY, "--heads")
    assert_refused("heads_unreadable", *words, tmp_path / SENTINEL)
    assert_refused("heads_unreadable", *words, ledger)
    heads.write_bytes(heads.read_bytes().replace(b"first", SENTINEL.encode()))
    assert_refused("heads_damaged", *words, heads)


@pytest.mark.parametrize(
    "spoilt",
    [SENTINEL.encode(), f'{{"document": "{SENTINEL}"}}'.encode(), signed_line(f'{{"kind":"{SENTINEL}"}}')[:-1], b""],
    ids=["text", "no entry", "signed nonsense", "nothing"],
)
def test_words_in_a_damaged_ledger_are_not_repeated(ledger, raw, spoilt):
    lines = lines_of(raw)
    (ledger / FILE).write_bytes(b"".join([*lines[:2], spoilt + b"\n", *lines[3:]]))
    assert_refused("line_unreadable", "recompute", ledger)
    for more in ((), ("--json",)):
        code, out, err = call("verify", ledger, "--key", KEY, *more)
        assert (code, SENTINEL in out + err) == (FOUND, False)


def test_words_that_people_wrote_in_a_ledger_are_not_repeated(ledger):
    (ledger / FILE).write_bytes(written([*everything(), sample.tuning(SENTINEL), sample.officer(SENTINEL)]))
    for command in (("verify", "--key", KEY), ("recompute", "--all")):
        for more in ((), ("--json",)):
            _, out, err = call(*command, ledger, *more)
            assert (bool(out), SENTINEL in out + err) == (True, False)


def test_a_delta_that_is_not_priced_is_told(ledger):
    assert_refused("delta_out_of_range", "recompute", ledger, "--delta", 0.9)


@pytest.mark.parametrize(
    "made", [os.mkfifo, lambda file: file.write_bytes(b"x" * 70_000 + b"\n")], ids=["pipe", "line"]
)
def test_what_no_site_writes_is_refused_before_it_is_read(made, tmp_path):
    made(tmp_path / FILE)
    assert_refused("ledger_unreadable", "recompute", tmp_path)
