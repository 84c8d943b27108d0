"""What a private run asks of each site follows from configuration and cards, and never costs more than was asked."""

import pytest
from fake_sites import CONVENTION, card, tiny_run
from private_sites import PRIVATE

from multimix.contract.messages import ClassCounts
from multimix.contract.run_config import RunConfig
from multimix.errors import InputError, RunConfigError
from multimix.network import new_network
from multimix.privacy.accountant import Mechanism, price
from multimix.weights import export
from server.checkpoint import JobState
from server.private_plan import (
    before_training,
    budgets_are_spent,
    chosen_modules,
    forecast,
    is_public,
    learning,
    patient_privacy,
    with_privacy,
)
from server.results import RoundResult, SiteRound


def _config(**fields):
    return tiny_run(**{**PRIVATE, **fields})


def _plan(site_card, *, mask_convention=CONVENTION, **config):
    return patient_privacy(_config(**config), site_card, mask_convention=mask_convention)


def _state(*cards, **fields):
    return JobState(
        job_id="job",
        config_sha256="",
        round=0,
        cards={each.site: each for each in cards},
        mask_convention=CONVENTION,
        started="2026-11-03T12:00:00+00:00",
        **fields,
    )


def _weights(config):
    return export(new_network(config.method().network, 0))


def test_a_site_with_labels_and_masks_teaches_all_modules_and_weighs_what_it_declares():
    # 40 training patients, 10 + 10 labels, 15 masks; a patient without weighs a tenth.
    plan = _plan(card("a"))
    assert plan.modules == ("encoder", "classifier", "decoder")
    assert plan.module_weights == pytest.approx(
        {"encoder": 20 + 0.1 * 20, "classifier": 20 + 0.1 * 20, "decoder": 15 + 0.1 * 25}
    )


def test_a_site_of_one_class_does_not_teach_the_classifier():
    plan = _plan(card("a", labelled_patients=ClassCounts(normal=20)))
    assert plan.modules == ("encoder", "decoder")
    assert plan.module_weights["encoder"] == pytest.approx(15 + 0.1 * 25)  # of the masks alone


def test_a_site_of_one_class_teaches_the_classifier_where_the_run_wants_it():
    plan = _plan(card("a", labelled_patients=ClassCounts(normal=20)), one_class_sites="plain")
    assert plan.module_weights["classifier"] == pytest.approx(20 + 0.1 * 20)


def test_a_site_without_labels_and_masks_teaches_all_modules_by_consistency():
    plan = _plan(card("a", labelled_patients=ClassCounts(), masked_patients={}))
    assert plan.module_weights == pytest.approx(dict.fromkeys(("encoder", "classifier", "decoder"), 0.1 * 40))


def test_masks_of_another_convention_do_not_teach_the_decoder():
    assert "decoder" not in _plan(card("a"), mask_convention="another").modules
    assert "decoder" in _plan(card("a"), mask_convention=None).modules


def test_a_module_that_is_not_to_learn_is_in_no_plan():
    assert _plan(card("a"), dp_modules="classifier").modules == ("classifier",)


def test_a_module_that_the_network_lacks_is_in_no_plan():
    assert _plan(card("a"), row="u-net").modules == ("encoder", "decoder")


@pytest.mark.parametrize("modules", ["", " , ", "encoder,head", "encoder", " encoder ,encoder"])
def test_modules_that_do_not_exist_or_have_nothing_to_learn_from_are_refused(modules):
    with pytest.raises(RunConfigError) as caught:
        chosen_modules(RunConfig(dp_modules=modules))
    assert caught.value.reason == "dp_modules"


def test_a_plan_says_what_was_declared_and_configured():
    plan = _plan(card("a"), dp_clip_norm=0.5, dp_images_per_patient=3, dp_parameters="affine", dp_delta=1e-3)
    assert (plan.declared_patients, plan.sampling_rate, plan.noise_multiplier) == (40, 0.5, 1.0)
    assert (plan.clip_norm, plan.images_per_patient, plan.parameters) == (0.5, 3, "affine")
    assert (plan.delta, plan.rounds) == (1e-3, 3)


