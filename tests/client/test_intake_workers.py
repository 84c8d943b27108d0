"""Workers: a decoder that crashes, hangs or eats memory costs its own file and nothing else.

An item's content can be anything that is called in the worker for its bytes; so what a hostile file would make a
decoder do is done here by functions of Python itself.
"""

import os
import resource
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import pytest

from client.intake.examine import Item, Rules
from client.intake.workers import Limits, Workers
from multimix.data.decode import Preprocessing

RULES = Rules(b"k" * 32, Preprocessing(32))
MEMORY_MIB = 1024


def item(content, key=""):
    return Item(key, "dicom", content)


def reasons(contents, *, workers=1, seconds=30.0):
    items = [item(content, str(number)) for number, content in enumerate(contents)]
    with Workers(RULES, Limits(workers, seconds, MEMORY_MIB)) as pool:
        found = list(pool.examined(items))
    assert [each.key for each, _ in found] == [str(number) for number in range(len(items))]
    return [outcome.reason for _, outcome in found]


def empty_if(condition):
    """Return content that is empty where the condition, Python text, holds in the worker."""
    return partial(eval, f"b'' if {condition} else b'junk'")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (os.abort, "decoder_crashed"),
        (partial(os._exit, 1), "decoder_crashed"),
        (partial(eval, "__import__('os').kill(__import__('os').getpid(), 9)"), "decoder_crashed"),  # out of memory
        (partial(bytearray, 16 << 30), "memory_limit"),
        (partial(int, "PATIENT^NAME"), "examination_failed"),
        (partial(open, "/nowhere/at/all"), "file_unreadable"),
    ],
)
def test_a_file_that_breaks_its_worker_costs_that_file_alone(content, reason):
    assert reasons([b"junk", content, b"junk", b""]) == ["not_dicom", reason, "not_dicom", "file_empty"]


def test_a_file_that_hangs_costs_its_time_limit():
    start = time.monotonic()
    assert reasons([b"", partial(time.sleep, 600), b""], seconds=2.0) == ["file_empty", "time_limit", "file_empty"]
    assert time.monotonic() - start < 60


def test_bytes_that_a_worker_could_not_even_receive_do_not_break_the_pool():
    assert reasons([b"", bytes((MEMORY_MIB << 20) // 4 + 1), b""]) == ["file_empty", "memory_limit", "file_empty"]


def test_outcomes_come_in_the_order_of_the_items_however_long_each_takes():
    waits = [partial(eval, f"__import__('time').sleep({0.3 * (n % 3 == 0)}) or b'{'x' * (n % 2)}'") for n in range(12)]
    expected = ["not_dicom" if n % 2 else "file_empty" for n in range(12)]
    assert reasons(waits, workers=2) == expected


def test_a_crash_leaves_no_core_and_output_of_libraries_goes_nowhere():
    dumpable = "__import__('ctypes').CDLL(None).prctl(3, 0, 0, 0, 0) == 0"
    core = f"__import__('resource').getrlimit({int(resource.RLIMIT_CORE)}) == (0, 0)"
    streams = "{__import__('os').readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)} == {'/dev/null'}"
    conditions = [core, streams, dumpable]
    # Such a process hides /proc/self from all but root; so its streams are looked at as root only.
    conditions = conditions if os.geteuid() == 0 else [core, dumpable]
    assert reasons([empty_if(each) for each in conditions]) == ["file_empty"] * len(conditions)
    assert reasons([empty_if("False")]) == ["not_dicom"]


def test_a_worker_has_not_loaded_what_only_training_needs():
    assert reasons([empty_if("'torch' not in __import__('sys').modules")]) == ["file_empty"]


def test_no_process_starts_before_there_is_something_to_examine():
    with Workers(RULES, Limits(1)) as pool:
        assert list(pool.examined([])) == []
        assert pool._pool is None


def test_stopping_in_the_middle_does_not_wait_for_what_hangs():
    start = time.monotonic()

    def interrupted():
        with Workers(RULES, Limits(1, 600)) as pool:
            next(pool.examined([item(b""), *[item(partial(time.sleep, 600))] * 4]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 60


def test_neither_the_secret_nor_the_journal_is_shown():
    assert "kkk" not in repr(RULES)
    assert repr(item(b"PATIENT")) == "Item(dicom)"


def test_a_worker_that_dies_while_it_has_nothing_to_do_does_not_end_the_intake():
    def items():
        yield item(b"junk", "0")
        time.sleep(1)  # the worker has answered and waits
        server = forkserver._forkserver._forkserver_pid
        workers = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        assert workers
        for worker in workers:
            os.kill(int(worker), 9)
        time.sleep(1)
        yield item(b"junk", "1")
        yield item(b"junk", "2")

    with Workers(RULES, Limits(1, 30.0, MEMORY_MIB)) as pool:
        found = [(each.key, outcome.reason) for each, outcome in pool.examined(items())]
    assert [key for key, _ in found] == ["0", "1", "2"]
    assert found[0][1] == found[2][1] == "not_dicom"
