"""Budget is spent before an answer exists, and one answer at most leaves for it."""

import hashlib
import shutil
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from multimix.contract.privacy import PatientPrivacy
from multimix.errors import Refused
from multimix.privacy.entries import Binding, Commit, Reservation
from multimix.privacy.ledger import FILE, create_ledger, open_ledger, read_ledger
from multimix.privacy.noise import commitment
from multimix.privacy.reservations import REPLIES, SECRETS, Reservations, Stage
from tests.privacy import sample_ledger as sample
from tests.privacy.test_ledger import START, Clock, disk_takes

BINDING = sample.binding()
DP = sample.patient_privacy()
STEPS = 16
POPULATION = "adults"


@pytest.fixture
def folder(tmp_path) -> Path:
    create_ledger(tmp_path / "ledger", site=sample.SITE, population=POPULATION, now=Clock())
    return tmp_path / "ledger"


@pytest.fixture
def kept(folder) -> Reservations:
    return Reservations(folder)


@pytest.fixture
def ledger(folder):
    with opened(folder) as ledger:
        yield ledger


@contextmanager
def opened(folder: Path, now=None):
    with open_ledger(folder, site=sample.SITE, population=POPULATION, now=now or Clock()) as ledger:
        yield ledger


def body(binding: Binding = BINDING, **changes):
    return lambda promised: sample.reservation(binding=binding, commitment=promised, **changes)


def reserved(kept, ledger, binding: Binding = BINDING, **changes) -> int:
    return kept.reserve(ledger, body(binding, **changes))[0].sequence


def answered(kept, ledger, data=b"reply", binding: Binding = BINDING) -> int:
    sequence = reserved(kept, ledger, binding)
    kept.keep_reply(ledger, sequence, data)
    return sequence


def find(kept, ledger, binding: Binding = BINDING, dp: PatientPrivacy = DP, steps=STEPS):
    return kept.find(ledger, binding, dp=dp, steps=steps)


def files(folder: Path, name: str) -> list[Path]:
    return sorted((folder / name).iterdir()) if (folder / name).exists() else []


def reason(call, *arguments) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.reason


def fail_to_commit(kept, ledger, folder, data: bytes) -> int:
    """A disk that has room for the reply, which is small, and not for one more line of the ledger."""
    sequence = reserved(kept, ledger)
    with disk_takes((folder / FILE).stat().st_size):
        assert reason(kept.keep_reply, ledger, sequence, data) == "ledger_disk_full"
    return sequence


# ---------------------------------------------------------------- the stages of an order


def test_an_order_never_seen_is_found_nowhere(kept, ledger):
    found = find(kept, ledger)
    assert (found.stage, found.sequence, found.reservation) == (Stage.NOTHING, None, None)


def test_the_secret_is_on_disk_before_the_reservation_is_written(kept, ledger, folder):
    seen = []

    def look(promised: str) -> Reservation:
        seen.append(len(ledger.entries))
        return body()(promised)

    append = ledger.append

    class Watched:
        """A ledger that looks at the disk at the moment a reservation is appended."""

        entries = ledger.entries

        def require_open(self):
            ledger.require_open()

        def append(self, reservation):
            seen.extend(commitment(path.read_bytes()) == reservation.commitment for path in files(folder, SECRETS))
            return append(reservation)

    entry, secret = kept.reserve(Watched(), look)
    assert seen == [1, True]
    assert entry.body.commitment == commitment(secret)


def test_a_reservation_left_by_a_crash_is_executed_again_with_the_same_secret(kept, folder):
    with opened(folder) as ledger:
        entry, secret = kept.reserve(ledger, body())
    again = Reservations(folder)
    with opened(folder) as ledger:
        found = find(again, ledger)
        assert (found.stage, found.sequence) == (Stage.RESERVED, entry.sequence)
        assert again.secret_of(found.reservation) == secret


DIFFERENT = {
    **{
        name: {"binding": BINDING.model_copy(update={name: value})}
        for name, value in {
            "job_id": "second",
            "round": 2,
            "plan_sha256": sample.sha("other plan"),
            "weights_sha256": sample.sha("other weights"),
            "data_fingerprint": "gen-2",
        }.items()
    },
    "dp": {"dp": sample.patient_privacy(noise_multiplier=1.1)},
    "steps": {"steps": STEPS + 1},
}