def test_delta_is_the_declared_patients_to_the_power_of_minus_1_1_unless_set():
    assert _plan(card("a")).delta == pytest.approx(40**-1.1)


def test_calibrated_noise_prices_the_whole_run_at_or_below_epsilon_and_no_more_than_needed():
    plan = _plan(card("a"), dp_noise_multiplier=0.0, dp_epsilon=4.0, dp_delta=1e-3)

    def epsilon(noise):
        return price({Mechanism(noise, 0.5): 3}, delta=1e-3).epsilon

    assert epsilon(plan.noise_multiplier) <= 4.0 < epsilon(plan.noise_multiplier - 0.001)
    assert plan.epsilon == 4.0


@pytest.mark.parametrize(
    "impossible",
    [
        {"dp_noise_multiplier": 0.01},  # below what the accountants know
        {"dp_delta": 1e-12},
        {"dp_sampling_rate": 1e-7},
        {"rounds": 100_000, "local_steps": 1000},
        {"dp_noise_multiplier": 0.1, "dp_sampling_rate": 1.0},  # an epsilon of hundreds
    ],
)
def test_privacy_that_cannot_be_had_or_priced_is_refused_before_the_run(impossible):
    with pytest.raises(RunConfigError, match="a with 40 declared patients") as caught:
        _plan(card("a"), **impossible)
    assert caught.value.reason == "dp_parameters"


def test_a_site_with_one_declared_patient_cannot_train_privately():
    alone = card("a", training_patients=1, labelled_patients=ClassCounts(), masked_patients={})
    with pytest.raises(RunConfigError):
        _plan(alone)


def test_the_forecast_is_the_last_number_of_rounds_within_the_limit():
    plan = _plan(card("a"), local_steps=2)
    rounds = forecast(plan, limit_epsilon=6.0, local_steps=2)

    def epsilon(count):
        return price({Mechanism(1.0, 0.5): 2 * count}, delta=plan.delta).epsilon

    assert 0 < rounds < 30
    assert epsilon(rounds) <= 6.0 < epsilon(rounds + 1)


def test_training_sites_get_a_plan_and_held_out_ones_do_not():
    config = _config()
    state = with_privacy(config, _state(card("a"), card("unseen", role="held-out")), _weights(config))
    assert set(state.privacy) == {"a"}
    assert state.site_level is None


def test_a_plan_that_was_fixed_stays_as_it_was_and_a_new_site_gets_its_own():
    config = _config()
    before = with_privacy(config, _state(card("a")), _weights(config))
    kept = {"a": before.privacy["a"].model_copy(update={"sampling_rate": 0.25})}
    after = with_privacy(config, _state(card("a"), card("b"), privacy=kept), _weights(config))
    assert after.privacy["a"] == kept["a"]
    assert after.privacy["b"].sampling_rate == 0.5


def test_a_site_that_would_learn_nothing_is_named():
    config = _config(dp_modules="decoder")
    with pytest.raises(InputError, match=r"^b: ") as caught:
        with_privacy(config, _state(card("a"), card("b", masked_patients={})), _weights(config))
    assert caught.value.reason == "dp_nothing_taught"


@pytest.mark.parametrize("dp", ["patient", "site", "both"])
def test_a_private_run_trains_no_site_alone_besides(dp):
    config = _config(dp=dp, compare_local=True, dp_accept=True)
    with pytest.raises(RunConfigError) as caught:
        with_privacy(config, _state(card("a")), _weights(config))
    assert caught.value.reason == "compare_local"


@pytest.mark.parametrize("dp", ["patient", "site", "both"])
def test_a_private_run_is_not_averaged_by_the_patients_of_a_round(dp):
    config = _config(dp=dp, weighting="plain", dp_accept=True)
    with pytest.raises(RunConfigError, match=r"fixed in the plan.*leave weighting out") as caught:
        with_privacy(config, _state(card("a")), _weights(config))
    assert caught.value.reason == "weighting"


