import hashlib
import json
import multiprocessing
import resource
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from multimix.contract.privacy import Extension, LedgerHead, chained
from multimix.contract.signing import simulation_key
from multimix.errors import InputError, Refused
from server.heads import Heads, read_history

KEY = simulation_key(0)
LEDGER_KEY = "bGVkZ2Vy"


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


class Ledger:
    """A site's ledger: digests of its entries, and proofs between any two of its lengths."""

    def __init__(self, entries, *, public_key=LEDGER_KEY):
        self.digests = tuple(_digest(entry) for entry in entries)
        self.public_key = public_key

    def head(self, length):
        return LedgerHead(length=length, sha256=chained("0" * 64, self.digests[:length]))

    def grown(self, since, length):
        return Extension(
            public_key=self.public_key,
            since=self.head(since),
            digests=self.digests[since:length],
            head=self.head(length),
        )


HONEST = Ledger("abcdefghij")
FORKED = Ledger("abcdEFGHIJ")  # restored from a backup of 4 entries, then gone on


@pytest.fixture
def heads(tmp_path):
    return Heads(tmp_path / "heads.jsonl", now=lambda: datetime(2026, 11, 3, 12, tzinfo=UTC))


def _countersign(heads, extension, *, site="north", key=KEY, job="job", round_number=1):
    return heads.countersign(site, extension, key, job_id=job, round_number=round_number)


def _refusal(heads, extension, site="north"):
    with pytest.raises(Refused) as refused:
        heads.check(site, extension)
    with pytest.raises(Refused) as again:
        _countersign(heads, extension, site=site)
    assert again.value.reason == refused.value.reason
    return refused.value.reason


def test_a_site_is_unknown_until_its_first_head_is_countersigned(heads):
    assert heads.last("north") is None
    assert heads.history("north") == ()
    given = _countersign(heads, HONEST.grown(0, 3))
    assert heads.last("north") == given
    assert given.head == HONEST.head(3)
    assert given.by(KEY.public_key())


def test_a_record_says_when_for_which_job_and_round(heads):
    given = _countersign(heads, HONEST.grown(0, 3), job="job-7", round_number=5)
    (record,) = heads.history("north")
    assert (record.countersignature, record.job_id, record.round) == (given, "job-7", 5)
    assert record.time == datetime(2026, 11, 3, 12, tzinfo=UTC)


def test_heads_outlive_the_process(tmp_path):
    first = Heads(tmp_path / "heads.jsonl")
    _countersign(first, HONEST.grown(0, 3))
    _countersign(first, HONEST.grown(3, 5), round_number=2)
    assert Heads(tmp_path / "heads.jsonl").history("north") == first.history("north")
    assert len(first.history("north")) == 2


def test_checking_records_nothing(heads):
    heads.check("north", HONEST.grown(0, 3))
    assert heads.last("north") is None


def test_the_first_proof_begins_at_the_empty_ledger(heads):
    assert _refusal(heads, HONEST.grown(2, 3)) == "ledger_conflict"


def test_another_key_is_refused_even_over_the_same_entries(heads):
    _countersign(heads, HONEST.grown(0, 3))
    assert _refusal(heads, Ledger("abcdef", public_key="b3RoZXI=").grown(3, 5)) == "ledger_changed_key"


def test_a_ledger_cannot_be_shown_under_a_second_name(heads):
    _countersign(heads, HONEST.grown(0, 3))
    assert _refusal(heads, HONEST.grown(0, 3), site="south") == "ledger_of_another_site"


def test_two_sites_have_heads_of_their_own(heads):
    south = Ledger("xyz", public_key="c291dGg=")
    _countersign(heads, HONEST.grown(0, 3))
    given = _countersign(heads, south.grown(0, 2), site="south")
    assert heads.last("south") == given
    assert heads.last("north").head == HONEST.head(3)


def test_digests_that_do_not_lead_to_the_head_are_refused(heads):
    honest = HONEST.grown(0, 3)
    for lie in (
        honest.model_copy(update={"head": HONEST.head(4)}),
        honest.model_copy(update={"digests": honest.digests[::-1]}),
        honest.model_copy(update={"head": LedgerHead(length=4, sha256=honest.head.sha256)}),
    ):
        assert _refusal(heads, lie) == "ledger_conflict"