@pytest.mark.parametrize("other", DIFFERENT.values(), ids=DIFFERENT)
def test_an_order_that_differs_in_anything_is_a_new_one(kept, ledger, folder, other):
    reserved(kept, ledger)
    assert find(kept, ledger, **other).stage is Stage.NOTHING
    with_reply = fail_to_commit(kept, ledger, folder, b"reply")
    assert find(kept, ledger).sequence == with_reply
    assert find(kept, ledger, **other).stage is Stage.NOTHING


def test_each_reservation_has_a_secret_of_its_own(kept, ledger, folder):
    first, second = reserved(kept, ledger), reserved(kept, ledger, sample.binding(fingerprint="gen-2"))
    secrets = [kept.secret_of(ledger.entries[sequence].body) for sequence in (first, second)]
    assert secrets[0] != secrets[1]
    assert [len(secret) for secret in secrets] == [32, 32]


def test_a_reply_is_committed_by_its_hash_and_returned(kept, ledger):
    sequence = reserved(kept, ledger)
    assert kept.keep_reply(ledger, sequence, b"noised weights") == b"noised weights"
    assert ledger.entries[-1].body == Commit(
        reservation=sequence, reply_sha256=hashlib.sha256(b"noised weights").hexdigest()
    )


def test_a_committed_order_is_answered_by_the_stored_bytes_again_and_again(kept, ledger):
    sequence = answered(kept, ledger, b"reply")
    entries = len(ledger.entries)
    for _ in range(2):
        found = find(kept, ledger)
        assert (found.stage, found.sequence) == (Stage.COMMITTED, sequence)
        assert kept.stored_reply(ledger, sequence) == b"reply"
    assert len(ledger.entries) == entries


def test_a_committed_order_is_answered_though_the_data_changed_since(kept, ledger):
    sequence = answered(kept, ledger)
    found = find(kept, ledger, sample.binding(fingerprint="gen-2"))
    assert (found.stage, found.sequence) == (Stage.COMMITTED, sequence)


def test_an_uncommitted_order_is_reserved_anew_when_the_data_changed(kept, ledger):
    first = reserved(kept, ledger)
    second = answered(kept, ledger, binding=sample.binding(fingerprint="gen-2"))
    assert first != second
    assert find(kept, ledger, BINDING).sequence == second  # the first stays spent, and is never sent


def test_a_reply_on_disk_that_was_not_committed_is_committed_and_sent(kept, ledger, folder):
    sequence = fail_to_commit(kept, ledger, folder, b"reply")
    found = find(kept, ledger)
    assert (found.stage, found.sequence) == (Stage.REPLIED, sequence)
    assert kept.stored_reply(ledger, sequence) == b"reply"
    assert find(kept, ledger).stage is Stage.COMMITTED


@pytest.mark.parametrize("committed", [True, False])
def test_a_second_execution_does_not_replace_the_reply_of_the_first(kept, ledger, folder, committed):
    sequence = answered(kept, ledger, b"first") if committed else fail_to_commit(kept, ledger, folder, b"first")
    assert kept.keep_reply(ledger, sequence, b"second") == b"first"
    assert kept.stored_reply(ledger, sequence) == b"first"


def test_one_plan_on_the_same_weights_has_one_answer(kept, ledger, folder):
    older = reserved(kept, ledger)
    answered(kept, ledger, binding=sample.binding(fingerprint="gen-2"))
    assert reason(kept.keep_reply, ledger, older, b"another answer") == "answered_already"
    assert len(files(folder, REPLIES)) == 1
    assert sum(isinstance(entry.body, Commit) for entry in ledger.entries) == 1


# ---------------------------------------------------------------- what is missing or damaged


