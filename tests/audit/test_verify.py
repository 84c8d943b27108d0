"""What anybody can do to a ledger's bytes, and what its key's owner can do that only the server's heads show."""

import base64
import json
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from multimix.audit.verification.verify import verify_ledger
from multimix.contract.privacy import EMPTY_HEAD, LedgerHead, chained
from multimix.contract.signing import public_text
from multimix.errors import InputError
from multimix.privacy.entries import Genesis
from multimix.privacy.ledger import create_ledger, open_ledger
from multimix.privacy.officer import decide
from tests.audit.ledger_attacks import (
    COORDINATOR,
    LEDGER,
    OTHER,
    SITE,
    START,
    big_ledger,
    documents_of,
    flips_detected_fraction,
    heads_of,
    lines_of,
    sealed_of,
    signed_again,
    signed_line,
    written,
)
from tests.privacy import sample_ledger as sample

KEY = public_text(LEDGER)
BODIES = (
    sample.reservation(round_number=1),
    sample.commit(1),
    sample.evaluation(round_number=1),
    sample.reservation(round_number=2, epsilon_run=1.5, epsilon_lifetime=1.5, epsilon_private=1.5, prv=1.5, pld=1.49),
    sample.commit(4),
    sample.refusal(),
    sample.tuning(),
)
RAW = written(BODIES)
LINES = lines_of(RAW)
EVERY = range(len(LINES))


def verified(raw, *, key=KEY, heads=None, coordinator_key=None, officer_key=None):
    return verify_ledger(raw, key=key, heads=heads, coordinator_key=coordinator_key, officer_key=officer_key)


def faults(raw, **given):
    return [(finding.reason, finding.entry) for finding in verified(raw, **given).violations]


def notices(raw, **given):
    return [(finding.reason, finding.entry) for finding in verified(raw, **given).notices]


def with_heads(raw, of=RAW, lengths=(2, 5, len(LINES))):
    return faults(raw, heads=heads_of(of, lengths), coordinator_key=public_text(COORDINATOR))


def ledger_of_the_software(folder, officer):
    key = public_text(officer)
    create_ledger(folder, site=SITE, population="adults")
    with open_ledger(folder, site=SITE, population="adults") as ledger:
        for body in BODIES:
            ledger.append(body)
        decide(ledger, "allow_non_private", "agreed", officer, officer_key=key)
        ledger.append(sample.non_private())
        decide(ledger, "private_after_non_private", "agreed", officer, officer_key=key)
        ledger.append(sample.reservation("second", epsilon_lifetime=None, epsilon_private=1.6, prv=1.6, pld=1.6))
        return (folder / "ledger.jsonl").read_bytes(), ledger.public_key, ledger.head


def test_what_the_software_writes_has_no_violation(tmp_path):
    raw, key, head = ledger_of_the_software(tmp_path / "ledger", OTHER)
    heads = heads_of(raw, (3, 9, 12), key=key)
    found = verified(
        raw, key=key, heads=heads, coordinator_key=public_text(COORDINATOR), officer_key=public_text(OTHER)
    )
    assert found.violations == ()
    assert (found.truncation, found.covered, found.head) == ("checked", 12, head)
    assert [(each.reason, each.entry) for each in found.notices] == [("uncommitted", 11), ("non_private", 9)]


def test_counts_times_and_open_reservations_are_told():
    found = verified(written([*BODIES, sample.reservation(round_number=3, **_claim(2.0))]))
    assert (found.site, found.population, found.public_key, found.entries) == (SITE, "adults", KEY, 9)
    assert found.counts == {
        "genesis": 1, "reservation": 3, "commit": 2, "evaluation": 1, "refusal": 1, "tuning": 1,
    }  # fmt: skip
    assert (found.open_reservations, found.last) == ((8,), START + timedelta(minutes=15 * 8))


def _claim(epsilon):
    return {
        "epsilon_run": epsilon, "epsilon_lifetime": epsilon, "epsilon_private": epsilon, "prv": epsilon, "pld": epsilon,
    }  # fmt: skip


def test_a_verification_is_a_document_that_reads_back():
    found = verified(LINES[0] + LINES[2])
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_every_flip_of_a_single_byte_is_told_with_its_entry():
    assert flips_detected_fraction(written(BODIES[:2]), KEY) == 1.0


def test_the_share_of_flips_detected_counts_those_that_are_not():
    small = written([sample.tuning()])
    first, second = (len(line) for line in lines_of(small))
    told = flips_detected_fraction(small, public_text(OTHER))  # nothing is signed with this key: entry 0 is named
    assert first / (first + second) <= told < 1.0


