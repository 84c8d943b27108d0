"""A ledger keeps what was acknowledged, notices every change, and is written by one process at a time."""

import base64
import errno
import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multimix.contract.privacy import EMPTY_HEAD, LedgerHead, countersign
from multimix.errors import Refused, SiteError
from multimix.privacy.chain import seal, verified_chain
from multimix.privacy.entries import Entry, Genesis, Tuning
from multimix.privacy.ledger import COUNTERSIGNED_FILE, FILE, KEY_FILE, create_ledger, open_ledger, read_ledger

SITE, POPULATION = "north", "adults"
START = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)
COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
ROOT = Path(__file__).parents[2]


class Clock:
    """Stands still until it is set."""

    def __init__(self, time: datetime = START) -> None:
        self.time = time

    def __call__(self) -> datetime:
        return self.time


def note(text: str) -> Tuning:
    return Tuning(runs=1, private=False, text=text)


def opened(folder: Path, now=None):
    return open_ledger(folder, site=SITE, population=POPULATION, now=now or Clock())


def new_ledger(folder: Path, notes=("one", "two", "three"), *, site=SITE, population=POPULATION) -> Path:
    create_ledger(folder, site=site, population=population, now=Clock())
    with open_ledger(folder, site=site, population=population, now=Clock()) as ledger:
        for text in notes:
            ledger.append(note(text))
    return folder


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    """A ledger of four entries, to be copied."""
    return new_ledger(tmp_path_factory.mktemp("written") / "ledger")


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "ledger"))


def opening(folder: Path) -> Refused:
    """Why it cannot be opened; the files must be as they were."""
    before = contents(folder)
    with pytest.raises(Refused) as caught, opened(folder):
        pass
    assert contents(folder) == before
    assert str(folder) not in str(caught.value)
    return caught.value


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def lines(folder: Path) -> list[bytes]:
    return (folder / FILE).read_bytes().splitlines(keepends=True)


def write(folder: Path, all_lines) -> None:
    (folder / FILE).write_bytes(b"".join(all_lines))


def texts(ledger) -> list[str]:
    return [entry.body.text for entry in ledger.entries[1:]]