def test_a_purged_reply_is_not_computed_again(kept, ledger, folder):
    sequence = answered(kept, ledger)
    files(folder, REPLIES)[0].unlink()
    assert find(kept, ledger).stage is Stage.COMMITTED
    assert reason(kept.stored_reply, ledger, sequence) == "reply_purged"
    assert reason(kept.keep_reply, ledger, sequence, b"again") == "reply_purged"


def test_a_changed_reply_is_not_sent(kept, ledger, folder):
    sequence = answered(kept, ledger)
    files(folder, REPLIES)[0].write_bytes(b"other")
    assert reason(kept.stored_reply, ledger, sequence) == "reply_damaged"


def test_a_reply_never_written_is_missing(kept, ledger):
    assert reason(kept.stored_reply, ledger, reserved(kept, ledger)) == "reply_missing"


@pytest.mark.parametrize("sequence", [0, 7])
def test_only_a_reservation_has_a_reply(kept, ledger, sequence):
    assert reason(kept.keep_reply, ledger, sequence, b"reply") == "reservation_unknown"


def test_a_secret_that_is_gone_or_another_is_refused(kept, ledger, folder):
    reservation = kept.reserve(ledger, body())[0].body
    (secret,) = files(folder, SECRETS)
    secret.write_bytes(b"x" * 32)
    assert reason(kept.secret_of, reservation) == "secret_damaged"
    secret.unlink()
    assert reason(kept.secret_of, reservation) == "secret_missing"


def test_a_reservation_of_another_secret_is_refused(kept, ledger):
    assert reason(kept.reserve, ledger, lambda _: sample.reservation()) == "secret_damaged"


def test_a_secret_serves_one_reservation_only(kept, ledger):
    secret = kept.reserve(ledger, body())[1]
    other = body(sample.binding(round_number=2))
    assert reason(kept.reserve, ledger, other, secret) == "secret_reused"
    assert len(ledger.entries) == 2


def test_a_simulation_may_draw_the_same_secret_again(kept, ledger):
    kept.reserve(ledger, body(seeded=True), b"s" * 32)
    kept.reserve(ledger, body(sample.binding(round_number=2), seeded=True), b"s" * 32)
    assert len(ledger.entries) == 3


def test_a_reply_does_not_pass_for_that_of_a_reservation_in_a_restored_ledger(folder, kept, tmp_path):
    backup = shutil.copy(folder / FILE, tmp_path / "backup")
    with opened(folder) as ledger:
        lost = fail_to_commit(kept, ledger, folder, b"reply")
    shutil.copy(backup, folder / FILE)
    with opened(folder) as ledger:
        assert reserved(kept, ledger) == lost
        assert find(kept, ledger).stage is Stage.RESERVED


# ---------------------------------------------------------------- the disk


def test_only_the_owner_may_read_secrets_and_replies(kept, ledger, folder):
    answered(kept, ledger)
    assert [(folder / name).stat().st_mode & 0o777 for name in (SECRETS, REPLIES)] == [0o700, 0o700]
    assert {path.stat().st_mode & 0o777 for name in (SECRETS, REPLIES) for path in files(folder, name)} == {0o600}


@pytest.mark.parametrize("room", [0, 100])  # none for the secret; or for it, and not for the reservation
def test_on_a_full_disk_nothing_is_reserved(kept, ledger, folder, room):
    with disk_takes(room):
        assert reason(kept.reserve, ledger, body()) == "ledger_disk_full"
    assert len(ledger.entries) == 1
    assert find(kept, ledger).stage is Stage.NOTHING


def test_a_reply_that_does_not_fit_the_disk_can_be_kept_later(kept, ledger, folder):
    sequence = reserved(kept, ledger)
    with disk_takes(10):
        assert reason(kept.keep_reply, ledger, sequence, b"much too long") == "ledger_disk_full"
    assert files(folder, REPLIES) == []
    assert find(kept, ledger).stage is Stage.RESERVED
    assert kept.keep_reply(ledger, sequence, b"much too long") == b"much too long"


def test_files_that_a_crash_left_half_written_are_swept_up(kept, ledger, folder):
    answered(kept, ledger)
    for name in (SECRETS, REPLIES):
        (folder / name / ".half.x1").write_bytes(b"half")
    reserved(kept, ledger, sample.binding(round_number=2))
    assert [path for name in (SECRETS, REPLIES) for path in files(folder, name) if path.name.startswith(".")] == []