@pytest.mark.parametrize("entry", EVERY)
def test_every_deletion_is_told_with_the_first_entry_that_is_missing(entry):
    cut = b"".join(LINES[:entry] + LINES[entry + 1 :])
    if entry == len(LINES) - 1:
        assert faults(cut) == []  # only the server's heads show it
    else:
        assert ("entry_missing", entry) in faults(cut)
    assert {("ledger_truncated", len(LINES) - 1)} <= set(with_heads(cut))


@pytest.mark.parametrize("entry", EVERY[:-1])
def test_every_exchange_of_neighbours_is_told_with_both_entries(entry):
    moved = b"".join([*LINES[:entry], LINES[entry + 1], LINES[entry], *LINES[entry + 2 :]])
    assert {("entry_missing", entry), ("entry_moved", entry)} <= set(faults(moved))
    assert ("head_conflict", entry) in with_heads(moved)


@pytest.mark.parametrize("entry", EVERY)
def test_every_repetition_is_told(entry):
    twice = b"".join([*LINES[: entry + 1], LINES[entry], *LINES[entry + 1 :]])
    assert ("entry_repeated", entry) in faults(twice)


def test_a_repetition_at_the_end_is_told_too():
    assert faults(RAW + LINES[3]) == [("entry_repeated", 3)]


@pytest.mark.parametrize("kept", EVERY)
def test_every_truncation_is_told_by_the_heads_with_the_first_missing_entry(kept):
    assert ("ledger_truncated", kept) in with_heads(b"".join(LINES[:kept]))


@pytest.mark.parametrize("kept", EVERY[1:])
def test_a_truncation_alone_is_not_checkable_and_is_said_not_to_be(kept):
    found = verified(b"".join(LINES[:kept]))
    assert (found.violations, found.truncation) == ((), "not checkable")
    (told,) = (each for each in found.notices if each.reason == "truncation_not_checkable")
    assert told.detail.startswith("truncation not checkable")
    assert "written all of it anew" in told.detail


def test_history_written_anew_with_the_sites_own_key_shows_against_the_heads_only():
    def cheaper(documents):
        documents[4]["body"]["dp"]["noise_multiplier"] = 2.0
        documents[1]["body"]["dp"]["noise_multiplier"] = 2.0

    forged = signed_again(RAW, LEDGER, cheaper)
    assert faults(forged) == []
    assert with_heads(forged) == [("head_conflict", 1)]
    assert with_heads(forged, lengths=(1, 3)) == [("head_conflict", 1)]


def test_history_written_anew_and_shorter_is_both():
    forged = signed_again(RAW, LEDGER, lambda documents: documents.__delitem__(slice(5, None)))
    assert with_heads(forged) == [("ledger_truncated", 5)]
    edited = signed_again(
        b"".join(LINES[:5]), LEDGER, lambda documents: documents[2].update(time="2026-11-02T08:31:00Z")
    )
    assert with_heads(edited, lengths=(len(LINES),)) == [("head_conflict", 2), ("ledger_truncated", 5)]


def test_history_written_anew_with_another_key_is_told_from_the_first_entry():
    def renamed(documents):
        documents[0]["body"]["public_key"] = public_text(OTHER)

    forged = signed_again(RAW, OTHER, renamed)
    assert faults(forged) == [("genesis_other_key", 0), ("signature_wrong", 0)]
    assert f"0 to {len(LINES) - 1}" in verified(forged).violations[1].detail
    assert faults(forged, key=public_text(OTHER)) == []  # consistent in itself: the key must come from elsewhere


def test_a_signature_by_another_key_is_told_for_its_entry_alone():
    bad = list(LINES)
    bad[3] = signed_line(sealed_of(RAW)[3].document, OTHER)
    assert faults(b"".join(bad)) == [("signature_wrong", 3), ("chain_broken", 4)]


def test_among_thousands_one_wrong_signature_is_found():
    raw, key = big_ledger(5_200)
    lines = lines_of(raw)
    lines[4_711] = signed_line(sealed_of(lines[4_711])[0].document, OTHER)
    assert faults(b"".join(lines), key=key) == [("signature_wrong", 4_711), ("chain_broken", 4_712)]


def test_an_entry_exchanged_for_another_signed_one_is_a_fork():
    other = lines_of(signed_again(RAW, LEDGER, lambda documents: documents[2].update(time="2026-11-02T08:31:00Z")))[2]
    assert ("entry_forked", 2) in faults(b"".join([*LINES[:3], other, *LINES[3:]]))
    assert faults(b"".join([*LINES[:2], other, *LINES[3:]])) == [("chain_broken", 3)]


