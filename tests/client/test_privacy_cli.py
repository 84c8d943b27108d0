"""The ledger, the budget, the statement and the officer, as a person at the hospital meets them."""

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from intake_sites import SIZE
from test_intake_cli import SENTINEL, call, call_json

from client.books import Books
from client.preflight.permissions import permissions
from client.privacy_report import RoundKind, forecast
from client.remedies import REMEDIES
from client.settings import FILE, open_site
from multimix.contract.privacy import countersign
from multimix.contract.signing import public_key, public_text
from multimix.privacy.accountant import Mechanism, price
from multimix.privacy.entries import Refusal
from multimix.privacy.ledger import FILE as LEDGER_FILE
from multimix.privacy.ledger import open_ledger
from multimix.privacy.reservations import REPLIES, SECRETS, Reservations
from multimix.privacy.statement_records import Statement
from tests.privacy import sample_ledger as sample

ROOT = Path(__file__).parents[2]
COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
DELTA = 1e-3  # as in the reservations of sample_ledger
STEPS = 16


def settings_text(officer_key, **policy):
    lines = [f"{name} = {json.dumps(value)}" for name, value in policy.items()]
    return "\n".join(
        [
            'name = "north"',
            f"image_size = {SIZE}",
            '[server]\naddress = "a:1"',
            f'coordinator_key = "{public_text(COORDINATOR)}"',
            "[policy]",
            *lines,
            f"[population]\ndeclared_patients = 500\ndelta = {DELTA}\nepsilon_per_run = 4.0",
            f'officer_key = "{officer_key}"' if officer_key else "",
        ]
    )


@pytest.fixture
def key(tmp_path):
    """The officer's private key file."""
    call(tmp_path, "init", "unused")
    file = tmp_path / f"{SENTINEL}.pem"
    code, out, _ = run("officer", "key", "--out", file)
    assert code == 0
    file.with_suffix(".public").write_text(out)
    return file


