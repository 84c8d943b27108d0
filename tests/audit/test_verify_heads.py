"""A ledger against the server's records: which heads count, and which records say nothing of it."""

import pytest

from multimix.audit.verification.verify import verify_ledger
from multimix.contract.heads import HeadLines, head_records
from multimix.contract.privacy import Extension, LedgerHead
from multimix.contract.signing import public_text
from multimix.errors import InputError
from server.heads import Heads
from tests.audit.ledger_attacks import COORDINATOR, LEDGER, OTHER, heads_of, lines_of, signed_again, written
from tests.privacy import sample_ledger as sample

KEY, COORDINATOR_KEY = public_text(LEDGER), public_text(COORDINATOR)
RAW = written([sample.reservation(), sample.commit(1), sample.tuning(), sample.refusal()])
ANEW = signed_again(RAW, LEDGER, lambda documents: documents[3]["body"].update(runs=1))


def verified(raw, heads, *, coordinator_key=COORDINATOR_KEY):
    return verify_ledger(raw, key=KEY, heads=heads, coordinator_key=coordinator_key, officer_key=None)


def faults(raw, heads, **given):
    return [(finding.reason, finding.entry) for finding in verified(raw, heads, **given).violations]


def notices(raw, heads, **given):
    return [(finding.reason, finding.entry) for finding in verified(raw, heads, **given).notices]


def file_of(records):
    lines, parts = HeadLines(), []
    for record in records:
        parts.append(lines.next_line(record).model_dump_json().encode() + b"\n")
        lines.take_in(parts[-1])
    return b"".join(parts)


def test_heads_that_cover_everything_leave_nothing_to_say():
    found = verified(RAW, heads_of(RAW, (1, 3, 5)))
    assert (found.findings, found.truncation, found.covered) == ((), "checked", 5)


def test_entries_after_the_last_head_are_counted():
    found = verified(RAW, heads_of(RAW, (1, 3)))
    (told,) = found.findings
    assert (told.reason, told.entry, found.covered) == ("not_covered", 3, 3)
    assert told.detail.startswith("2 entries")


def test_a_change_after_the_last_head_is_covered_by_none():
    assert faults(ANEW, heads_of(RAW, (1, 3))) == []
    assert faults(ANEW, heads_of(RAW, (1, 4))) == [("head_conflict", 3)]


def test_an_older_head_counts_although_a_newer_one_stands():
    heads = (*heads_of(RAW, (4,)), *heads_of(ANEW, (4,)))  # the server would never sign both
    assert ("head_conflict", 0) in faults(ANEW, heads)


def test_other_sites_heads_are_passed_over():
    others = heads_of(written([sample.tuning()], OTHER), (2,), site="south", key=public_text(OTHER))
    assert faults(RAW, [*others, *heads_of(RAW, (5,))]) == []
    found = verified(RAW, others)
    assert (found.truncation, found.violations, found.covered) == ("not checkable", (), None)


def test_heads_of_this_site_under_another_key_are_a_violation():
    others = heads_of(RAW, (2,), key=public_text(OTHER))
    assert faults(RAW, [*others, *heads_of(RAW, (5,))]) == [("head_other_key", 0)]


def test_heads_of_this_key_under_another_site_are_a_violation():
    assert faults(RAW, heads_of(RAW, (5,), site="south")) == [("head_other_site", 0)]


def test_heads_that_another_signed_prove_nothing():
    found = verified(RAW, heads_of(ANEW, (5,), coordinator=OTHER))
    assert [each.reason for each in found.violations] == ["countersignature_invalid"]
    assert found.truncation == "not checkable"


def test_without_the_coordinators_key_heads_are_compared_but_not_believed():
    found = verified(ANEW, heads_of(RAW, (5,)), coordinator_key=None)
    assert found.truncation == "checked, heads not authenticated"
    assert [(each.reason, each.entry) for each in found.findings] == [
        ("heads_not_authenticated", None),
        ("head_conflict", 3),
    ]


def test_without_digests_the_fault_lies_after_the_last_head_that_stands():
    bare = [record.model_copy(update={"digests": ()}) for record in heads_of(RAW, (1, 2, 5))]
    assert faults(RAW, bare) == []
    assert notices(RAW, bare) == [("heads_incomplete", None)]
    assert faults(ANEW, bare) == [("head_conflict", 2)]
    assert faults(b"".join(lines_of(RAW)[:3]), bare) == [("ledger_truncated", 3)]


def test_a_head_signed_twice_is_one_head_with_two_records():
    (one,) = heads_of(RAW, (5,))
    again = one.model_copy(update={"digests": (), "round": 2})
    assert verified(RAW, [one, again]).findings == ()


def test_the_file_of_the_server_is_what_the_auditor_reads(tmp_path):
    (record,) = heads_of(RAW, (5,))
    heads = Heads(tmp_path / "heads.jsonl")
    grown = Extension(public_key=KEY, since=LedgerHead(), digests=record.digests, head=record.countersignature.head)
    signed = heads.countersign("north", grown, COORDINATOR, job_id="first", round_number=1)
    (read,) = head_records((tmp_path / "heads.jsonl").read_bytes())
    assert (read.countersignature, read.digests) == (signed, record.digests)
    assert verified(RAW, [read]).findings == ()


def test_a_last_line_of_heads_without_its_end_was_given_to_nobody():
    raw = file_of(heads_of(RAW, (1, 3, 5)))
    assert len(head_records(raw)) == 3
    assert head_records(raw[:-1]) == head_records(raw)[:2]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: [lines[0].replace(b'"round":1', b'"round":9'), *lines[1:]],
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [lines[0], *lines],
        lambda lines: [*lines, b"\xff\n"],
    ],
)
def test_heads_that_were_altered_are_refused(spoil):
    with pytest.raises(InputError) as error:
        head_records(b"".join(spoil(lines_of(file_of(heads_of(RAW, (1, 3, 5)))))))
    assert error.value.reason == "heads_damaged"
