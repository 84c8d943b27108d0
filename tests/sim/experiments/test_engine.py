"""Many cases: what is done, done again, left, failed and interrupted; the workers are real where that is the point."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import stuck_worker
from experiment_fakes import copy_of, record_of, write_noise

from multimix.errors import ManifestError
from sim.experiments import engine
from sim.experiments.case import EnsembleCase, case_name, needs
from sim.experiments.engine import Done, run_cases
from sim.experiments.record import RECORD, SCORES, finished, read_record, write_record
from sim.experiments.runner import Order, run_experiment
from sim.experiments.scores import ScoreFile
from sim.experiments.suites import cases
from sim.experiments.work import Place, do

BASELINES = ("majority_8-4_s0", "mean-mask_8-4_s0")
TRAINED = ("enc_8-0_s0", "modern_8-4_s0")


def named(name, experiment="paper"):
    return next(case for case in cases(experiment, "smoke") if case_name(case) == name)


def order_of(data, cache, out, only, **fields):
    return Order(name="paper", scale="smoke", data=data, out=out, cache=cache, only=only, replicates=10, **fields)


@pytest.fixture(scope="module")
def first_run(data, cache, tmp_path_factory):
    """Two baselines and two models, by two worker processes."""
    told = []
    order = order_of(data, cache, tmp_path_factory.mktemp("out"), (*BASELINES, *TRAINED), workers=2)
    done, summary = run_experiment(order, told=lambda record, done: told.append((record, len(done.records))))
    return order, done, summary, told


def test_two_workers_do_all_cases(first_run):
    _, done, _, told = first_run
    assert set(done.records) == {*BASELINES, *TRAINED}
    assert (done.failed, done.left) == ({}, [])
    assert {case_name(record.case) for record, _ in told} == set(done.records)
    assert [count for _, count in told] == [1, 2, 3, 4]


def test_a_case_leaves_its_record_its_scores_and_its_model(first_run):
    order = first_run[0]
    files = {path.name: {each.name for each in path.iterdir()} for path in order.place.out.iterdir()}
    kept = {"run.json", "scores.npz"}
    assert files == {**dict.fromkeys(BASELINES, kept), **dict.fromkeys(TRAINED, kept | {"model.safetensors"})}


def test_an_experiment_leaves_its_figures_and_tables(first_run):
    order, _, summary, _ = first_run
    assert {path.name for path in order.folder.iterdir()} >= {"results.json", "tables.md"}
    assert type(summary).model_validate_json((order.folder / "results.json").read_bytes()) == summary
    assert summary.cases == 4
    assert len(summary.missing) == len(cases("paper", "smoke")) - 4


def test_a_record_says_what_was_trained_on_what(first_run, store):
    order = first_run[0]
    for name in (*BASELINES, *TRAINED):
        record = read_record(order.place.out / name)
        assert record.case == named(name)
        assert record.data_sha256 == store.fingerprint
    assert read_record(order.place.out / "modern_8-4_s0").pseudo_label_rate is not None
    assert read_record(order.place.out / "majority_8-4_s0").parameters == 0


def test_a_second_run_trains_nothing(first_run):
    order, done, summary, _ = first_run
    before = {path: path.read_bytes() for path in order.place.out.glob("*/*")}

    def told(record, done):
        pytest.fail(f"{record.case} was done again")

    again, after = run_experiment(order, told=told)
    assert again.records == done.records
    assert {path: path.read_bytes() for path in order.place.out.glob("*/*")} == before
    assert after == summary


def test_one_worker_goes_on_with_what_is_left(first_run, data, cache):
    order = first_run[0]
    told = []
    more = order_of(data, cache, order.out, (*BASELINES, "thumbnail-ridge_8-4_s0"), workers=1)
    done, summary = run_experiment(more, told=lambda record, _: told.append(case_name(record.case)))
    assert told == ["thumbnail-ridge_8-4_s0"]
    assert len(done.records) == 3
    assert summary.cases == 5


def test_no_time_leaves_every_case_and_the_summary_names_them(data, cache, tmp_path):
    order = order_of(data, cache, tmp_path, (), minutes=0)
    done, summary = run_experiment(order)
    assert done.records == {}
    assert done.left == [case_name(case) for case in cases("paper", "smoke")]
    assert summary.missing == tuple(case_name(case) for case in cases("paper", "smoke"))
    assert not list(order.place.out.glob("*"))
    assert "Not finished: 17 cases" in (order.folder / "tables.md").read_text()


@pytest.fixture
def place(data, cache, tmp_path):
    return Place(data=data, out=tmp_path, cache=cache)


def test_a_record_of_another_case_is_none_of_this_one(tmp_path):
    case, other = named("modern_8-4_s0"), named("modern_8-4_s1")
    write_record(tmp_path, record_of(case))
    ScoreFile({}).save(tmp_path / SCORES)
    assert finished(tmp_path, case, "data") == record_of(case)
    assert finished(tmp_path, other, "data") is None
    assert finished(tmp_path, case.model_copy(update={"steps": 3}), "data") is None


def test_a_record_of_other_data_is_none_of_this_case(tmp_path):
    case = named("modern_8-4_s0")
    write_record(tmp_path, record_of(case))
    ScoreFile({}).save(tmp_path / SCORES)
    assert finished(tmp_path, case, "other data") is None


@pytest.mark.parametrize("text", [None, "", "{", '{"schema_version": 1}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / RECORD).write_text(text)
    assert finished(tmp_path, named("modern_8-4_s0"), "data") is None


def test_a_record_without_its_scores_is_none(place):
    case = named("majority_8-4_s0")
    first = do(case, place)
    (place.folder(case) / SCORES).unlink()
    assert finished(place.folder(case), case, first.data_sha256) is None
    do(case, place)
    assert (place.folder(case) / SCORES).exists()


def test_a_case_with_a_record_of_other_data_is_done_again(data, cache, tmp_path):
    case = named("majority_8-4_s0")
    folder = copy_of(data, tmp_path / "data")
    first = do(case, Place(data=folder, out=tmp_path / "out", cache=cache))
    write_noise(folder / "chex224" / "test" / "NORMAL" / "IM-0999-0001.jpeg", 999)
    second = do(case, Place(data=folder, out=tmp_path / "out", cache=cache))
    assert first.data_sha256 != second.data_sha256
    assert read_record(tmp_path / "out" / case_name(case)) == second
    scores = ScoreFile.load(tmp_path / "out" / case_name(case) / "scores.npz").scores
    assert len(scores["chex224/test"].row) == 7


def test_a_case_that_is_done_is_not_done_again(place):
    case = named("majority_8-4_s0")
    assert do(case, place) == do(case, place)


class Threads(ThreadPoolExecutor):
    _processes = None  # none to end


@pytest.fixture
def fake_work(monkeypatch):
    """Threads in place of processes, and a worker that fails where it is told to; what it was given, in order."""
    given, failing = [], {}

    def work(case, place):
        given.append(case_name(case))
        if case_name(case) in failing:
            raise failing[case_name(case)]
        return record_of(case)

    monkeypatch.setattr(engine, "_pool", Threads)
    monkeypatch.setattr(engine, "do", work)
    return given, failing


def test_a_case_that_failed_is_told_with_its_reason_and_the_others_go_on(fake_work, place):
    given, failing = fake_work
    failing["mean-mask_8-4_s0"] = ManifestError("mask_absent", "There is no mask.")
    chosen = cases("paper", "smoke")[:3]
    done = run_cases(chosen, place, workers=1)
    assert done.failed == {"mean-mask_8-4_s0": "mask_absent: There is no mask."}
    assert set(done.records) == {"majority_8-4_s0", "thumbnail-ridge_8-4_s0"}
    assert given == [case_name(case) for case in chosen]


def ensemble_and_members():
    one, two, like = (
        named(name, "federated")
        for name in ("local-jsrt_local_s0", "local-shenzhen_local_s0", "fedavg_without-nih14_s0")
    )
    return EnsembleCase(row="ensemble", like=like, classifiers=(one,), segmenters=(one, two)), [one, two]


def test_an_ensemble_is_begun_after_its_members(fake_work, place):
    ensemble, members = ensemble_and_members()
    done = run_cases([ensemble, *members], place, workers=2)
    assert fake_work[0][-1] == case_name(ensemble)
    assert set(done.records) == {case_name(case) for case in (ensemble, *members)}


def test_an_ensemble_one_of_whose_members_failed_is_left(fake_work, place):
    given, failing = fake_work
    ensemble, members = ensemble_and_members()
    failing[case_name(members[0])] = ManifestError("site_empty", "No image.")
    done = run_cases([ensemble, *members], place, workers=1)
    assert done.left == [case_name(ensemble)]
    assert list(done.failed) == [case_name(members[0])]
    assert case_name(ensemble) not in given


def test_the_next_case_is_the_first_that_has_all_it_needs():
    ensemble, members = ensemble_and_members()
    waiting = [ensemble, members[1]]
    assert engine._next(waiting, Done()) is members[1]
    assert engine._next([ensemble], Done()) is None
    done = Done(records={name: record_of(members[0]) for name in needs(ensemble)})
    assert engine._next(waiting, done) is ensemble


def test_a_defect_in_a_worker_ends_the_run(fake_work, place):
    given, failing = fake_work
    failing["mean-mask_8-4_s0"] = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        run_cases(cases("paper", "smoke")[:3], place, workers=1)
    assert "thumbnail-ridge_8-4_s0" not in given


@pytest.fixture
def interrupts():
    """Ctrl-C raises KeyboardInterrupt also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_ends_a_worker_in_the_middle_of_its_case(place, monkeypatch):
    monkeypatch.setattr(engine, "do", stuck_worker.do)
    before = set(multiprocessing.active_children())
    workers = []

    def interrupt():
        deadline = time.monotonic() + 120
        while not (place.out / stuck_worker.BEGUN).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        workers.extend(set(multiprocessing.active_children()) - before)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_cases([named(name) for name in BASELINES], place, workers=1)
    assert len(workers) == 1
    workers[0].join(timeout=30)
    assert not workers[0].is_alive()


def test_an_experiment_on_data_that_are_not_there_is_refused_before_a_case_is_begun(cache, tmp_path):
    with pytest.raises(ManifestError, match="chex224"):
        run_experiment(order_of(tmp_path / "nothing", cache, tmp_path / "out", BASELINES))
    assert not (tmp_path / "out").exists()