def run(*words, stdin=None):
    from typer.testing import CliRunner

    from client.cli import app

    result = CliRunner().invoke(app, [*map(str, words)], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def public_of(key):
    return re.fullmatch(r'officer_key = "(.+)"\n', key.with_suffix(".public").read_text())[1]


@pytest.fixture
def empty(tmp_path, key):
    """A site that declared its population and has no ledger."""
    site = tmp_path / f"site-{SENTINEL}"
    call(site, "init", "north", "--image-size", SIZE)
    (site / FILE).write_text(settings_text(public_of(key)))
    return site


@pytest.fixture
def site(empty):
    assert call(empty, "ledger", "begin")[0] == 0
    return empty


def opened(site):
    folder = open_site(site)
    return open_ledger(folder.ledger, site="north", population="patients")


def add(site, *bodies):
    with opened(site) as ledger:
        return [ledger.append(body) for body in bodies]


def answer(site, job_id="first", round_number=1):
    """Reserve and answer a round, so that secret and reply are on disk; return when it was reserved."""
    folder = open_site(site).ledger
    with opened(site) as ledger:
        entry, _ = Reservations(folder).reserve(
            ledger, lambda hashed: sample.reservation(job_id, round_number, commitment=hashed)
        )
        Reservations(folder).keep_reply(ledger, entry.sequence, b"reply")
    return entry.time


def kept(site):
    folder = open_site(site).ledger
    return sorted(path.name for name in (SECRETS, REPLIES) for path in (folder / name).iterdir())


def countersign_now(site, key=COORDINATOR):
    with opened(site) as ledger:
        ledger.keep_countersignature(countersign("north", ledger.extension(None), key), key.public_key())


# ---- the ledger


def test_a_ledger_is_begun_once_and_shows_whose_it_is(empty):
    made = call_json(empty, "ledger", "begin")
    folder = open_site(empty).ledger
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert (made["site"], made["population"]) == ("north", "patients")
    public_key(made["public_key"])
    code, _, err = call(empty, "ledger", "begin")
    assert (code, "(ledger_exists)" in err) == (2, True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "words", [("ledger", "begin"), ("ledger", "show"), ("ledger", "verify"), ("budget",), ("statement",)]
)
def test_without_a_population_the_commands_ask_for_one(tmp_path, words):
    call(tmp_path / "site", "init", "north")
    code, _, err = call(tmp_path / "site", *words)
    assert (code, "(population_missing)" in err) == (2, True)


@pytest.mark.parametrize("words", [("ledger", "show"), ("ledger", "verify"), ("budget",), ("statement",)])
def test_without_a_ledger_the_commands_say_when_to_begin_one_and_when_not(empty, words):
    code, _, err = call(empty, *words)
    assert (code, "(ledger_missing)" in err) == (2, True)
    assert "multimix-site ledger begin" in err
    assert "restore its backup" in err
    assert not open_site(empty).ledger.exists()


def test_the_newest_entries_are_shown_with_epsilon_and_reason(site):
    add(site, sample.reservation(epsilon_lifetime=1.25), sample.commit(1), sample.refusal(reason="dp_noise"))
    add(site, sample.non_private("plain", 7), sample.reservation("late", seeded=True))
    shown = call_json(site, "ledger", "show", "--last", 5)
    assert [entry["body"]["kind"] for entry in shown] == [
        *("reservation", "commit", "refusal", "non_private", "reservation")
    ]
    out = call(site, "ledger", "show")[1]
    rows = {line.split()[0]: line for line in out.splitlines() if line.split()[0].isdigit()}
    assert "1.25" in rows["1"]
    assert "dp_noise" in rows["3"]
    assert "infinity" in rows["4"]
    assert "infinity" in rows["5"]


def test_a_whole_ledger_verifies_and_prints_its_head(site):
    add(site, sample.reservation())
    countersign_now(site)
    add(site, sample.commit(1))
    found = call_json(site, "ledger", "verify")
    with opened(site) as ledger:
        assert (found["whole"], found["entries"], found["head"]) == (True, 3, ledger.head.sha256)
        assert (found["countersigned_entries"], found["countersigned_head"]) == (2, ledger.head_at(2))
    assert "coordinator's key" in found["countersignature_checked"]


def edited(ledger):
    file = ledger / LEDGER_FILE
    file.write_bytes(file.read_bytes().replace(b'\\"steps\\":16', b'\\"steps\\":1'))


def cut(ledger):
    file = ledger / LEDGER_FILE
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(("harm", "reason"), [(edited, "ledger_damaged"), (cut, "ledger_truncated")])
def test_a_ledger_that_was_edited_or_cut_ends_with_exit_code_3(site, harm, reason):
    add(site, sample.reservation())
    countersign_now(site)
    folder = open_site(site).ledger
    before = (folder / LEDGER_FILE).read_bytes()
    harm(folder)
    assert (folder / LEDGER_FILE).read_bytes() != before
    code, out, _ = call(site, "ledger", "verify", "--json")
    assert (code, json.loads(out)["reason"]) == (3, reason)


def test_a_countersignature_of_another_coordinator_ends_with_exit_code_3(site):
    countersign_now(site, Ed25519PrivateKey.generate())
    code, out, _ = call(site, "ledger", "verify", "--json")
    assert (code, json.loads(out)["reason"]) == (3, "countersignature_invalid")


def test_a_tuning_search_is_declared(site):
    call_json(site, "ledger", "tuning", "--runs", 12, "--text", "grid on phantoms", "--on-other-data")
    call_json(site, "ledger", "tuning", "--runs", 3, "--text", "grid here")
    found = [entry["body"] for entry in call_json(site, "ledger", "show")[1:]]
    assert found == [
        {"kind": "tuning", "runs": 12, "private": False, "text": "grid on phantoms"},
        {"kind": "tuning", "runs": 3, "private": True, "text": "grid here"},
    ]


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "x" * 501, "\x1b[2J"])
def test_a_text_that_no_entry_takes_is_refused_before_anything_is_written(site, text):
    code, _, err = call(site, "ledger", "tuning", "--runs", 1, "--text", text)
    assert (code, "(text_unusable)" in err) == (2, True)
    assert len(call_json(site, "ledger", "show")) == 1