def test_a_view_reserves_keeps_and_purges_nothing(kept, folder):
    with opened(folder) as ledger:
        sequence = reserved(kept, ledger)
    view = read_ledger(folder)
    assert reason(kept.reserve, view, body()) == "ledger_not_open"
    assert reason(kept.keep_reply, view, sequence, b"reply") == "ledger_not_open"
    assert reason(kept.purge, view) == "ledger_not_open"
    assert (len(files(folder, SECRETS)), files(folder, REPLIES)) == (1, [])


# ---------------------------------------------------------------- purging


def test_purging_removes_secret_and_reply_of_what_is_committed_and_of_nothing_else(kept, ledger, folder):
    done = answered(kept, ledger)
    half_done = reserved(kept, ledger, sample.binding(round_number=2))
    assert kept.purge(ledger) == 1
    assert reason(kept.secret_of, ledger.entries[done].body) == "secret_missing"
    assert reason(kept.stored_reply, ledger, done) == "reply_purged"
    assert len(kept.secret_of(ledger.entries[half_done].body)) == 32
    assert kept.purge(ledger) == 0


def test_a_reply_on_disk_that_was_not_committed_is_not_purged(kept, ledger, folder):
    fail_to_commit(kept, ledger, folder, b"reply")
    assert kept.purge(ledger) == 0
    assert find(kept, ledger).stage is Stage.REPLIED


def test_an_order_is_purged_with_its_secret(kept, ledger):
    kept.keep_order(ledger, BINDING, b"order")
    answered(kept, ledger)
    assert kept.order_of(BINDING) == b"order"
    kept.purge(ledger)
    assert not kept.has_order(BINDING)
    assert reason(kept.order_of, BINDING) == "order_missing"


def test_the_first_order_that_was_kept_stays(kept, ledger):
    kept.keep_order(ledger, BINDING, b"order")
    kept.keep_order(ledger, BINDING, b"another")
    assert kept.order_of(BINDING) == b"order"


def test_an_order_that_a_reservation_without_an_answer_shares_is_not_purged(kept, ledger):
    answered(kept, ledger)
    kept.keep_order(ledger, BINDING, b"order")
    ledger.append(body(sample.binding(fingerprint="gen-2"))(sample.sha("another secret")))
    assert kept.purge(ledger) == 1
    assert kept.has_order(BINDING)


def test_purging_before_a_time_leaves_what_was_reserved_from_then_on(kept, folder):
    with opened(folder) as ledger:
        old = answered(kept, ledger)
    with opened(folder, Clock(START + timedelta(days=1))) as ledger:
        new = answered(kept, ledger, binding=sample.binding(round_number=2))
        assert kept.purge(ledger, START + timedelta(days=1)) == 1
        assert reason(kept.stored_reply, ledger, old) == "reply_purged"
        assert kept.stored_reply(ledger, new) == b"reply"


def test_purging_where_nothing_was_reserved_removes_nothing(kept, ledger):
    assert kept.purge(ledger) == 0


def test_a_secret_that_an_uncommitted_reservation_of_a_simulation_shares_is_not_purged(kept, ledger):
    done = kept.reserve(ledger, body(seeded=True), b"s" * 32)[0]
    kept.keep_reply(ledger, done.sequence, b"reply")
    open_one = kept.reserve(ledger, body(sample.binding(round_number=2), seeded=True), b"s" * 32)[0]
    assert kept.purge(ledger) == 1
    assert kept.secret_of(open_one.body) == b"s" * 32


# ---------------------------------------------------------------- what a ledger cannot mean


@pytest.mark.parametrize("reservation", [0, 1, 9])
def test_a_commit_that_names_no_reservation_or_a_second_answer_is_damage(kept, ledger, reservation):
    answered(kept, ledger)
    ledger.append(Commit(reservation=reservation, reply_sha256=sample.sha("second")))
    assert reason(lambda: find(kept, ledger)) == "ledger_damaged"
