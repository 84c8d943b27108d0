"""What a run cost is the worst case: what was asked counts, whatever came back, and no figure is rounded down."""

import pytest
from fake_sites import CONVENTION, card, tiny_run
from hypothesis import given
from hypothesis import strategies as st
from private_sites import PRIVATE

from multimix.privacy.accountant import Mechanism, price
from multimix.privacy.central import SiteLevel
from server.checkpoint import JobState
from server.privacy_results import NOT_PRIVATE, SEEDED, in_words, privacy_of, two_decimals, two_digits
from server.private_plan import patient_privacy
from server.results import Privacy, RoundResult, SiteLevelPrivacy, SiteRound

ROUNDS = 4
CONFIG = tiny_run(**{**PRIVATE, "rounds": ROUNDS, "local_steps": 2})
SITE_LEVEL = SiteLevel(noise_multiplier=2.0, clip_norm=1.0, sites=4, delta=0.01, rounds=ROUNDS, epsilon=9.0)


def _state(*answers, sites="a", privacy=True, **fields):
    """The job after one round for each of `answers`: (state, reason) of every site."""
    rounds = tuple(
        RoundResult(round=number, seconds=0.0, sites=dict.fromkeys(sites, SiteRound(state=answer[0], reason=answer[1])))
        for number, answer in enumerate(answers, start=1)
    )
    cards = {site: card(site) for site in sites}
    plans = {site: patient_privacy(CONFIG, cards[site], mask_convention=CONVENTION) for site in sites}
    return JobState(
        job_id="job",
        config_sha256="",
        round=len(rounds),
        rounds=rounds,
        cards=cards,
        mask_convention=CONVENTION,
        privacy=plans if privacy else {},
        started="2026-11-03T12:00:00+00:00",
        **fields,
    )


def _epsilon(rounds):
    return price({Mechanism(1.0, 0.5): 2 * rounds}, delta=40**-1.1)


DONE, ABSENT, SPENT = ("accepted", None), ("absent", "absent"), ("refused", "dp_budget_run")
REJECTED, DIVERGED = ("rejected", "weights_hash"), ("refused", "training_diverged")


@pytest.mark.parametrize(
    ("answers", "rounds"),
    [
        ([DONE, DONE, DONE, DONE], 4),
        ([DONE, ABSENT, ABSENT, DONE], 4),  # it may have trained and not been heard
        ([DONE, REJECTED, DONE, DONE], 4),
        ([DONE, DIVERGED, DONE, DONE], 4),  # what it refused for is known only after training
        ([DONE, DONE, SPENT, SPENT], 2),
    ],
)
def test_every_round_counts_that_a_site_was_asked_for_and_did_not_refuse_beforehand(answers, rounds):
    spent = privacy_of(CONFIG, _state(*answers), status="finished").patients["a"]
    assert (spent.rounds, spent.steps) == (rounds, 2 * rounds)
    assert spent.epsilon == _epsilon(rounds).epsilon
    assert (spent.prv, spent.pld) == (_epsilon(rounds).prv, _epsilon(rounds).pld)


def test_a_stopped_run_counts_the_round_under_way():
    assert privacy_of(CONFIG, _state(DONE, DONE), status="stopped").patients["a"].rounds == 3
    assert privacy_of(CONFIG, _state(*[DONE] * ROUNDS), status="stopped").patients["a"].rounds == ROUNDS


def test_a_run_that_budgets_ended_has_no_round_under_way():
    state = _state(DONE, SPENT, budget_spent=True)
    privacy = privacy_of(CONFIG, state, status="stopped")
    assert privacy.patients["a"].rounds == 1
    assert privacy.budget_spent


def test_while_a_run_goes_on_it_is_not_priced_and_the_words_give_what_is_planned():
    privacy = privacy_of(CONFIG, _state(DONE), status="running")
    assert privacy.patients["a"].epsilon is None
    assert "epsilon = 8.00 (at a)" in in_words(privacy)


def test_a_number_of_steps_that_the_accountants_refuse_counts_as_the_whole_run(monkeypatch):
    from multimix.errors import Refused

    def disagrees(history, *, delta):
        if history == {Mechanism(1.0, 0.5): 4}:
            raise Refused("accountants_disagree")
        return price(history, delta=delta)

    monkeypatch.setattr("server.privacy_results.price", disagrees)
    spent = privacy_of(CONFIG, _state(DONE, DONE), status="finished").patients["a"]
    assert spent.epsilon == _epsilon(ROUNDS).epsilon


def test_site_level_counts_published_averages_and_a_round_lost_before_its_checkpoint_was_none():
    state = _state(DONE, DONE, privacy=False, site_level=SITE_LEVEL, parameters=100)
    sites = privacy_of(CONFIG, state, status="stopped").sites
    assert sites.rounds == 2
    assert sites.epsilon == price({Mechanism(2.0, 1.0): 2}, delta=0.01).epsilon
    assert sites.noise_to_signal == pytest.approx(2.0 * 100**0.5 / 4)


def test_a_run_that_is_not_private_says_infinity():
    assert privacy_of(tiny_run(), _state(DONE, privacy=False), status="finished") == Privacy()
    assert in_words(Privacy()) == NOT_PRIVATE
    assert "infinity" in NOT_PRIVATE


def test_a_simulation_with_known_noise_is_not_called_private():
    seeded = CONFIG.model_copy(update={"dp_seeded": True})
    assert in_words(privacy_of(seeded, _state(*[DONE] * ROUNDS), status="finished")) == SEEDED
    assert "infinity" in SEEDED


def test_the_words_give_the_largest_epsilon_and_the_largest_delta_of_all_sites():
    privacy = privacy_of(CONFIG, _state(*[DONE] * ROUNDS, sites="ab"), status="finished")
    other = privacy.patients["b"].model_copy(update={"epsilon": 1.234, "delta": 0.0512})
    one = privacy.patients["a"].model_copy(update={"epsilon": 2.001, "delta": 0.001})
    words = in_words(privacy.model_copy(update={"patients": {"a": one, "b": other}}))
    assert "epsilon = 2.01 (at a) at delta = 0.052 at most" in words


def test_both_levels_are_told_apart_and_site_level_alone_promises_nothing_to_patients():
    sites = SiteLevelPrivacy(
        epsilon=7.5,
        delta=0.01,
        planned_epsilon=8,
        noise_multiplier=1,
        clip_norm=1,
        sites=4,
        rounds=2,
        noise_to_signal=3,
    )
    alone = in_words(Privacy(sites=sites))
    assert "Hospitals: epsilon = 7.50 at delta = 0.01 for each of 4" in alone
    assert "not against the coordinator" in alone
    assert "Single patients are not protected from the coordinator (epsilon = infinity)" in alone
    patients = privacy_of(CONFIG, _state(DONE), status="finished").patients
    both = in_words(Privacy(sites=sites, patients=patients))
    assert both.startswith("Patients: ")
    assert "Hospitals: " in both
    assert "infinity" not in both


@given(st.floats(1e-6, 100))
def test_an_epsilon_is_never_shown_below_what_it_is(epsilon):
    assert epsilon <= float(two_decimals(epsilon)) < epsilon + 0.01 + 1e-9


@given(st.floats(1e-12, 0.99))
def test_a_delta_is_never_shown_below_what_it_is(delta):
    assert delta <= float(two_digits(delta)) <= delta * 1.1 + 1e-15