def test_all_faults_are_told_not_only_the_first():
    bad = list(LINES)
    bad[2] = b"{}\n"
    bad[5] = signed_line(sealed_of(RAW)[5].document, OTHER)
    del bad[6]
    told = faults(b"".join(bad))
    assert {("line_damaged", 2), ("signature_wrong", 5), ("entry_missing", 6)} <= set(told)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"[1, 2]\n",
        b'{"document":1,"signature":"AA=="}\n',
        b'{"document":"\\ud800","signature":"AA=="}\n',
        b'{"document":"{}"}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b"1" * 10_000 + b"\n",
    ],
)
def test_a_line_that_is_none_is_damage_whatever_it_holds(line):
    assert faults(b"".join([*LINES[:3], line, *LINES[4:]]))[0] == ("line_damaged", 3)


def test_another_spelling_of_the_same_line_is_damage():
    assert faults(b"".join([*LINES[:3], LINES[3].replace(b'","sig', b'", "sig'), *LINES[4:]])) == [("line_damaged", 3)]
    assert faults(RAW.replace(b"\n", b"\r\n")) == [("line_damaged", entry) for entry in EVERY]


@pytest.mark.parametrize(
    "edit",
    [
        lambda body: body.update(patient="x"),
        lambda body: body.update(kind="gift"),
        lambda body: body.update(minimum_cohort="many"),
        lambda body: body.pop("split"),
    ],
)
def test_a_signed_entry_of_unknown_kind_or_fields_is_told(edit):
    document = documents_of(RAW)[3]
    edit(document["body"])
    line = signed_line(json.dumps(document, sort_keys=True, separators=(",", ":")))
    assert faults(b"".join([*LINES[:3], line])) == [("entry_unknown", 3)]


def test_a_key_that_stands_twice_in_signed_text_is_told():
    document = sealed_of(RAW)[3].document.replace('"minimum_cohort":20', '"minimum_cohort":1,"minimum_cohort":20')
    assert faults(b"".join([*LINES[:3], signed_line(document)])) == [("document_not_canonical", 3)]


def test_a_clock_that_goes_back_is_told():
    times = [START, START + timedelta(hours=2), START + timedelta(hours=1), START + timedelta(hours=3)]
    raw = written(BODIES[:3], times=times)
    assert faults(raw) == [("clock_back", 2)]
    assert "3600 s" in verified(raw).violations[0].detail


def test_equal_times_are_in_order():
    assert faults(written(BODIES[:3], times=[START] * 4)) == []


@pytest.mark.parametrize("cut", [1, 2, 40, len(LINES[-1]) - 1])
def test_a_last_line_that_a_crash_cut_is_a_notice(cut):
    assert faults(RAW[:-cut]) == []
    assert ("torn_tail", len(LINES) - 1) in notices(RAW[:-cut])
    assert ("ledger_truncated", len(LINES) - 1) in with_heads(RAW[:-cut])


@pytest.mark.parametrize("tail", [b"\0\0\0", b"x", LINES[3][:-1] + b" ", LINES[3][:-1] + LINES[4][:-1], b'{"doc": '])
def test_a_tail_that_no_crash_leaves_is_damage(tail):
    assert faults(RAW + tail) == [("tail_damaged", len(LINES))]


@pytest.mark.parametrize("raw", [b"", b"{", LINES[0][:-1]])
def test_a_ledger_without_a_whole_line_is_told(raw):
    assert faults(raw)[0] == ("ledger_empty", 0)


def test_a_second_genesis_is_told():
    again = Genesis(site=SITE, population="adults", public_key=KEY)
    assert faults(written([sample.tuning(), again])) == [("genesis_again", 2)]


@pytest.mark.parametrize("which", ["key", "coordinator_key", "officer_key"])
@pytest.mark.parametrize("text", ["", "no key", "AA==", base64.b64encode(b"short").decode()])
def test_what_is_no_key_is_an_error_of_the_user(which, text):
    with pytest.raises(InputError) as error:
        verified(RAW, **{which: text})
    assert error.value.reason == "key_unusable"


def test_the_auditors_key_counts_not_the_one_the_ledger_names():
    stranger = public_text(Ed25519PrivateKey.from_private_bytes(b"s" * 32))
    assert faults(RAW, key=stranger) == [("genesis_other_key", 0), ("signature_wrong", 0)]


def test_the_head_told_is_the_one_of_the_chain():
    digests = [sealed.digest for sealed in sealed_of(RAW)]
    assert verified(RAW).head == LedgerHead(length=len(LINES), sha256=chained(EMPTY_HEAD, digests))
    assert verified(RAW + b"{}\n").head is None
