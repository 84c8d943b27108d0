"""The commands of an audit at a site: exit codes, results that are kept, the bundle, and no word of a patient."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from test_audit_inputs import FOUND, SENTINEL, assert_refused, call, call_json, write_heads
from typer.main import get_command
from typer.testing import CliRunner

from client.audit.cli import app
from client.audit.results import Results
from client.hospital import local_site
from client.intake.generation import write_generation
from client.officer_key import new_key, read_key
from client.settings import FILE as SETTINGS
from client.settings import new_site, open_site
from multimix.contract.signing import public_text, simulation_key
from multimix.errors import SiteError
from multimix.network import new_network
from multimix.privacy.ledger import FILE, create_ledger, open_ledger, read_ledger
from multimix.privacy.officer import decide
from multimix.privacy.reservations import ORDERS, REPLIES, SECRETS
from multimix.weights import export, save_model
from tests.audit.ledger_attacks import LEDGER, heads_of, lines_of, written
from tests.audit.planted_lies import LIES
from tests.audit.sample_evidence import empirical, membership, reservation
from tests.client.intake_sites import SIZE, add_all, found_image, journal_of
from tests.client.tiny_hospitals import KEY, PRIVATE_METHOD, PRIVATE_WEIGHTS, private_order
from tests.privacy import sample_ledger as sample

COMMAND = str(Path(sys.executable).parent / "multimix-audit")
COMMANDS = ("verify", "recompute", "empirical", "replay", "report", "check")
QUICK = ("--canaries", 64, "--patients", 2, "--device", "cpu")
ROUNDS = (1, 3)  # entries that reserved a round
INTERRUPTED = 130
OFFICER = simulation_key(7)
SITE_TOML = f"""
name = "clinic"
image_size = {SIZE}
[server]
address = "a:1"
coordinator_key = "{public_text(KEY)}"
[policy]
minimum_expected_patients = 1.0
[population]
declared_patients = 8
images_per_patient = 2
delta = 0.01
epsilon_per_run = 3.0
epsilon_lifetime = 4.0
officer_key = "{public_text(OFFICER)}"
"""


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A hospital's site that answered two rounds of a private run; never changed."""
    folder = tmp_path_factory.mktemp("answered") / f"site-{SENTINEL}"
    new_site(folder, "clinic", image_size=SIZE)
    (folder / SETTINGS).write_text(SITE_TOML)
    site = open_site(folder)
    with journal_of(site) as journal:
        add_all(journal, *(found_image(site, f"{n}", patient=f"{SENTINEL}{n}", grey=10 * n) for n in range(1, 9)))
        write_generation(site, journal)
    create_ledger(site.ledger, site="clinic", population="patients")
    agent = local_site(site, KEY.public_key(), device="cpu")
    for number, _ in enumerate(ROUNDS, 1):
        agent.train(private_order(round=number), PRIVATE_WEIGHTS)
    return folder


@pytest.fixture
def site(answered, tmp_path):
    """A copy to be audited, or spoilt."""
    return Path(shutil.copytree(answered, tmp_path / f"site-{SENTINEL}", symlinks=True))


@pytest.fixture
def out(tmp_path):
    return tmp_path / f"results-{SENTINEL}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def reply_of(site: Path, sequence: int) -> Path:
    """The file with the answer of a round."""
    reserved = read_ledger(open_site(site).ledger).entries[sequence].body
    (found,) = (site / "ledger" / REPLIES).glob(f"*{reserved.commitment[:16]}*")
    return found


# ---- every command