def test_while_the_site_trains_a_writing_command_says_try_later_and_reading_ones_go_on(site, key):
    with opened(site):
        code, _, err = call(site, "officer", "note", "--key", key, "--text", "now")
        assert (code, "(ledger_busy)" in err) == (2, True)
        assert "Try later" in err
        assert call(site, "ledger", "verify")[0] == 0


# ---- the budget and the statement


def test_the_budget_is_priced_over_all_runs_and_for_each(site):
    add(site, sample.reservation("a", 1), sample.reservation("a", 2), sample.reservation("b", 1))
    found = call_json(site, "budget")
    step = Mechanism(1.0, 0.064)
    for account, steps, limit in [
        (found["lifetime"], 3 * STEPS, 8.0),
        (found["runs"]["a"], 2 * STEPS, 4.0),
        (found["runs"]["b"], STEPS, 4.0),
    ]:
        expected = price({step: steps}, delta=DELTA)
        assert (account["epsilon"], account["prv"], account["pld"]) == (expected.epsilon, expected.prv, expected.pld)
        assert (account["limit"], account["delta"], account["steps"]) == (limit, DELTA, steps)


def test_the_forecast_is_the_last_round_that_keeps_to_the_limits(site):
    add(site, sample.reservation("a", 1), sample.reservation("b", 1))
    folder = open_site(site)
    with opened(site) as ledger:
        entries = ledger.entries
    kind = RoundKind(1.0, 0.064, STEPS)
    found = forecast(entries, folder.population, kind)
    step = kind.mechanism

    def epsilon(rounds):
        return price({step: rounds * STEPS}, delta=DELTA).epsilon

    last, new, lifetime = found.rounds_in_last_run, found.rounds_in_a_new_run, found.rounds_in_the_lifetime
    assert found.last_run == "b"
    assert epsilon(1 + last) <= 4.0 < epsilon(2 + last)
    assert epsilon(new) <= 4.0 < epsilon(new + 1)
    assert epsilon(2 + lifetime) <= 8.0 < epsilon(3 + lifetime)


def test_before_the_first_run_the_forecast_needs_noise_rate_and_steps(site):
    assert call_json(site, "budget")["forecast"] is None
    code, _, err = call(site, "budget", "--noise", 1.0, "--rate", 0.064)
    assert (code, "(forecast_incomplete)" in err) == (2, True)
    found = call_json(site, "budget", "--noise", 4.0, "--rate", 0.2, "--steps", 300)["forecast"]
    assert found["kind"] == {"noise_multiplier": 4.0, "sampling_rate": 0.2, "steps": 300}
    assert 0 < found["rounds_in_a_new_run"] <= found["rounds_in_the_lifetime"]


def test_training_without_privacy_makes_the_budgets_epsilon_infinite(site):
    add(site, sample.reservation(), sample.non_private())
    found = call_json(site, "budget")
    assert found["lifetime"]["epsilon"] == "infinity"
    assert found["lifetime"]["epsilon_private"] == price({Mechanism(1.0, 0.064): STEPS}, delta=DELTA).epsilon
    assert "infinity" in call(site, "budget")[1]


