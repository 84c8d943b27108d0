"""What a run of many sites took: of real programs, which are gone afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from experiment_fakes import record_of

from multimix.contract.run_config import read_run_config
from multimix.errors import InputError
from multimix.processes import descendants
from server.results import read_results
from sim.experiments.case import case_name
from sim.experiments.record import write_record
from sim.experiments.scaling import _pss_kib, _watched, measure
from sim.experiments.suites import cases
from sim.experiments.work import Place, do

ROOT = Path(__file__).parents[3]
CASE = next(case for case in cases("scale", "smoke") if case.row == "in-process")
FEW = {"phantom-hospitals": 2, "phantom-patients": 8, "image-size": 32, "width": 2, "pictures": 0}
MEASURE = """
import json, sys
from pathlib import Path
from multimix.contract.run_config import read_run_config
from sim.experiments.scaling import measure
measure(read_run_config(json.loads(sys.argv[1])), sys.argv[2], Path(sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def no_process_is_left_behind():
    before = set(descendants(os.getpid()))
    yield
    assert set(descendants(os.getpid())) <= before


@pytest.fixture
def place(data, cache, tmp_path):
    return Place(data=data, out=tmp_path / "cases", cache=cache)


def alive(pids):
    def state(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "gone"

    return [pid for pid in pids if state(pid) not in ("gone", "Z")]


def ended(pids, within_s=5.0):
    """Wait for processes to end; return those that did not, which are ended here."""
    deadline = time.monotonic() + within_s
    while (left := alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def watched(program, log):
    """Let a Python program end by itself; return the most MiB that were seen."""
    with log.open("wb") as file, _watched([sys.executable, "-c", program], file.fileno()) as (process, peak):
        assert process.wait() == 0
    return peak[0] / 1024


def test_a_process_that_has_ended_takes_no_memory():
    process = subprocess.Popen(["true"])
    process.wait()
    assert _pss_kib(process.pid) == 0


def test_a_process_that_has_ended_and_was_not_waited_for_takes_no_memory():
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert _pss_kib(process.pid) == 0
    process.wait()


def test_memory_is_that_of_the_program_and_of_all_that_it_started(tmp_path):
    child = "import time; x = bytearray(b'1') * (40 << 20); time.sleep(2)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert 40 < watched(program, tmp_path / "log") < 80


def test_memory_that_processes_share_is_counted_once(tmp_path):
    program = "import os, time; x = bytearray(b'1') * (60 << 20); os.fork() and os.fork(); time.sleep(2)"
    assert 60 < watched(program, tmp_path / "log") < 110


def test_a_process_of_another_with_a_name_that_is_no_text_does_not_end_the_watch(tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff")
    shutil.copy(shutil.which("sleep"), odd)
    other = subprocess.Popen([odd, "60"])
    try:
        assert watched("import time; time.sleep(2)", tmp_path / "log") > 0
    finally:
        other.kill()
        other.wait()


def test_what_a_program_says_is_in_its_log(tmp_path):
    watched("print('said')", tmp_path / "log")
    assert (tmp_path / "log").read_text() == "said\n"


def test_an_interrupt_ends_the_program_and_what_it_started(tmp_path):
    command, pids = ["sh", "-c", "sleep 60 & sleep 60"], []

    def interrupt(process):
        while len(pids) < 3:
            pids[:] = [process.pid, *descendants(process.pid)]
        raise KeyboardInterrupt

    with (
        (tmp_path / "log").open("wb") as log,
        pytest.raises(KeyboardInterrupt),
        _watched(command, log.fileno()) as (process, _),
    ):
        interrupt(process)
    assert ended(pids) == []


def test_a_run_that_ends_early_says_where_its_log_is(tmp_path):
    config = read_run_config({"data": str(tmp_path / "nowhere"), "dirichlet-sites": 3})
    with pytest.raises(InputError, match=r"3 sites ended with 2: see .*log\.txt") as caught:
        measure(config, "in-process", tmp_path / "case")
    assert caught.value.reason == "scaling_failed"
    assert "nowhere" in (tmp_path / "case" / "log.txt").read_text()


def test_a_case_that_was_measured_with_other_settings_is_measured_again(place):
    # There is nothing to go on with, so that the run ends at once: but it was begun.
    case = CASE.model_copy(update={"config": CASE.config.model_copy(update={"resume": True})})
    folder = place.folder(case)
    (folder / "run").mkdir(parents=True)
    write_record(folder, record_of(CASE))
    with pytest.raises(InputError) as caught:
        do(case, place)
    assert caught.value.reason == "scaling_failed"
    assert "cannot go on" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_a_run_of_three_sites_is_measured_from_its_second_round_on(place):
    record = do(CASE, place)
    found, results = record.scaling, read_results(place.folder(CASE) / "run")
    assert results.status == "finished"
    assert [len(each.sites) for each in results.rounds] == [3, 3, 3]
    later = [each.seconds for each in results.rounds[1:]]
    assert found.round_s == pytest.approx(sum(later) / 2)  # the median of two
    assert 0 < found.sites_s < found.round_s
    assert 100 < found.peak_mib < 10_000  # of torch, several times
    assert found.sites == 3
    asked = {key: value for key, value in place.config(CASE).flat().items() if key != "out"}
    assert {key: results.config.get(key) for key in asked if key not in ("data", "cache")} == {
        key: value for key, value in asked.items() if key not in ("data", "cache")
    }
    assert do(CASE, place) == record
    assert case_name(CASE) == place.folder(CASE).name


def interrupted(engine, folder, until, **config):
    """Measure in a process of its own; end that as an interrupted experiment ends its workers.

    Returns the processes that it had started and that are still there.
    """
    asked = json.dumps({**FEW, "cache": str(folder / "cache"), **config})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEASURE, asked, engine, str(folder / "case")]
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    started, deadline = [], time.monotonic() + 120
    while not any(until in _command(pid) for pid in started):
        assert process.poll() is None, (folder / "case" / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
        started = descendants(process.pid)
    time.sleep(1)
    started = descendants(process.pid)
    process.terminate()
    process.wait()
    return ended(started)


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "until"), [("in-process", "spawn_main"), ("ray", "flower-superlink")])
def test_an_interrupted_measurement_leaves_no_process(tmp_path, engine, until):
    assert interrupted(engine, tmp_path, until, rounds=500) == []