def test_the_commands_are_those_of_the_documentation():
    assert tuple(get_command(app).commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_its_exit_codes(command):
    result = CliRunner().invoke(app, [command, "--help"])
    words = " ".join(result.output.split())
    assert (result.exit_code, "Usage:" in words, "Exit codes: 0 " in words) == (0, True, True)
    assert all(f", {code} " in words for code in (3, 2))
    assert ("LEDGER" in words) == ("a copy of ledger.jsonl" in words)


# ---- empirical


def test_an_honest_site_is_audited_and_nothing_is_flagged(site, out):
    code, printed, told = call("empirical", "--site", site, "--out", out, *QUICK)
    assert (code, "NOTHING FLAGGED" in printed, "epsilon is at least this" in printed) == (0, True, True)
    assert ("canaries: 4 to do" in told, SENTINEL in printed + told) == (True, False)
    assert set(files_of(out)) == {"ledger.json", "empirical-job.json"}
    assert out.stat().st_mode & 0o777 == 0o700


def test_an_audit_repeats_by_its_seed_and_stdout_is_what_is_kept(site, out, tmp_path):
    found = call_json("empirical", "--site", site, "--out", out, "--seed", 3, *QUICK)
    assert json.loads((out / "empirical-job.json").read_text()) == found["empirical"]
    assert (found["empirical"]["seed"], found["membership"]) == (3, None)
    again = call_json("empirical", "--site", site, "--out", tmp_path / "again", "--seed", 3, *QUICK)
    for each in (found, again):
        each["empirical"].pop("seconds")
    assert found == again


def test_a_trainer_without_noise_is_flagged_with_exit_code_3(site, out):
    (no_noise,) = (lie for lie in LIES if lie.name == "no noise")
    with no_noise.told():
        code, printed, _ = call("empirical", "--site", site, "--out", out, *QUICK)
    assert (code, "FLAGGED: " in printed, "NOTHING FLAGGED" in printed) == (FOUND, True, False)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_or_infinite_is_kept_and_read_again(out, number):
    broken = empirical().neighbours.model_copy(update={"sensitivity": number, "flagged": True})
    results = Results(out, public_text(LEDGER))
    results.begin()
    results.keep("empirical-first", empirical(neighbours=broken, claimed_epsilon=float("inf")))
    json.loads((out / "empirical-first.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    (read,) = results.empirical({"first"})
    assert str(read.neighbours.sensitivity) == str(number)
    assert (read.claimed_epsilon, read.flags) == (float("inf"), ("neighbours",))


def test_before_anything_takes_time_it_is_told_that_a_model_cannot_be_attacked(site, out, tmp_path):
    (tmp_path / SENTINEL).write_bytes(SENTINEL.encode())
    wide = PRIVATE_METHOD.network.model_copy(update={"image_size": 2 * SIZE})
    save_model(tmp_path / f"wide-{SENTINEL}", export(new_network(wide, 0)), wide)
    save_model(tmp_path / f"fits-{SENTINEL}", PRIVATE_WEIGHTS, PRIVATE_METHOD.network)
    words = ("empirical", "--site", site, "--out", out, "--model")
    assert_refused("model_unreadable", *words, tmp_path / SENTINEL)
    assert_refused("model_unreadable", *words, tmp_path / f"{SENTINEL}-missing")
    assert_refused("image_size", *words, tmp_path / f"wide-{SENTINEL}")
    assert_refused("shadows_unusable", *words, tmp_path / f"fits-{SENTINEL}", "--shadows", 5)
    assert set(files_of(out)) == {"ledger.json"}


# ---- replay


def test_every_answered_round_is_reproduced(site, out):
    code, printed, told = call("replay", "--site", site, "--out", out, "--device", "cpu")
    assert (code, printed.count("reproduced"), "differs" in printed) == (0, len(ROUNDS), False)
    assert ("entry 1: 2 to do" in told, SENTINEL in printed + told) == (True, False)
    assert set(files_of(out)) == {"ledger.json", "replay-000001.json", "replay-000003.json"}


def test_what_was_replayed_is_not_computed_again_unless_asked_for(site, out):
    words = ("replay", "--site", site, "--out", out, "--device", "cpu")
    assert_refused("reservation_unknown", *words, "--entry", 1, "--entry", 2)  # it stops there; the first is kept
    kept = files_of(out)
    assert set(kept) == {"ledger.json", "replay-000001.json"}
    first, second = call_json(*words)
    assert first == json.loads(kept["replay-000001.json"])
    assert ([first["sequence"], second["sequence"]], call("replay", *words[1:])[2]) == ([*ROUNDS], "")
    assert call_json(*words) == [first, second]
    afresh = call_json(*words, "--again")
    assert all(new["seconds"] != old["seconds"] for new, old in zip(afresh, (first, second), strict=True))


def test_another_tolerance_is_another_question(site, out):
    words = ("replay", "--site", site, "--out", out, "--device", "cpu", "--entry", 1)
    assert [call_json(*words)[0]["tolerance"], call_json(*words, "--tolerance", 0)[0]["tolerance"]] == [1e-4, 0.0]


def test_a_round_that_is_not_what_was_kept_differs_with_exit_code_3(site, out):
    path = reply_of(site, ROUNDS[1])
    path.write_bytes(path.read_bytes() + SENTINEL.encode())
    words = ("replay", "--site", site, "--out", out, "--device", "cpu")
    code, printed, told = call(*words)
    assert (code, "reply_damaged" in printed, SENTINEL in printed + told) == (FOUND, True, False)
    good, bad = call_json(*words, code=FOUND)  # also where both are taken from the folder
    assert (good["verdict"], bad["verdict"], bad["reasons"]) == ("reproduced", "differs", ["reply_damaged"])


def test_a_round_whose_parts_the_officer_purged_is_not_replayable_and_no_fault(site, out):
    with open_ledger(open_site(site).ledger, site="clinic", population="patients") as ledger:
        decide(ledger, "secrets_purged", "all", OFFICER, officer_key=public_text(OFFICER))
    for name in (ORDERS, SECRETS, REPLIES):
        shutil.rmtree(site / "ledger" / name)
    code, printed, _ = call("replay", "--site", site, "--out", out, "--device", "cpu")
    assert (code, printed.count("not replayable")) == (0, len(ROUNDS))
    assert_refused("order_missing", "empirical", "--site", site, "--out", out, *QUICK)


def _as_from_a_terminal():
    """A shell that starts a command in the background makes it deaf to Ctrl-C; a terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_next_call_goes_on_from_there(site, out):
    second = reply_of(site, ROUNDS[1])
    reply = second.read_bytes()
    second.unlink()
    os.mkfifo(second)  # reading it takes forever
    process = subprocess.Popen(
        [COMMAND, "replay", "--site", str(site), "--out", str(out), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_as_from_a_terminal,  # noqa: PLW1509  (no thread runs here)
    )
    held = os.open(second, os.O_RDWR)  # so that who looks for a reader does not end its file
    kept = out / "replay-000001.json"
    deadline = time.monotonic() + 120
    while not kept.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    os.close(held)
    assert (process.returncode, "interrupted" in printed, "Traceback" in printed) == (INTERRUPTED, True, False)
    second.unlink()
    second.write_bytes(reply)
    before = json.loads(kept.read_text())
    found = call_json("replay", "--site", site, "--out", out, "--device", "cpu")
    assert (found[0], [each["verdict"] for each in found]) == (before, ["reproduced"] * len(ROUNDS))


# ---- which site


def test_a_site_is_named_in_one_way(site, out, tmp_path):
    run = tmp_path / f"run-{SENTINEL}"
    for command in ("empirical", "replay"):
        for words in ((), ("--site", site, "--run", run), ("--run", run), ("--site", site, "--name", "clinic")):
            assert_refused("audit_site", command, *words, "--out", out)
        assert_refused("site_missing", command, "--site", run, "--out", out)
        assert_refused("run_unreadable", command, "--run", run, "--name", "clinic", "--out", out)
        assert_refused("device_missing", command, "--site", site, "--device", "cuda", "--out", out)
        words = ("--site", site, "--coordinator", SENTINEL)
        assert_refused("key_unusable", command, *words, "--out", out)


def test_a_ledger_that_was_changed_is_not_audited(site, out):
    ledger = site / "ledger" / FILE
    ledger.write_bytes(ledger.read_bytes().replace(b"clinic", SENTINEL[:6].encode()))
    for command in ("empirical", "replay"):
        assert_refused("ledger_damaged", command, "--site", site, "--out", out)


def test_results_of_two_sites_are_not_mixed(site, out):
    assert call("replay", "--site", site, "--out", out, "--device", "cpu")[0] == 0
    ledger, kept = open_site(site).ledger, files_of(out)
    key = read_ledger(ledger).entries[0].body.public_key
    shutil.rmtree(ledger)
    create_ledger(ledger, site="clinic", population="patients")
    for command in ("empirical", "replay"):
        assert_refused("results_of_another_ledger", command, "--site", site, "--out", out)
    assert files_of(out) == kept
    assert len(Results(out, key).replays()) == len(ROUNDS)
    with pytest.raises(SiteError, match="not about the ledger"):
        Results(out, public_text(LEDGER)).replays()


def test_results_without_an_owner_are_nobody_s(out):
    results = Results(out, public_text(LEDGER))
    results.begin()
    results.keep("empirical-first", empirical())
    (out / "ledger.json").unlink()
    with pytest.raises(SiteError, match="not about the ledger"):
        results.empirical({"first"})


def test_results_that_cannot_be_read_or_written_are_told(site, out, tmp_path):
    words = ("replay", "--site", site, "--device", "cpu", "--out")
    assert call(*words, out)[0] == 0
    (out / "replay-000001.json").write_text(f'{{"sequence": "{SENTINEL}"}}')
    assert_refused("results_unreadable", *words, out)
    (tmp_path / SENTINEL).write_text("a file")
    assert_refused("results_unwritable", *words, tmp_path / SENTINEL)


# ---- report and check


@pytest.fixture
def auditor(tmp_path):
    """The auditor's private key file."""
    new_key(tmp_path / f"auditor-{SENTINEL}.pem")
    return tmp_path / f"auditor-{SENTINEL}.pem"


@pytest.fixture(scope="module")
def all_results(answered, tmp_path_factory):
    """Results of the site: every round was replayed, and the trainer audited."""
    folder = tmp_path_factory.mktemp("results")
    assert call("empirical", "--site", answered, "--out", folder, *QUICK)[0] == 0
    assert call("replay", "--site", answered, "--out", folder, "--device", "cpu")[0] == 0
    return folder


@pytest.fixture
def audited(all_results, out):
    """A copy of them."""
    return Path(shutil.copytree(all_results, out))


def key_of(site):
    return read_ledger(open_site(site).ledger).entries[0].body.public_key


def report(site, auditor, bundle, *words, ledger=None):
    """The words that make a report."""
    return ("report", ledger or site / "ledger", "--key", key_of(site), "--sign", auditor, "--out", bundle, *words)


def contents(bundle):
    return json.loads((bundle / "evidence.json").read_text())


def test_everything_that_was_looked_at_is_filed_and_the_bundle_holds(site, audited, auditor, tmp_path):
    raw = (site / "ledger" / FILE).read_bytes()
    records = heads_of(raw, (len(lines_of(raw)),), site="clinic", key=key_of(site), coordinator=KEY)
    heads, bundle = write_heads(tmp_path / "heads.jsonl", records), tmp_path / f"bundle-{SENTINEL}"
    words = ("--results", audited, "--heads", heads, "--coordinator", public_text(KEY), "--site", site)
    code, printed, told = call(*report(site, auditor, bundle, *words))
    assert (code, "\nCONSISTENT" in printed, "evidence.html" in told) == (0, True, True)
    assert SENTINEL not in printed + told + b"".join(files_of(bundle).values()).decode()
    found = contents(bundle)
    assert (len(found["empirical"]), [each["sequence"] for each in found["replays"]]) == (1, [*ROUNDS])
    assert found["policy"]["minimum_expected_patients"] == 1.0
    signer = public_text(read_key(auditor))
    code, printed, told = call("check", bundle, "--signer", signer)
    assert (code, "\nHOLDS" in printed, signer in printed, SENTINEL in printed + told) == (0, True, True, False)
    checked = call_json("check", bundle, "--signer", signer)
    assert (checked["holds"], checked["judgement"]["word"], checked["notes"]) == (True, "consistent", [])


def test_what_was_not_looked_at_is_a_gap_and_no_fault(site, out, auditor, tmp_path):
    found = call_json(*report(site, auditor, tmp_path / "bundle", "--results", out))
    assert (found["judgement"]["word"], found["judgement"]["contradictions"]) == ("incomplete", [])
    assert any("No empirical audit" in gap for gap in found["judgement"]["gaps"])
    assert set(found["files"]) == {path.name for path in (tmp_path / "bundle").iterdir()} - {"manifest.json"}
    assert (contents(tmp_path / "bundle")["policy"], contents(tmp_path / "bundle")["replays"]) == (None, [])


def test_results_of_other_runs_are_not_filed(site, audited, auditor, tmp_path):
    (audited / "empirical-job.json").rename(audited / "empirical-other.json")
    call(*report(site, auditor, tmp_path / "bundle", "--results", audited))
    assert (contents(tmp_path / "bundle")["empirical"], len(contents(tmp_path / "bundle")["replays"])) == ([], 2)


def test_the_figures_of_the_attacks_are_filed_when_the_officer_says_so(site, audited, auditor, tmp_path):
    Results(audited, key_of(site)).keep("membership-job", membership())
    call(*report(site, auditor, tmp_path / "without", "--results", audited))
    call(*report(site, auditor, tmp_path / "with", "--results", audited, "--membership"))
    assert [len(contents(tmp_path / name)["membership"]) for name in ("without", "with")] == [0, 1]
    assert b"loss threshold" not in b"".join(files_of(tmp_path / "without").values())


def understated(raw):
    return written([reservation(), sample.commit(1), reservation(round_number=2)])


def shortened(raw):
    return b"".join(lines_of(raw)[:-1])


@pytest.mark.parametrize("ledger", [understated, shortened])
def test_a_contradicted_ledger_is_filed_with_exit_code_3_and_its_bundle_holds(auditor, tmp_path, out, ledger):
    honest = written([reservation(), sample.commit(1), reservation(round_number=2, run=2, lifetime=2)])
    heads = write_heads(tmp_path / "heads.jsonl", heads_of(honest, (4,)))
    (tmp_path / FILE).write_bytes(ledger(honest))
    words = ("report", tmp_path / FILE, "--key", public_text(LEDGER), "--sign", auditor, "--results", out)
    words = (*words, *(() if ledger is understated else ("--heads", heads)))
    code, printed, _ = call(*words, "--out", tmp_path / "bundle")
    assert (code, "\nCONTRADICTED" in printed, "against the site: " in printed) == (FOUND, True, True)
    found = call_json(*words, "--out", tmp_path / "again", code=FOUND)
    assert found["judgement"]["word"] == "contradicted"
    code, printed, _ = call("check", tmp_path / "bundle")
    assert (code, "\nHOLDS" in printed, "CONTRADICTED" in printed) == (0, True, True)


def test_a_bundle_that_was_changed_does_not_hold(site, out, auditor, tmp_path):
    bundle = tmp_path / f"bundle-{SENTINEL}"
    call(*report(site, auditor, bundle, "--results", out))
    page = bundle / "evidence.html"
    page.write_bytes(page.read_bytes() + SENTINEL.encode())
    code, printed, told = call("check", bundle)
    assert (code, "file_changed: evidence.html" in printed, "DOES NOT HOLD" in printed) == (FOUND, True, True)
    assert SENTINEL not in printed + told
    assert call_json("check", bundle, code=FOUND)["reasons"] == ["file_changed: evidence.html"]


def test_a_bundle_that_somebody_else_signed_does_not_hold(site, out, auditor, tmp_path):
    call(*report(site, auditor, tmp_path / "bundle", "--results", out))
    other = public_text(Ed25519PrivateKey.generate())
    assert call_json("check", tmp_path / "bundle", "--signer", other, code=FOUND)["reasons"] == ["signer_other"]
    assert call_json("check", tmp_path / "bundle")["notes"] == ["signer_not_given"]


def test_a_report_that_cannot_be_written_is_told_and_leaves_nothing(site, out, auditor, tmp_path):
    full = tmp_path / f"full-{SENTINEL}"
    full.mkdir()
    (full / SENTINEL).write_text(SENTINEL)
    new, open_to_all = tmp_path / "new", tmp_path / f"open-{SENTINEL}.pem"
    shutil.copy(auditor, open_to_all)
    open_to_all.chmod(0o644)
    assert_refused("bundle_exists", *report(site, auditor, full, "--results", out))
    assert_refused("bundle_unwritable", *report(site, auditor, full / SENTINEL / "new", "--results", out))
    assert_refused("officer_key_unusable", *report(site, full / SENTINEL, new, "--results", out))
    assert_refused("officer_key_unusable", *report(site, tmp_path / SENTINEL, new, "--results", out))
    assert_refused("officer_key_not_private", *report(site, open_to_all, new, "--results", out))
    assert_refused("ledger_unreadable", *report(site, auditor, new, "--results", out, ledger=full / SENTINEL / "x"))
    assert_refused("site_missing", *report(site, auditor, new, "--results", out, "--site", full))
    assert_refused("heads_unreadable", *report(site, auditor, new, "--results", out, "--heads", full))
    assert [path.name for path in full.iterdir()] == [SENTINEL]
    assert not new.exists()


def test_a_report_does_not_take_the_results_of_another_site(site, audited, auditor, tmp_path):
    (tmp_path / FILE).write_bytes(written([reservation(), sample.commit(1)]))
    words = ("report", tmp_path / FILE, "--key", public_text(LEDGER), "--sign", auditor, "--results", audited)
    assert_refused("results_of_another_ledger", *words, "--out", tmp_path / "bundle")


def test_a_folder_that_is_no_bundle_is_told(tmp_path):
    assert_refused("bundle_unreadable", "check", tmp_path / SENTINEL)
    (tmp_path / SENTINEL).mkdir()
    assert call_json("check", tmp_path / SENTINEL, code=FOUND)["reasons"] == ["manifest_missing"]
    assert_refused("key_unusable", "check", tmp_path / SENTINEL, "--signer", SENTINEL)


def test_words_that_people_wrote_in_a_ledger_are_in_no_line_of_a_report(auditor, out, tmp_path):
    (tmp_path / FILE).write_bytes(written([reservation(), sample.commit(1), sample.tuning(SENTINEL)]))
    words = ("report", tmp_path / FILE, "--key", public_text(LEDGER), "--sign", auditor, "--results", out)
    for name, more in (("text", ()), ("json", ("--json",))):
        _, printed, told = call(*words, "--out", tmp_path / name, *more)
        checked = call("check", tmp_path / name, *more)
        assert (bool(printed), SENTINEL in printed + told + "".join(checked[1:])) == (True, False)