def test_a_run_that_is_not_private_has_no_plans():
    config = tiny_run()
    state = with_privacy(config, _state(card("a")), _weights(config))
    assert (state.privacy, state.site_level) == ({}, None)


def test_a_hollow_site_level_claim_is_explained_and_asked_for():
    config = tiny_run(dp="site")
    with pytest.raises(RunConfigError, match=r"fewer than the 100.*dp-accept=true") as caught:
        with_privacy(config, _state(card("a"), card("b")), _weights(config))
    assert caught.value.reason == "dp_hollow"


def test_an_accepted_site_level_claim_counts_the_sites_that_train_and_the_numbers_that_learn():
    config = tiny_run(dp="site", dp_accept=True)
    state = _state(card("a"), card("b"), card("unseen", role="held-out"))
    after = with_privacy(config, state, _weights(config))
    assert (after.site_level.sites, after.site_level.rounds) == (2, 3)
    assert after.site_level.epsilon <= 8.0
    assert after.site_level.delta == pytest.approx(1 / 20)  # 1 / (10 n)
    assert after.parameters == sum(value.size for value in _weights(config).values())


def test_the_numbers_that_learn_are_those_of_any_sites_plan():
    config = _config(dp_modules="classifier")
    weights = _weights(config)
    learned = learning(weights, {"a": _plan(card("a"), dp_modules="classifier")})
    assert learned == {name for name in weights if name.startswith("classifier.")}


def test_fixed_constants_of_a_standardised_network_never_learn():
    weights = _weights(tiny_run(preset="private"))
    constants = {name for name in weights if "standard_" in name}
    assert constants
    assert learning(weights, {}) == set(weights) - constants


def test_a_site_that_joins_later_is_refused_where_site_level_noise_was_made_for_fewer():
    config = tiny_run(dp="site", dp_accept=True)
    fixed = with_privacy(config, _state(card("a")), _weights(config)).site_level
    with pytest.raises(InputError, match="2 sites are here to train.*fixed for 1") as caught:
        with_privacy(config, _state(card("a"), card("b"), site_level=fixed), _weights(config))
    assert caught.value.reason == "too_many_sites"


def _record(**sites):
    states = {name: SiteRound(state=state, reason=reason) for name, (state, reason) in sites.items()}
    return RoundResult(round=1, seconds=0.0, sites=states)


SPENT, GONE, DONE = ("refused", "dp_budget_run"), ("absent", "absent"), ("accepted", None)


@pytest.mark.parametrize(
    ("sites", "spent"),
    [
        ({"a": SPENT, "b": ("refused", "dp_budget_lifetime")}, True),
        ({"a": SPENT, "b": DONE}, True),
        ({"a": SPENT, "b": GONE}, False),
        ({"a": DONE, "b": DONE}, False),
        ({"a": ("refused", "dp_epsilon")}, False),
    ],
)
def test_budgets_are_spent_only_where_nothing_else_keeps_a_site_away(sites, spent):
    assert budgets_are_spent(_record(**sites)) is spent


@pytest.mark.parametrize("reason", ["dp_budget_run", "dp_epsilon", "population_exposed"])
def test_a_refusal_before_training_is_public_and_cost_nothing(reason):
    assert before_training(reason)
    assert is_public(reason)


@pytest.mark.parametrize("reason", ["training_diverged", "internal_error", "no_training_images", "unknown", ""])
def test_a_refusal_that_may_come_after_training_counts_as_spent_and_is_not_public(reason):
    assert not before_training(reason)
    assert not is_public(reason)


@pytest.mark.parametrize("reason", ["ledger_disk_full", "ledger_conflict"])
def test_trouble_with_a_ledger_is_public_but_may_come_after_the_round_was_spent(reason):
    assert is_public(reason)
    assert not before_training(reason)


@pytest.mark.parametrize("reason", ["agent_unavailable", "job_not_approved", "site_busy", "site_paused"])
def test_a_refusal_that_may_follow_a_reservation_is_public_and_counts_as_a_round_spent(reason):
    assert is_public(reason)
    assert not before_training(reason)