@contextmanager
def disk_takes(bytes_a_file: int):
    """No file grows above this size: the system says "File too large", as in tests/server/full_disk.py."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---------------------------------------------------------------- creation


def test_a_new_ledger_says_whose_it_is(tmp_path):
    ledger = read_ledger(new_ledger(tmp_path / "ledger", notes=()))
    assert (ledger.site, ledger.population, len(ledger.entries)) == (SITE, POPULATION, 1)
    assert ledger.entries[0].body == Genesis(site=SITE, population=POPULATION, public_key=ledger.public_key)


def test_only_the_owner_may_read_the_folder_and_its_files(written):
    assert written.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in written.iterdir()} == {0o600}


def test_a_ledger_is_never_replaced(folder):
    before = contents(folder)
    with pytest.raises(SiteError) as caught:
        create_ledger(folder, site=SITE, population=POPULATION)
    assert caught.value.reason == "ledger_exists"
    assert contents(folder) == before


def test_a_ledger_whose_entries_were_removed_is_not_begun_again_where_the_server_has_seen_it(folder):
    countersigned(folder)
    (folder / FILE).unlink()
    with pytest.raises(SiteError):
        create_ledger(folder, site=SITE, population=POPULATION)


def test_a_creation_that_a_crash_cut_short_goes_on_with_its_key(tmp_path):
    key = Ed25519PrivateKey.generate()
    (tmp_path / KEY_FILE).write_bytes(key.private_bytes_raw())
    (tmp_path / KEY_FILE).chmod(0o600)
    ledger = read_ledger(new_ledger(tmp_path, notes=()))
    assert ledger.public_key == base64.b64encode(key.public_key().public_bytes_raw()).decode()


def test_no_ledger_is_created_on_a_full_disk(tmp_path):
    with disk_takes(100), pytest.raises(Refused) as caught:
        create_ledger(tmp_path, site=SITE, population=POPULATION)
    assert caught.value.reason == "ledger_disk_full"
    assert opening(tmp_path).reason == "ledger_missing"


# ---------------------------------------------------------------- appending


def test_entries_are_there_when_the_ledger_is_opened_again(folder):
    with opened(folder) as ledger:
        entry = ledger.append(note("four"))
    with opened(folder) as ledger:
        assert texts(ledger) == ["one", "two", "three", "four"]
        assert ledger.entries[4] == entry


def test_the_head_is_the_chain_of_the_hashes_of_the_lines(folder):
    head, heads = EMPTY_HEAD, [EMPTY_HEAD]
    for line in lines(folder):
        fields = json.loads(line)
        digest = hashlib.sha256((fields["document"] + "\n" + fields["signature"]).encode()).hexdigest()
        head = hashlib.sha256((head + digest).encode()).hexdigest()
        heads.append(head)
    ledger = read_ledger(folder)
    assert ledger.head == LedgerHead(length=4, sha256=head)
    assert [ledger.head_at(length) for length in range(-1, 6)] == [None, *heads, None]
    assert [entry.previous for entry in ledger.entries] == heads[:-1]


def test_an_entry_bears_the_time_of_the_clock(folder):
    with opened(folder, Clock(START + timedelta(hours=3))) as ledger:
        assert ledger.append(note("four")).time == START + timedelta(hours=3)


def test_a_clock_that_went_back_a_minute_is_held(folder):
    with opened(folder, Clock(START - timedelta(seconds=60))) as ledger:
        assert ledger.append(note("four")).time == START


def test_a_clock_set_back_is_refused(folder):
    before = contents(folder)
    with opened(folder, Clock(START - timedelta(seconds=61))) as ledger, pytest.raises(Refused) as caught:
        ledger.append(note("four"))
    assert caught.value.reason == "ledger_clock_back"
    assert contents(folder) == before


def test_what_could_not_be_read_back_is_not_written(folder):
    before = contents(folder)
    with opened(folder) as ledger, pytest.raises(Refused) as caught:
        ledger.append(note("four").model_copy(update={"runs": -1}))
    assert caught.value.reason == "ledger_entry_invalid"
    assert contents(folder) == before


def test_there_is_one_genesis(folder):
    with opened(folder) as ledger, pytest.raises(Refused) as caught:
        ledger.append(ledger.entries[0].body)
    assert caught.value.reason == "ledger_entry_invalid"


def test_nothing_is_appended_to_a_view_or_after_closing(folder):
    with opened(folder) as closed:
        pass
    for ledger in (closed, read_ledger(folder)):
        with pytest.raises(Refused) as caught:
            ledger.append(note("four"))
        assert caught.value.reason == "ledger_not_open"


def test_on_a_full_disk_an_entry_is_refused_and_the_ledger_is_as_it_was(folder):
    before = contents(folder)
    with opened(folder) as ledger:
        head = ledger.head
        with disk_takes(len(before[FILE]) + 100), pytest.raises(Refused) as caught:  # takes a part of the line
            ledger.append(note("four"))
        assert caught.value.reason == "ledger_disk_full"
        assert contents(folder) == before
        assert ledger.head == head
        ledger.append(note("five"))  # space was made
    assert texts(read_ledger(folder, every_signature=True)) == ["one", "two", "three", "five"]


def test_an_entry_that_the_disk_does_not_confirm_is_taken_back(folder, monkeypatch):
    def broken(_descriptor):
        raise OSError(errno.EIO, "broken disk")

    before = contents(folder)
    with opened(folder) as ledger:
        monkeypatch.setattr("os.fsync", broken)
        with pytest.raises(Refused) as caught:
            ledger.append(note("four"))
    assert caught.value.reason == "ledger_unwritable"
    assert contents(folder) == before


def test_nothing_is_appended_to_a_file_that_changed_meanwhile(folder):
    with opened(folder) as ledger:
        write(folder, lines(folder)[:-1])
        with pytest.raises(Refused) as caught:
            ledger.append(note("four"))
    assert caught.value.reason == "ledger_unwritable"


# ---------------------------------------------------------------- a line cut by a crash


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_last_line_cut_anywhere_is_removed(written, tmp_path, part):
    folder = Path(shutil.copytree(written, tmp_path / "torn", dirs_exist_ok=True))
    *whole, last = lines(folder)
    write(folder, [*whole, last[: int(part * len(last))]])
    assert texts(read_ledger(folder)) == ["one", "two"]
    with opened(folder) as ledger:
        assert lines(folder) == whole
        ledger.append(note("four"))
    assert texts(read_ledger(folder, every_signature=True)) == ["one", "two", "four"]


def test_a_view_leaves_a_torn_line_where_it_is(folder):
    write(folder, [*lines(folder), b'{"docu'])
    before = contents(folder)
    assert len(read_ledger(folder).entries) == 4
    assert contents(folder) == before


def test_a_torn_line_is_no_excuse_for_a_damaged_one_before_it(folder):
    first, second, *rest = lines(folder)
    write(folder, [first, second.replace(b"one", b"ane"), *rest, b'{"docu'])
    assert opening(folder).reason == "ledger_damaged"


# ---------------------------------------------------------------- damage


def _other_signature(line: bytes) -> bytes:
    fields = json.loads(line)
    signature = base64.b64encode(COORDINATOR.sign(fields["document"].encode())).decode()
    return line.replace(fields["signature"].encode(), signature.encode())


DAMAGE = {
    "an edited byte": lambda a, b, c, d: [a, b.replace(b"one", b"ten"), c, d],
    "an edited last line": lambda a, b, c, d: [a, b, c, d.replace(b"three", b"seven")],
    "swapped lines": lambda a, b, c, d: [a, c, b, d],
    "a line taken out": lambda a, b, c, d: [a, b, d],
    "a line twice": lambda a, b, c, d: [a, b, b, c, d],
    "the last line twice": lambda a, b, c, d: [a, b, c, d, d],
    "an empty line": lambda a, b, c, d: [a, b, c, d, b"\n"],
    "no first line": lambda a, b, c, d: [b, c, d],
    "nothing": lambda a, b, c, d: [],
    "bytes that are no text": lambda a, b, c, d: [a, b, b"\xff\xfe\n", d],
    "deep nesting": lambda a, b, c, d: [a, b, c, d, b"[" * 100_000 + b"\n"],
    "another spelling of the same line": lambda a, b, c, d: [a, b, c, d.replace(b'{"document":', b'{"document": ')],
    "the signature of another key": lambda a, b, c, d: [a, b, c, _other_signature(d)],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused(folder, damage):
    write(folder, damage(*lines(folder)))
    assert opening(folder).reason == "ledger_damaged"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_edit_of_a_line_is_found(written, data):
    all_lines = lines(written)
    number = data.draw(st.integers(0, len(all_lines) - 1))
    line = all_lines[number].rstrip(b"\n")
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, min(start + 3, len(line))))
    edited = line[:start] + data.draw(st.binary(max_size=3)) + line[end:]
    raw = b"".join([*all_lines[:number], edited + b"\n", *all_lines[number + 1 :]])
    if edited == line:
        assert len(verified_chain(raw).entries) == 4
    else:
        with pytest.raises(Refused, match="ledger_damaged"):
            verified_chain(raw)


def test_another_spelling_of_the_last_signature_is_refused(folder):
    *rest, last = lines(folder)
    signature = json.loads(last)["signature"]  # 64 bytes in base64: the last letter before == carries 2 bits of 6
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = signature[:-3] + letters[letters.index(signature[-3]) ^ 1] + "=="
    assert base64.b64decode(other) == base64.b64decode(signature)
    write(folder, [*rest, last.replace(signature.encode(), other.encode())])
    assert opening(folder).reason == "ledger_damaged"


def chained_by_hand(folder: Path, changes) -> None:
    """Add a note for each (time, key): chained as it should be, whoever signs."""
    chain = verified_chain((folder / FILE).read_bytes())
    for time, key in changes:
        head = chain.head
        sealed = seal(Entry(sequence=head.length, previous=head.sha256, time=time, body=note("by hand")), key)
        chain = chain.grown(sealed)
        write(folder, [*lines(folder), sealed.line.encode() + b"\n"])


def own_key(folder: Path) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes((folder / KEY_FILE).read_bytes())


def test_a_signature_within_the_chain_is_checked_when_every_one_is_asked_for(folder):
    chained_by_hand(folder, [(START, COORDINATOR), (START, own_key(folder))])
    assert len(read_ledger(folder).entries) == 6  # the last signature stands for those before it
    with pytest.raises(Refused, match="ledger_damaged: entry 4"):
        read_ledger(folder, every_signature=True)


def test_an_entry_with_a_number_not_its_own_is_refused(folder):
    head = read_ledger(folder).head
    misnumbered = Entry(sequence=head.length + 1, previous=head.sha256, time=START, body=note("four"))
    write(folder, [*lines(folder), seal(misnumbered, own_key(folder)).line.encode() + b"\n"])
    assert opening(folder).reason == "ledger_damaged"


def test_entries_whose_times_run_backwards_are_refused(folder):
    chained_by_hand(folder, [(START - timedelta(seconds=1), own_key(folder))])
    assert opening(folder).reason == "ledger_damaged"


# ---------------------------------------------------------------- other ledgers, keys


def test_a_missing_ledger_is_refused_and_nothing_is_made(tmp_path):
    assert opening(tmp_path).reason == "ledger_missing"
    with pytest.raises(Refused, match="ledger_missing"), opened(tmp_path / "none"):
        pass
    with pytest.raises(Refused, match="ledger_missing"):
        read_ledger(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [{"site": "south"}, {"population": "children"}])
def test_the_ledger_of_another_site_or_population_is_refused(tmp_path, other):
    folder = new_ledger(tmp_path / "other", **other)
    assert opening(folder).reason == "ledger_of_another_site"
    with pytest.raises(Refused, match="ledger_of_another_site"):
        read_ledger(folder, site=SITE, population=POPULATION)


@pytest.mark.parametrize("site", ["south", SITE])
def test_the_entries_of_another_ledger_copied_in_are_refused(folder, tmp_path, site):
    other = new_ledger(tmp_path / "other", site=site)
    shutil.copy(other / FILE, folder / FILE)
    assert opening(folder).reason == "ledger_of_another_site"


def test_another_key_is_refused(folder):
    (folder / KEY_FILE).write_bytes(Ed25519PrivateKey.generate().private_bytes_raw())
    assert opening(folder).reason == "ledger_of_another_site"


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(folder, mode):
    (folder / KEY_FILE).chmod(mode)
    assert opening(folder).reason == "ledger_key_unusable"


def test_a_missing_broken_or_linked_key_is_refused(folder, tmp_path):
    key = folder / KEY_FILE
    shutil.copy(key, tmp_path / "elsewhere")
    key.write_bytes(b"short")
    assert opening(folder).reason == "ledger_key_unusable"
    key.unlink()
    assert opening(folder).reason == "ledger_key_unusable"
    key.symlink_to(tmp_path / "elsewhere")
    assert opening(folder).reason == "ledger_key_unusable"


# ---------------------------------------------------------------- two agents


def test_a_ledger_is_open_once_in_a_process(folder):
    with opened(folder) as ledger:
        assert opening(folder).reason == "ledger_busy"
        ledger.append(note("four"))
    with opened(folder) as ledger:
        assert len(ledger.entries) == 5


HOLDER = f"""
import sys, time
from pathlib import Path
from multimix.privacy.ledger import open_ledger
with open_ledger(Path(sys.argv[1]), site={SITE!r}, population={POPULATION!r}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_even_by_kill_9(folder):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert holder.stdout.readline() == b"held\n"
        assert opening(folder).reason == "ledger_busy"
        assert len(read_ledger(folder).entries) == 4  # officers may look
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with opened(folder) as ledger:
        assert len(ledger.entries) == 4


# ---------------------------------------------------------------- the server's word


def countersigned(folder: Path, *, site=SITE, key=COORDINATOR, length=None):
    """Have the present head, or one of before, countersigned and keep it."""
    with opened(folder) as ledger:
        signature = signature_for(ledger, site=site, key=key, length=length)
        ledger.keep_countersignature(signature, COORDINATOR.public_key())
    return signature


def signature_for(ledger, *, site=SITE, key=COORDINATOR, length=None):
    length = ledger.head.length if length is None else length
    head = LedgerHead(length=length, sha256=ledger.head_at(length))
    return countersign(site, ledger.extension(None).model_copy(update={"head": head}), key)


def test_a_countersignature_is_kept(folder):
    signature = countersigned(folder)
    assert read_ledger(folder).countersigned() == signature
    assert signature.by(COORDINATOR.public_key())


def test_an_older_countersignature_does_not_replace_a_newer_one(folder):
    newer = countersigned(folder)
    countersigned(folder, length=2)
    assert read_ledger(folder).countersigned() == newer


def test_whole_lines_cut_off_are_found_by_the_countersignature(folder):
    countersigned(folder)
    write(folder, lines(folder)[:-1])
    assert opening(folder).reason == "ledger_truncated"
    with pytest.raises(Refused, match="ledger_truncated"):
        read_ledger(folder)


def test_a_countersigned_line_is_not_taken_for_a_torn_one(folder):
    countersigned(folder)
    write(folder, [b"".join(lines(folder))[:-1]])
    assert opening(folder).reason == "ledger_truncated"


def test_lines_written_after_a_cut_do_not_hide_it(folder):
    signature = countersigned(folder)
    write(folder, lines(folder)[:-1])
    (folder / COUNTERSIGNED_FILE).unlink()
    with opened(folder) as ledger:
        ledger.append(note("other"))
        ledger.append(note("and more"))
        with pytest.raises(Refused, match="ledger_truncated"):
            ledger.keep_countersignature(signature, COORDINATOR.public_key())
        with pytest.raises(Refused, match="ledger_truncated"):
            ledger.extension(signature.head)


def test_the_countersignature_of_another_coordinator_is_refused(folder):
    with pytest.raises(Refused, match="countersignature_invalid"):
        countersigned(folder, key=own_key(folder))
    assert not (folder / COUNTERSIGNED_FILE).exists()


def test_the_countersignature_for_another_site_or_ledger_is_refused(folder, tmp_path):
    with pytest.raises(Refused, match="ledger_of_another_site"):
        countersigned(folder, site="south")
    signature = countersigned(new_ledger(tmp_path / "other"))
    with opened(folder) as ledger, pytest.raises(Refused, match="ledger_of_another_site"):
        ledger.keep_countersignature(signature, COORDINATOR.public_key())


def test_a_countersignature_file_that_is_none_is_refused(folder):
    (folder / COUNTERSIGNED_FILE).write_bytes(b"{}")
    assert opening(folder).reason == "countersignature_invalid"


# ---------------------------------------------------------------- proofs of growth


@pytest.mark.parametrize("length", [0, 2, 5])
def test_an_extension_proves_growth_from_an_earlier_head(folder, length):
    with opened(folder) as ledger:
        since = LedgerHead(length=length, sha256=ledger.head_at(length)) if length < 5 else None
        ledger.append(note("four"))
        if since is None:
            since = ledger.head
        extension = ledger.extension(since)
    assert (extension.since, extension.head, len(extension.digests)) == (since, ledger.head, 5 - length)
    assert extension.holds()


def test_an_extension_from_nothing_holds_every_entry(folder):
    extension = read_ledger(folder).extension(None)
    assert len(extension.digests) == 4
    assert extension.holds()


def test_a_ledger_that_forked_cannot_prove_growth_from_the_other_branch(folder, tmp_path):
    fork = Path(shutil.copytree(folder, tmp_path / "fork"))
    with opened(folder) as ledger:
        ledger.append(note("spent here"))
        seen = ledger.head
    with opened(fork) as forked:
        forked.append(note("spent there"))
        forked.append(note("and more"))
        with pytest.raises(Refused, match="ledger_truncated"):
            forked.extension(seen)
        honest = forked.extension(LedgerHead(length=4, sha256=forked.head_at(4)))
    assert honest.holds()
    assert not honest.model_copy(update={"since": seen, "digests": honest.digests[1:]}).holds()