@pytest.mark.parametrize(
    ("extension", "reason"),
    [
        (FORKED.grown(4, 5), "ledger_shorter"),  # since the head we last saw of the true ledger before the fork
        (FORKED.grown(0, 5), "ledger_shorter"),
        (FORKED.grown(0, 6), "ledger_conflict"),  # as long, another head
        (FORKED.grown(4, 8), "ledger_conflict"),  # overtakes
        (FORKED.grown(6, 8), "ledger_conflict"),  # since a head that was never seen
        (HONEST.grown(7, 8), "ledger_conflict"),  # true, but the entry between is not shown
    ],
)
def test_a_ledger_that_runs_beside_the_known_heads_is_refused(heads, extension, reason):
    _countersign(heads, HONEST.grown(0, 4))
    _countersign(heads, HONEST.grown(4, 6))
    assert _refusal(heads, extension) == reason


def test_a_head_of_length_zero_is_the_empty_one_or_refused(heads):
    _countersign(heads, HONEST.grown(0, 2))
    wrong = LedgerHead(length=0, sha256=_digest("x"))
    lie = Extension(public_key=LEDGER_KEY, since=wrong, digests=(), head=wrong)
    assert _refusal(heads, lie) == "ledger_shorter"


def test_the_same_head_again_gets_the_same_signature_and_no_second_line(heads):
    first = _countersign(heads, HONEST.grown(0, 3))
    assert _countersign(heads, HONEST.grown(0, 3), round_number=1) == first
    assert _countersign(heads, HONEST.grown(3, 3), round_number=2) == first
    assert len(heads.history("north")) == 1


def test_a_stored_reply_after_a_crash_is_accepted_although_its_proof_begins_before_the_newest_head(heads):
    _countersign(heads, HONEST.grown(0, 3))
    newest = _countersign(heads, HONEST.grown(3, 5))
    assert _countersign(heads, HONEST.grown(3, 5)) == newest  # the same bytes again
    assert _countersign(heads, HONEST.grown(0, 7)).head == HONEST.head(7)  # through both heads, and further


def test_an_old_reply_after_newer_heads_gets_its_old_signature_and_does_not_become_the_last(heads):
    old = _countersign(heads, HONEST.grown(0, 3))
    newest = _countersign(heads, HONEST.grown(3, 5))
    assert _countersign(heads, HONEST.grown(0, 3)) == old
    assert heads.last("north") == newest


def test_a_reply_that_another_job_overtook_is_accepted_because_its_head_lies_on_the_known_way(heads):
    _countersign(heads, HONEST.grown(0, 3))
    _countersign(heads, HONEST.grown(3, 8), job="other")
    late = _countersign(heads, HONEST.grown(3, 5), job="job")
    assert late.head == HONEST.head(5)
    assert heads.last("north").head == HONEST.head(8)
    _countersign(heads, HONEST.grown(5, 9))  # and the file can still be read
    assert [r.countersignature.head.length for r in heads.history("north")] == [3, 8, 5, 9]


def test_a_server_with_a_new_key_signs_a_known_head_anew(heads):
    _countersign(heads, HONEST.grown(0, 3))
    other = Ed25519PrivateKey.generate()
    assert _countersign(heads, HONEST.grown(0, 3), key=other).by(other.public_key())
    assert heads.last("north").by(other.public_key())


@given(
    seen=st.lists(st.integers(1, 10), min_size=1, max_size=4),
    since=st.integers(0, 10),
    more=st.integers(0, 10),
    fork=st.integers(0, 10),
)
def test_accepted_is_exactly_what_agrees_with_every_head_that_was_seen(tmp_path_factory, seen, since, more, fork):
    path = tmp_path_factory.mktemp("heads") / "heads.jsonl"
    heads, lengths = Heads(path), sorted(seen)
    for before, length in zip([0, *lengths], lengths, strict=False):
        _countersign(heads, HONEST.grown(before, length))
    end = min(10, since + more)
    shown = Ledger("abcdefghij"[:fork] + "ABCDEFGHIJ"[fork:])  # agrees with the honest one for `fork` entries
    newest = lengths[-1]
    agrees = since <= newest and min(end, newest) <= fork
    try:
        heads.check("north", shown.grown(since, end))
        accepted = True
    except Refused:
        accepted = False
    assert accepted == agrees


def _lines(path):
    return path.read_bytes().splitlines(keepends=True)


