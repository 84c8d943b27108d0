"""Whole private jobs over fake sites: noised weights alone come in, ledgers cannot shrink, budgets end the run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_sites import PLAN_KEY, FakeGrid, card, refuses, sends, silent, tiny_run
from flwr.app import Message
from private_sites import PRIVATE, PrivateSite, extension, private_sites
from safetensors.numpy import load_file

from multimix.contract.messages import Teachers
from multimix.contract.records import trained_reply
from multimix.errors import InputError, RunConfigError
from multimix.network import new_network
from multimix.privacy.accountant import Mechanism, price
from multimix.weights import export, save_model
from server.heads import read_history
from server.job import Job, initial_weights, run_job
from server.results import read_results


class _StoppedError(Exception):
    pass


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("server.federation._SETTLE_S", 0.0)
    monkeypatch.setattr("server.federation._POLL_S", 0.0)


@pytest.fixture
def run(tmp_path):
    """Run a private job over fake sites in a folder below tmp_path."""

    def run(*sites, out="run", stop_after=None, **config):
        def after_round(state):
            if state.round == stop_after:
                raise _StoppedError

        job = Job(tiny_run(**{**PRIVATE, **config}), tmp_path / out, PLAN_KEY, {})
        return run_job(FakeGrid(sites or private_sites()), job, after_round=after_round)

    return run


def _states(results):
    return [{name: (site.state, site.reason) for name, site in record.sites.items()} for record in results.rounds]


DONE = ("accepted", None)


def test_a_private_run_takes_all_sites_and_prices_every_round(run):
    results = run()
    assert _states(results) == [dict.fromkeys("abc", DONE)] * 3
    spent = results.privacy_details.patients["a"]
    assert spent.rounds == 3
    assert spent.epsilon == price({Mechanism(1.0, 0.5): 3}, delta=40**-1.1).epsilon
    assert results.privacy.startswith("Patients: ")


def test_the_results_of_a_private_run_hold_no_count_beyond_the_card_and_no_loss(run, tmp_path):
    run()
    document = json.loads((tmp_path / "run" / "results.json").read_text())
    for record in document["rounds"]:
        for site in record["sites"].values():
            assert (site["losses"], site["teachers"], site["seconds"], site["metrics"]) == ({}, {}, {}, {})
    declared = {
        "images": 60,
        "patients": 50,
        "normal_patients": 10,
        "pneumonia_patients": 10,
        "masked_patients": 15,
        "unlabelled_patients": 40 - 20,
    }
    assert all(site["counts"] == declared for site in document["sites"].values())


def test_a_private_plan_asks_for_no_validation(run):
    site = PrivateSite(card("a"))
    run(site)
    assert [json.loads(plan)["evaluate_on"] for plan in site.plans] == ["none"] * 3


def test_what_does_not_learn_stays_bit_for_bit_what_it_was(run, tmp_path):
    config = tiny_run(**PRIVATE, dp_modules="classifier")
    run(dp_modules="classifier")
    model = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in initial_weights(config).items():
        assert (model[name].tobytes() == value.tobytes()) is (not name.startswith("classifier."))


def test_only_normalisation_and_output_layers_move_where_only_they_learn(run, tmp_path):
    run(dp_parameters="affine")
    model = load_file(tmp_path / "run" / "model.safetensors")
    first = initial_weights(tiny_run(**PRIVATE))
    moved = {name for name, value in first.items() if model[name].tobytes() != value.tobytes()}
    assert moved
    assert all(".norm" in name or "classifier." in name or "decoder.output." in name for name in moved)


def _sends_one_array_more(site, message):
    trained = site.trained(message)
    extra = {"encoder.more": np.zeros(1, np.float32)}
    return Message(trained_reply(replace(trained, weights=trained.weights | extra)), reply_to=message)


def _sends_one_array_less(site, message):
    trained = site.trained(message)
    return Message(trained_reply(replace(trained, weights=dict(list(trained.weights.items())[1:]))), reply_to=message)


@pytest.mark.parametrize(
    ("misbehaviour", "reason"),
    [
        (sends(losses={"total": 0.1}), "private_figures"),
        (sends(teachers={"encoder": Teachers(labelled=3)}), "private_figures"),
        (sends(seconds={"total": 1.0}), "private_figures"),
        (sends(pseudo_label_rate=0.5), "private_figures"),
        (_sends_one_array_more, "weights_names"),
        (_sends_one_array_less, "weights_names"),
        (sends(ledger=None), "ledger_head_missing"),
        (sends(ledger=extension("a", ["0" * 64])), "ledger_of_another_site"),
    ],
)
def test_a_private_reply_is_held_to_its_plan_and_its_ledger(run, misbehaviour, reason):
    results = run(*private_sites(b={1: misbehaviour}), rounds=1)
    assert _states(results) == [{"a": DONE, "b": ("rejected", reason), "c": DONE}]
    assert results.privacy_details.patients["b"].rounds == 1  # it trained all the same


def test_the_steps_of_a_private_reply_are_those_of_the_plan_whatever_it_says(run):
    results = run(*private_sites(b={1: sends(steps=7)}), rounds=1)
    assert results.rounds[0].sites["b"].steps == 1


def test_every_order_after_the_first_carries_the_head_that_was_countersigned_last(run):
    site = PrivateSite(card("a"))
    run(site)
    lengths = [signed.head.length if signed else None for signed in site.countersigned]
    assert lengths == [None, 1, 2]
    assert all(signed.by(PLAN_KEY.public_key()) for signed in site.countersigned[1:])


def _with_ledger(proof_of):
    """An honest reply but for the proof of its ledger."""

    def answer(site, message):
        trained = site.trained(message)
        report = trained.report.model_copy(update={"ledger": proof_of(site)})
        return Message(trained_reply(replace(trained, report=report)), reply_to=message)

    return answer


@pytest.mark.parametrize(
    ("proof_of", "reason"),
    [
        (lambda _site: extension("a", ["f" * 64]), "ledger_shorter"),
        (lambda site: extension("a", [site.digests[0], "f" * 64, "e" * 64], 1), "ledger_conflict"),
    ],
)
def test_a_ledger_that_was_cut_or_went_on_from_a_backup_is_refused_and_the_run_goes_on(run, tmp_path, proof_of, reason):
    results = run(*private_sites("abc", a={3: _with_ledger(proof_of)}))
    assert [record.sites["a"].reason for record in results.rounds] == [None, None, reason]
    assert results.privacy_details.patients["a"].rounds == 3
    assert len(read_history(tmp_path / "run" / "heads.jsonl", "a")) == 2


def test_heads_that_outlive_a_run_are_kept_in_the_file_that_is_named(run, tmp_path):
    file = tmp_path / "heads.jsonl"
    sites = private_sites()
    run(*sites, out="one", heads=str(file))
    run(*sites, out="two", heads=str(file))
    assert [record.countersignature.head.length for record in read_history(file, "a")] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "one" / "heads.jsonl").exists()


def test_a_resumed_round_repeats_the_plan_byte_for_byte_and_takes_the_stored_reply(run, tmp_path):
    def interrupts(_site, _message):
        raise KeyboardInterrupt

    sites = private_sites("abc", c={2: interrupts})
    with pytest.raises(KeyboardInterrupt):
        run(*sites)
    asked = {site.card.site: list(site.plans) for site in sites}
    sites[2].misbehaves.clear()
    results = run(*sites, resume=True)
    assert _states(results) == [dict.fromkeys("abc", DONE)] * 3
    for site in sites[:2]:
        first, interrupted, repeated, last = site.plans
        assert asked[site.card.site] == [first, interrupted]
        assert repeated == interrupted
        assert last != repeated
        assert len(site.digests) == 3  # the repeated round spent nothing
    assert results.privacy_details.patients["a"].rounds == 3


def test_a_stored_reply_is_taken_again_although_its_head_was_countersigned_before_the_server_crashed(run, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    kept = []

    def blocks_the_checkpoint(site, message):
        kept.append(checkpoint.read_bytes())
        checkpoint.unlink()
        checkpoint.mkdir()  # nothing can be renamed over a folder
        return site.train(message)

    sites = private_sites("abc", c={2: blocks_the_checkpoint})
    with pytest.raises(InputError):
        run(*sites)
    checkpoint.rmdir()
    checkpoint.write_bytes(kept[0])
    sites[2].misbehaves.clear()
    results = run(*sites, resume=True)
    assert [signed.head.length if signed else 0 for signed in sites[0].countersigned] == [0, 1, 2, 2]
    assert _states(results) == [dict.fromkeys("abc", DONE)] * 3
    assert [len(site.digests) for site in sites] == [3, 3, 3]  # the repeated round spent nothing


SPENT = refuses("dp_budget_run")


def test_a_run_ends_by_itself_when_the_budgets_are_spent(run, tmp_path):
    sites = private_sites("abc", a={3: SPENT}, b={3: refuses("dp_budget_lifetime")}, c={3: SPENT})
    results = run(*sites, rounds=10)
    assert (results.status, results.privacy_details.budget_spent) == ("finished", True)
    assert [record.round for record in results.rounds] == [1, 2, 3]
    assert results.privacy_details.patients["a"].rounds == 2
    assert results.sites["a"].metrics["dice"] == pytest.approx(0.9)  # the last model was scored
    assert sites[0].asked[-1] == ("evaluate", 10)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_the_model_of_a_run_that_budgets_ended_is_that_of_the_round_before(run, tmp_path):
    run(*private_sites("abc", **{site: {3: SPENT} for site in "abc"}), rounds=10, out="ended")
    with pytest.raises(_StoppedError):
        run(rounds=10, out="two", stop_after=2)
    ended, two = (load_file(tmp_path / out / "checkpoint.safetensors") for out in ("ended", "two"))
    assert {n: v.tobytes() for n, v in ended.items()} == {n: v.tobytes() for n, v in two.items()}


def test_a_run_that_budgets_ended_does_nothing_more_when_resumed_than_score_again(run):
    run(*private_sites("abc", **{site: {2: SPENT} for site in "abc"}))
    sites = private_sites()
    results = run(*sites, resume=True)
    assert sites[0].asked == [("evaluate", 3)]
    assert (results.status, results.privacy_details.budget_spent) == ("finished", True)
    assert [record.round for record in results.rounds] == [1, 2]


def test_a_run_goes_on_without_a_site_whose_budget_is_spent_and_shows_why(run, tmp_path):
    results = run(*private_sites("abc", b={2: SPENT, 3: SPENT}))
    assert [record.sites["b"].reason for record in results.rounds] == [None, "dp_budget_run", "dp_budget_run"]
    assert not results.privacy_details.budget_spent
    spent = {site: part.rounds for site, part in results.privacy_details.patients.items()}
    assert spent == {"a": 3, "b": 1, "c": 3}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "dp_budget_run" in page
    assert "budget for a run does not allow another round" in page


def test_a_quorum_lost_for_another_reason_stops_the_run_and_can_be_resumed(run, tmp_path):
    with pytest.raises(InputError, match="a: dp_budget_run, b: absent") as caught:
        run(*private_sites("abc", a={2: SPENT}, b={2: silent}))
    assert caught.value.reason == "quorum"
    stopped = read_results(tmp_path / "run")
    assert (stopped.status, stopped.privacy_details.budget_spent) == ("stopped", False)
    assert stopped.privacy_details.patients["a"].rounds == 2  # one done, one under way


def test_a_run_begins_with_the_weights_that_it_is_given(tmp_path):
    config = tiny_run(start_from=str(tmp_path / "public.safetensors"))
    given = export(new_network(config.method().network, seed=7))
    save_model(tmp_path / "public.safetensors", given, config.method().network, fit="pad")
    begun = initial_weights(config)
    assert {name: value.tobytes() for name, value in begun.items()} == {n: v.tobytes() for n, v in given.items()}


@pytest.mark.parametrize("other", [{"width": 4}, {"row": "u-net"}, {"preset": "private"}])
def test_weights_of_another_network_are_no_start(tmp_path, other):
    path = tmp_path / "public.safetensors"
    network = tiny_run(**other).method().network
    save_model(path, export(new_network(network, 0)), network, fit="pad")
    with pytest.raises(RunConfigError, match="another shape") as caught:
        initial_weights(tiny_run(start_from=str(path)))
    assert caught.value.reason == "start_from"


@pytest.mark.parametrize("content", [None, b"no model"])
def test_a_file_that_is_no_model_is_no_start(tmp_path, content):
    path = tmp_path / "public.safetensors"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError):
        initial_weights(tiny_run(start_from=str(path)))