def test_a_statement_of_the_lifetime_is_written_in_three_forms_that_say_the_same(site, tmp_path):
    add(site, sample.reservation("a", 1))
    countersign_now(site)
    code, _, err = call(site, "statement", "--out", tmp_path / "for-officer")
    assert code == 0
    files = {path.name for path in (tmp_path / "for-officer").iterdir()}
    assert files == {"statement.html", "statement.json", "statement.md"}
    found = Statement.model_validate_json((tmp_path / "for-officer" / "statement.json").read_text())
    assert (found.site, found.scope, found.declared_patients, found.ledger.entries_since) == (
        "north",
        "lifetime",
        500,
        0,
    )
    assert found.lifetime.epsilon == price({Mechanism(1.0, 0.064): STEPS}, delta=DELTA).epsilon
    assert found.forecast_rounds is not None
    for name in ("statement.html", "statement.md"):
        assert found.ledger.head.sha256 in (tmp_path / "for-officer" / name).read_text()
    assert SENTINEL not in err


def test_the_statement_of_a_run_stands_beside_that_of_the_lifetime(site):
    add(site, sample.reservation("a", 1), sample.reservation("b", 1))
    call(site, "statement")
    call(site, "statement", "--job", "a")
    folder = site / "statement"
    assert {path.name for path in folder.glob("*.json")} == {"statement.json", "statement-a.json"}
    found = Statement.model_validate_json((folder / "statement-a.json").read_text())
    assert (found.job_id, found.run.steps, found.lifetime.steps) == ("a", STEPS, 2 * STEPS)
    code, _, err = call(site, "statement", "--job", "../c")
    assert (code, "(run_unknown)" in err) == (2, True)


def test_ledger_and_statement_leave_the_site_folder_closed_to_others(site):
    answer(site)
    assert call(site, "statement")[0] == 0
    assert {line.status for line in permissions(site, group_readable=False) if line.name == "permissions"} == {"PASS"}


# ---- the officer


def test_the_officers_key_is_made_for_its_owner_alone_and_never_overwritten(key):
    assert key.stat().st_mode & 0o777 == 0o600
    public_key(public_of(key))
    before = key.read_bytes()
    code, _, err = run("officer", "key", "--out", key)
    assert (code, "(officer_key_exists)" in err) == (2, True)
    assert key.read_bytes() == before


def allows(site, action):
    folder = open_site(site)
    with opened(site) as ledger:
        return Books(folder.ledger, "north", folder.population).officer_allows(ledger.entries, action)


def test_the_officer_allows_training_without_privacy_after_a_warning(site, key):
    words = ("officer", "allow", "non-private", "--key", key, "--text", "public images only")
    code, _, err = call(site, *words, stdin="n\n")
    assert (code, "can reveal images" in err) == (130, True)
    assert not allows(site, "allow_non_private")
    assert call(site, *words, stdin="")[0] == 130  # nobody there to ask
    code, _, err = call(site, *words, stdin="y\n")
    assert (code, "both are needed" in err) == (0, True)  # the policy still says no
    assert allows(site, "allow_non_private")


def test_the_officer_allows_privacy_after_exposure_only_where_there_was_some(site, key):
    words = ("officer", "allow", "private-after-non-private", "--key", key, "--text", "agreed", "--yes")
    code, _, err = call(site, *words)
    assert (code, "(nothing_to_allow)" in err) == (2, True)
    add(site, sample.non_private())
    assert call(site, *words)[0] == 0
    assert allows(site, "private_after_non_private")


def test_a_key_that_is_not_the_officers_decides_nothing(site, key, tmp_path):
    run("officer", "key", "--out", tmp_path / "other.pem")
    code, _, err = call(site, "officer", "note", "--key", tmp_path / "other.pem", "--text", "hello")
    assert (code, "(officer_unknown)" in err) == (2, True)
    (site / FILE).write_text(settings_text(None))
    code, _, err = call(site, "officer", "note", "--key", key, "--text", "hello")
    assert (code, "(officer_missing)" in err) == (2, True)
    assert len(call_json(site, "ledger", "show")) == 1


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nx"])
def test_a_file_that_is_no_key_is_refused_without_its_path(site, tmp_path, content):
    file = tmp_path / f"{SENTINEL}-other.pem"
    if content is not None:
        file.write_bytes(content)
    code, _, err = call(site, "officer", "note", "--key", file, "--text", "hello")
    assert (code, "(officer_key_unusable)" in err) == (2, True)
    assert SENTINEL not in err


