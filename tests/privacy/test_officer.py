"""The officer's word counts where it was given, and nobody else's does."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from multimix.contract.signing import public_text, simulation_key
from multimix.errors import Refused
from multimix.privacy.entries import Entry, Officer, officer_text
from multimix.privacy.ledger import KEY_FILE, create_ledger, open_ledger, read_ledger
from multimix.privacy.officer import decide, signed_by_officer
from tests.privacy import sample_ledger as sample

OFFICER, OTHER = simulation_key(1), simulation_key(2)
NAMED = public_text(OFFICER)
HEAD = sample.sha("head of the ledger")


@pytest.fixture
def folder(tmp_path):
    create_ledger(tmp_path / "ledger", site="north", population="adults")
    return tmp_path / "ledger"


def opened(folder):
    return open_ledger(folder, site="north", population="adults")


def decided(folder, action="allow_non_private", text="agreed", key=OFFICER, officer_key=NAMED) -> Entry:
    with opened(folder) as ledger:
        return decide(ledger, action, text, key, officer_key=officer_key)


def counts(entry: Entry, site="north", population="adults", officer_key=NAMED) -> bool:
    return signed_by_officer(entry, site, population, officer_key)


def with_body(entry: Entry, **changes) -> Entry:
    return entry.model_copy(update={"body": entry.body.model_copy(update=changes)})


def test_a_decision_counts_and_is_still_there_when_the_ledger_is_read_again(folder):
    entry = decided(folder, text="study 4711, ethics board of May")
    assert counts(entry)
    again = read_ledger(folder, every_signature=True).entries[-1]
    assert (again, counts(again)) == (entry, True)
    assert (again.body.action, again.body.text) == ("allow_non_private", "study 4711, ethics board of May")


@pytest.mark.parametrize(("key", "named"), [(OTHER, NAMED), (OFFICER, None), (OFFICER, public_text(OTHER))])
def test_only_the_officer_that_the_site_names_decides(folder, key, named):
    with pytest.raises(Refused) as caught:
        decided(folder, key=key, officer_key=named)
    assert caught.value.reason == "officer_unknown"
    assert len(read_ledger(folder).entries) == 1


def test_a_decision_needs_the_ledger_open(folder):
    with pytest.raises(Refused, match="ledger_not_open"):
        decide(read_ledger(folder), "note", "", OFFICER, officer_key=NAMED)


def test_a_decision_under_another_key_decides_nothing(folder):
    entry = decided(folder, key=OTHER, officer_key=public_text(OTHER))
    assert counts(entry, officer_key=public_text(OTHER))
    assert not counts(entry)
    assert not counts(with_body(entry, officer_key=NAMED))
    assert not counts(entry, officer_key=None)
    assert not counts(with_body(entry, officer_key="AA=="), officer_key="AA==")


def test_a_decision_of_another_site_or_population_decides_nothing(folder):
    entry = decided(folder)
    assert not counts(entry, site="south")
    assert not counts(entry, population="children")


@pytest.mark.parametrize(
    "change",
    [
        {"text": "agreed."},
        {"text": ""},
        {"action": "private_after_non_private"},
        {"action": "note"},
        {"signature": "AA=="},
        {"signature": base64.b64encode(bytes(64)).decode()},
        {"officer_key": "AA=="},
        {"officer_key": public_text(OTHER)},
    ],
    ids=str,
)
def test_an_edited_decision_decides_nothing(folder, change):
    entry = decided(folder)
    assert counts(entry)
    assert not counts(with_body(entry, **change))


def test_a_decision_does_not_count_a_second_time_further_down(folder):
    first = decided(folder)
    with opened(folder) as ledger:
        copied = ledger.append(first.body)  # who holds the ledger's key can append what the officer once signed
    assert not counts(copied)


def test_a_decision_lifted_from_another_ledger_decides_nothing(folder, tmp_path):
    create_ledger(tmp_path / "other", site="north", population="adults")
    with open_ledger(tmp_path / "other", site="north", population="adults") as other:
        signed = decide(other, "allow_non_private", "agreed", OFFICER, officer_key=NAMED).body
    with opened(folder) as ledger:
        assert not counts(ledger.append(signed))


@pytest.mark.parametrize("body", [sample.reservation(), sample.evaluation(), sample.tuning()])
def test_another_entry_is_no_decision(folder, body):
    with opened(folder) as ledger:
        assert not counts(ledger.append(body))


TEXTS = st.text(max_size=40)


@given(a=st.tuples(st.sampled_from(["note", "allow_non_private"]), TEXTS), b=st.tuples(st.just("note"), TEXTS))
def test_no_two_decisions_have_the_same_text_to_sign(a, b):
    texts = {officer_text("north", "adults", HEAD, action, text) for action, text in (a, b)}
    assert len(texts) == len({a, b})


def test_a_decision_that_the_ledger_s_own_key_signed_decides_nothing(folder):
    """Whoever holds the site's keys is not the officer."""
    own = Ed25519PrivateKey.from_private_bytes((folder / KEY_FILE).read_bytes())
    with opened(folder) as ledger:
        text = officer_text(ledger.site, ledger.population, ledger.head.sha256, "note", "")
        forged = base64.b64encode(own.sign(text.encode())).decode()
        entry = ledger.append(Officer(action="note", officer_key=NAMED, signature=forged))
    assert not counts(entry)