def _three_lines(path):
    heads = Heads(path)
    for since, length in ((0, 3), (3, 5), (5, 6)):
        _countersign(heads, HONEST.grown(since, length), round_number=length)
    return heads


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: [lines[0].replace(b'"round":3', b'"round":4'), *lines[1:]],
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [lines[0], *lines],
        lambda lines: [lines[0], b"\n", *lines[1:]],
        lambda lines: [lines[0][:40] + b"\n", *lines[1:]],
        lambda lines: [*lines[:2], b"\xff\xfe\n"],
        lambda lines: [*lines, b"{}\n"],
    ],
)
def test_an_altered_removed_moved_or_repeated_line_is_refused(tmp_path, spoil):
    path = tmp_path / "heads.jsonl"
    _three_lines(path)
    path.write_bytes(b"".join(spoil(_lines(path))))
    with pytest.raises(InputError) as error:
        Heads(path)
    assert error.value.reason == "heads_damaged"


def test_a_last_line_that_a_crash_cut_short_is_removed_and_its_head_can_be_signed_again(tmp_path):
    path = tmp_path / "heads.jsonl"
    _three_lines(path)
    whole = path.read_bytes()
    for cut in (1, 50, len(_lines(path)[2]) - 1):
        path.write_bytes(whole[:-cut])
        heads = Heads(path)
        assert heads.last("north").head == HONEST.head(5)
        assert path.read_bytes() == b"".join(_lines(path)[:2])
        assert _countersign(heads, HONEST.grown(5, 6)).head == HONEST.head(6)


def test_a_file_that_becomes_shorter_while_the_server_runs_is_refused(tmp_path):
    path = tmp_path / "heads.jsonl"
    heads = _three_lines(path)
    path.write_bytes(_lines(path)[0])
    with pytest.raises(InputError) as error:
        heads.last("north")
    assert error.value.reason == "heads_damaged"


def test_what_another_process_countersigned_is_known_at_once(tmp_path):
    one, other = Heads(tmp_path / "heads.jsonl"), Heads(tmp_path / "heads.jsonl")
    _countersign(one, HONEST.grown(0, 6))
    assert other.last("north").head == HONEST.head(6)
    assert _refusal(other, FORKED.grown(4, 8)) == "ledger_conflict"


def _sign_many(path, site):
    heads, ledger = Heads(path), Ledger("abcdefghij", public_key=site)
    for length in range(1, 11):
        heads.countersign(site, ledger.grown(length - 1, length), KEY, job_id="job", round_number=length)


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    path, sites = tmp_path / "heads.jsonl", ["east", "west", "nnth"]
    processes = [multiprocessing.get_context("fork").Process(target=_sign_many, args=(path, site)) for site in sites]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    heads = Heads(path)
    assert [[r.countersignature.head.length for r in heads.history(site)] for site in sites] == 3 * [list(range(1, 11))]


def test_a_line_is_one_json_document_with_time_job_round_and_signature(tmp_path):
    heads = _three_lines(tmp_path / "heads.jsonl")
    record = json.loads(_lines(tmp_path / "heads.jsonl")[-1])["record"]
    assert (record["job_id"], record["round"]) == ("job", 6)
    assert record["countersignature"]["signature"] == heads.last("north").signature
    assert record["time"]


@contextmanager
def _no_file_above(size):
    """The system takes a part of what is written and then says "File too large"."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_leaves_the_file_as_it_was(tmp_path):
    heads = _three_lines(tmp_path / "heads.jsonl")
    before = (tmp_path / "heads.jsonl").read_bytes()
    with _no_file_above(len(before) + 100), pytest.raises(InputError) as error:
        _countersign(heads, HONEST.grown(6, 7))
    assert error.value.reason == "heads_unusable"
    assert (tmp_path / "heads.jsonl").read_bytes() == before
    assert _countersign(heads, HONEST.grown(6, 8)).head == HONEST.head(8)


def test_a_file_that_is_not_there_is_not_made_by_looking(tmp_path):
    with pytest.raises(InputError) as error:
        read_history(tmp_path / "heads.jsonl", "north")
    assert error.value.reason == "heads_missing"
    assert not (tmp_path / "heads.jsonl").exists()


def test_the_file_is_for_its_owner_alone(tmp_path):
    Heads(tmp_path / "deep" / "heads.jsonl")
    assert (tmp_path / "deep" / "heads.jsonl").stat().st_mode & 0o777 == 0o600