def test_a_key_that_others_may_read_is_not_used(site, key):
    key.chmod(0o640)
    code, _, err = call(site, "officer", "note", "--key", key, "--text", "hello")
    assert (code, "(officer_key_not_private)" in err) == (2, True)


def test_a_decision_of_an_earlier_officer_shows_as_such_when_verified(site, key, tmp_path):
    call(site, "officer", "note", "--key", key, "--text", "approved")
    assert call_json(site, "ledger", "verify")["decisions_by_another_key"] == 0
    _, line, _ = run("officer", "key", "--out", tmp_path / "new.pem")
    (site / FILE).write_text(settings_text(re.search('"(.+)"', line)[1]))
    assert call_json(site, "ledger", "verify")["decisions_by_another_key"] == 1


def test_a_purge_enters_the_decision_and_removes_secrets_and_answers(site, key):
    answer(site)
    assert len(kept(site)) == 2
    found = call_json(site, "officer", "purge-secrets", "--key", key, "--yes")
    assert (found["rounds_purged"], kept(site)) == (1, [])
    last = call_json(site, "ledger", "show")[-1]["body"]
    assert (last["kind"], last["action"]) == ("officer", "secrets_purged")
    assert call_json(site, "budget")["lifetime"]["steps"] == STEPS  # what was spent stays spent


def test_a_purge_of_earlier_rounds_leaves_those_of_the_day_and_later(site, key):
    day = f"{answer(site).astimezone(UTC):%Y-%m-%d}"
    assert call_json(site, "officer", "purge-secrets", "--key", key, "--yes", "--before", day)["rounds_purged"] == 0
    assert len(kept(site)) == 2
    later = f"{datetime.now(UTC).year + 1}-01-01"
    assert call_json(site, "officer", "purge-secrets", "--key", key, "--yes", "--before", later)["rounds_purged"] == 1


def test_a_purge_that_is_not_confirmed_removes_nothing(site, key):
    answer(site)
    assert call(site, "officer", "purge-secrets", "--key", key, stdin="n\n")[0] == 130
    assert len(kept(site)) == 2
    assert len(call_json(site, "ledger", "show")) == 3


# ---- all of them


def test_every_reason_that_ledger_officer_and_accountants_can_raise_has_a_remedy():
    audits = [*(ROOT / "multimix" / "audit").rglob("*.py"), *(ROOT / "client" / "audit").glob("s*.py")]
    files = [ROOT / "client" / "books.py", *(ROOT / "multimix" / "privacy").glob("*.py"), *audits]
    not_ours = {"central.py", "dp_sgd.py", "training.py", "noise.py"}  # of a training, not of a command
    texts = [file.read_text() for file in files if file.name not in not_ours]
    reasons = {reason for text in texts for reason in re.findall(r'Refused\(\s*"(\w+)"', text)}
    assert {"ledger_busy", "ledger_truncated", "accountants_disagree"} <= reasons
    assert reasons <= REMEDIES.keys()


def test_no_command_names_a_path_whatever_it_does(site, key):
    add(site, Refusal(job_id="a", round=1, plan_sha256=hashlib.sha256(b"").hexdigest(), reason="dp_noise"))
    said = [
        call(site, "ledger", "show"),
        call(site, "ledger", "verify"),
        call(site, "budget"),
        call(site, "statement"),
        call(site, "statement", "--out", key),  # a file: it cannot be a folder
        call(site, "officer", "note", "--key", key, "--text", "hello"),
        call(site, "officer", "note", "--key", site, "--text", "hello"),
        run("officer", "key", "--out", site),
    ]
    assert [code for code, _, _ in said] == [0, 0, 0, 0, 2, 0, 2, 2]
    assert SENTINEL not in "".join(out + err for _, out, err in said)
    assert SENTINEL not in "".join(path.read_text() for path in (site / "statement").iterdir())
