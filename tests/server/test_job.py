"""Whole jobs over fake sites: what stops a job, what it leaves behind, and what a resumed one continues from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_sites import PLAN_KEY, FakeGrid, FakeSite, card, not_a_number, refuses, sends_weights, silent, tiny_run
from safetensors.numpy import load_file

from multimix.errors import CheckpointError, InputError, RunConfigError
from server.checkpoint import FILE, read_checkpoint
from server.job import Job, config_sha256, run_job
from server.results import read_results

ROUNDS = 3


class _StoppedError(Exception):
    pass


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("server.federation._SETTLE_S", 0.0)
    monkeypatch.setattr("server.federation._POLL_S", 0.0)


@pytest.fixture
def run(tmp_path):
    """Run a job over fake sites in a folder below tmp_path."""

    def run(*sites, out="run", stop_after=None, error=_StoppedError, away=(), **config):
        def after_round(state):
            if state.round == stop_after:
                raise error

        job = Job(tiny_run(**{"rounds": ROUNDS} | config), tmp_path / out, PLAN_KEY, {"a": ("CC0",)})
        return run_job(FakeGrid(sites or _sites(), away=set(away)), job, after_round=after_round)

    return run


def _sites(names="abc", **misbehaving):
    return [FakeSite(card(name), misbehaves=misbehaving.get(name, {})) for name in names]


def _model(folder):
    return {name: value.tobytes() for name, value in load_file(folder / "model.safetensors").items()}


def _checkpoint(folder, **config):
    return read_checkpoint(folder, config_sha256=config_sha256(tiny_run(**{"rounds": ROUNDS} | config)))


def test_a_finished_job_leaves_figures_page_model_card_and_checkpoint(run, tmp_path):
    results = run()
    assert results.status == "finished"
    assert results == read_results(tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"results.json", "report.html", "model.safetensors", "model_card.json", "heads.jsonl", FILE}
    document = json.loads((tmp_path / "run" / "results.json").read_text())
    assert document["sites"]["a"]["metrics"]["dice"] == pytest.approx(0.9)
    assert document["sites"]["a"]["role"] == "train"


def test_the_last_checkpoint_holds_the_model(run, tmp_path):
    run()
    _, weights = _checkpoint(tmp_path / "run")
    assert {name: value.tobytes() for name, value in weights.items()} == _model(tmp_path / "run")


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_job_ends_in_the_bytes_of_the_uninterrupted_one_under_the_same_name(run, tmp_path, stop_after):
    run(out="whole")
    with pytest.raises(_StoppedError):
        run(out="parts", stop_after=stop_after)
    before = read_results(tmp_path / "parts")
    after = run(out="parts", resume=True)
    assert _model(tmp_path / "parts") == _model(tmp_path / "whole")
    assert after.job_id == before.job_id
    assert [record.round for record in after.rounds] == [1, 2, 3]
    assert after.rounds[: stop_after - 1] == before.rounds[: stop_after - 1]


def test_a_resumed_job_asks_only_for_the_rounds_that_are_left(run):
    with pytest.raises(_StoppedError):
        run(stop_after=2)
    site = FakeSite(card("a"))
    run(site, *_sites("bc"), resume=True)
    assert site.asked == [("train", 3), ("evaluate", 3)]


def test_a_finished_job_can_be_resumed_to_score_it_again(run, tmp_path):
    run()
    before = _model(tmp_path / "run")
    site = FakeSite(card("a"))
    assert run(site, *_sites("bc"), resume=True).status == "finished"
    assert site.asked == [("evaluate", 3)]
    assert _model(tmp_path / "run") == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_whatever_stops_a_job_leaves_stopped_results_with_the_rounds_done_and_a_checkpoint(run, tmp_path, error):
    with pytest.raises(error):
        run(stop_after=2, error=error)
    results = read_results(tmp_path / "run")
    assert results.status == "stopped"
    assert [record.round for record in results.rounds] == [1, 2]
    assert _checkpoint(tmp_path / "run")[0].round == 2
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_job_stopped_in_its_first_round_can_be_resumed(run, tmp_path):
    def interrupts(_site, _message):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*_sites("abc", b={1: interrupts}))
    assert read_results(tmp_path / "run").status == "stopped"
    assert run(resume=True).status == "finished"
    run(out="whole")
    assert _model(tmp_path / "run") == _model(tmp_path / "whole")


def test_a_job_stopped_while_its_model_is_scored_says_so_and_resumes_to_scoring(run, tmp_path):
    class _Interrupts(FakeSite):
        def evaluate(self, message):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(_Interrupts(card("a")), *_sites("bc"))
    assert read_results(tmp_path / "run").status == "stopped"
    site = FakeSite(card("a"))
    assert run(site, *_sites("bc"), resume=True).status == "finished"
    assert site.asked == [("evaluate", 3)]


def test_a_job_broken_off_between_checkpoint_and_report_resumes_after_the_checkpoint(run, tmp_path):
    def blocks_the_report(site, message):
        (tmp_path / "run" / "report.html").unlink()
        (tmp_path / "run" / "report.html").mkdir()  # nothing can be renamed over a folder
        return site.train(message)

    with pytest.raises(InputError, match=r"report\.html") as caught:
        run(*_sites("abc", c={2: blocks_the_report}))
    assert caught.value.reason == "unwritable-file"
    assert _checkpoint(tmp_path / "run")[0].round == 2
    (tmp_path / "run" / "report.html").rmdir()
    run(resume=True)
    run(out="whole")
    assert _model(tmp_path / "run") == _model(tmp_path / "whole")


def test_a_round_without_quorum_stops_the_job_and_names_sites_and_reasons(run, tmp_path):
    sites = _sites("abc", a={2: silent}, b={2: refuses("dp_required")})
    with pytest.raises(InputError, match=r"Round 2 had fewer than 2 .*a: absent, b: dp_required.*resume") as caught:
        run(*sites)
    assert caught.value.reason == "quorum"
    results = read_results(tmp_path / "run")
    assert results.status == "stopped"
    assert [record.round for record in results.rounds] == [1]


def test_a_job_that_lost_its_quorum_resumes_to_the_bytes_of_one_that_never_did(run, tmp_path):
    with pytest.raises(InputError):
        run(*_sites("abc", a={2: silent}, b={2: silent}))
    run(resume=True)
    run(out="whole")
    assert _model(tmp_path / "run") == _model(tmp_path / "whole")


def test_rounds_with_a_quorum_go_on_without_the_sites_that_failed(run):
    misbehaving = {"a": {1: silent}, "b": {2: sends_weights(not_a_number)}, "c": {3: refuses("too_many_steps")}}
    results = run(*_sites("abc", **misbehaving))
    states = [{name: site.state for name, site in record.sites.items()} for record in results.rounds]
    assert states == [
        {"a": "absent", "b": "accepted", "c": "accepted"},
        {"a": "accepted", "b": "rejected", "c": "accepted"},
        {"a": "accepted", "b": "accepted", "c": "refused"},
    ]
    assert [set(record.module_shares["encoder"]) for record in results.rounds] == [{"b", "c"}, {"a", "c"}, {"a", "b"}]


def test_a_site_that_is_away_on_resume_counts_as_absent_and_keeps_its_place_in_the_results(run):
    with pytest.raises(_StoppedError):
        run(stop_after=2)
    results = run(*_sites("ab"), resume=True)
    assert results.rounds[2].sites["c"].state == "absent"
    assert results.sites["c"].metrics == {}
    assert results.sites["a"].metrics["dice"] == pytest.approx(0.9)


def test_sites_that_left_count_for_the_quorum_of_a_resumed_job(run):
    with pytest.raises(_StoppedError):
        run(stop_after=2)
    with pytest.raises(InputError, match="Round 3 had fewer than 2"):
        run(*_sites("a"), resume=True)


def test_a_job_is_not_resumed_with_other_images_at_a_site(run, tmp_path):
    with pytest.raises(_StoppedError):
        run(stop_after=1)
    before = (tmp_path / "run" / FILE).read_bytes()
    changed = FakeSite(card("b", data_fingerprint="other images"))
    with pytest.raises(CheckpointError, match="b has other images") as caught:
        run(changed, *_sites("ac"), resume=True)
    assert caught.value.reason == "checkpoint_of_another_job"
    assert changed.asked == []
    assert (tmp_path / "run" / FILE).read_bytes() == before


def test_a_folder_in_use_is_refused_before_any_site_is_asked(run, tmp_path):
    run()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    site = FakeSite(card("a"))
    with pytest.raises(RunConfigError, match="already holds a run") as caught:
        run(site)
    assert caught.value.reason == "out_in_use"
    assert site.asked == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_there_is_nothing_to_resume_in_an_unused_folder(run, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        run(resume=True)
    assert caught.value.reason == "checkpoint_missing"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change", [{"seed": 7}, {"rounds": 4}, {"local_steps": 2}, {"hold_out": "c"}, {"weighting": "plain"}]
)
def test_a_job_is_not_resumed_with_settings_that_change_its_weights(run, tmp_path, change):
    with pytest.raises(_StoppedError):
        run(stop_after=1)
    before = (tmp_path / "run" / FILE).read_bytes()
    with pytest.raises(CheckpointError) as caught:
        run(resume=True, **change)
    assert caught.value.reason == "checkpoint_of_another_job"
    assert (tmp_path / "run" / FILE).read_bytes() == before


def test_a_job_may_be_resumed_elsewhere_under_another_title_and_deadline(run, tmp_path):
    with pytest.raises(_StoppedError):
        run(stop_after=1)
    (tmp_path / "run").rename(tmp_path / "moved")
    results = run(out="moved", resume=True, title="Another title", deadline_s=77.0, quorum=1, pictures=0)
    run(out="whole")
    assert results.title == "Another title"
    assert _model(tmp_path / "moved") == _model(tmp_path / "whole")


def test_too_few_sites_begin_nothing_and_leave_no_folder(run, tmp_path):
    with pytest.raises(InputError, match="quorum = 3 are needed"):
        run(*_sites("ab"), quorum=3, deadline_s=0.1)
    assert not (tmp_path / "run").exists()


def test_a_held_out_site_is_asked_for_its_score_alone(run):
    unseen = FakeSite(card("unseen", role="held-out"), dice=0.5)
    results = run(*_sites("ab"), unseen)
    assert unseen.asked == [("evaluate", 3)]
    assert all("unseen" not in record.sites for record in results.rounds)
    assert all("unseen" not in shares for r in results.rounds for shares in r.module_shares.values())
    assert results.sites["unseen"].role == "held-out"
    assert results.sites["unseen"].metrics["dice"] == pytest.approx(0.5)


def test_training_alone_fills_the_comparison_and_changes_nothing_of_the_federated_model(run, tmp_path):
    results = run(*_sites("ab"), FakeSite(card("unseen", role="held-out")), out="compared", compare_local=True)
    run(*_sites("ab"), FakeSite(card("unseen", role="held-out")), out="plain")
    assert results.sites["a"].local_only["dice"] == pytest.approx(0.9)
    assert results.sites["unseen"].local_only is None
    assert _model(tmp_path / "compared") == _model(tmp_path / "plain")


def test_a_comparison_that_is_done_is_not_repeated_on_resume(run):
    class _Interrupts(FakeSite):
        def evaluate(self, message):
            if len(self.asked) > 2 * ROUNDS + 1:  # trained twice and scored alone: now the final model
                raise KeyboardInterrupt
            return super().evaluate(message)

    with pytest.raises(KeyboardInterrupt):
        run(_Interrupts(card("a")), compare_local=True)
    site = FakeSite(card("a"))
    results = run(site, resume=True, compare_local=True)
    assert site.asked == [("evaluate", 3)]
    assert results.sites["a"].local_only["dice"] == pytest.approx(0.9)


def test_an_unknown_mask_convention_is_refused_before_a_round(run, tmp_path):
    with pytest.raises(RunConfigError, match="behind_heart"):
        run(mask_convention="hart")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_stops_the_job_with_a_paragraph_and_the_round_before_can_be_resumed(run, tmp_path):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "full_disk.py"), str(tmp_path / "full")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    reason, message = done.stdout.splitlines()[-2:]
    assert reason == "unwritable-file"
    assert "checkpoint.safetensors" in message
    assert "Free space" in message
    files = {path.name for path in (tmp_path / "full").iterdir()}
    assert files == {FILE, "results.json", "report.html", "heads.jsonl"}  # no temporary file
    assert _checkpoint(tmp_path / "full", compare_local=False)[0].round == 2
    assert [record.round for record in read_results(tmp_path / "full").rounds] == [1, 2]
    run(out="full", resume=True)
    run(out="whole")
    assert _model(tmp_path / "full") == _model(tmp_path / "whole")
