import gc
import weakref
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import pytest
from fake_sites import FakeGrid, weights
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from multimix.contract.messages import MODULES, Teachers, TrainReport
from multimix.contract.records import unpack_arrays
from multimix.privacy.central import SiteLevel
from server.admission import Update
from server.aggregation import ModuleAverage, RunningAverage, SiteLevelRound, average, noised_average

NAMES = ("encoder.a", "classifier.b", "decoder.c")
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
COUNTS = st.integers(0, 1_000_000)
UNLABELLED_WEIGHTS = st.floats(0, 1, allow_subnormal=False)
ZEROS = {name: np.zeros(3, np.float32) for name in NAMES}
ONES = {name: np.ones(3, np.float32) for name in NAMES}


def _update(site, values, teachers):
    """An admitted reply; `teachers` are (labelled, unlabelled) for every module, or by module."""
    by_module = teachers if isinstance(teachers, dict) else dict.fromkeys(MODULES, teachers)
    report = TrainReport(
        site=site,
        job_id="job",
        round=1,
        plan_sha256="a" * 64,
        weights_sha256="a" * 64,
        steps=1,
        teachers={
            m: Teachers(labelled=by_module.get(m, (0, 0))[0], unlabelled=by_module.get(m, (0, 0))[1]) for m in MODULES
        },
        losses={},
    )
    return Update(site, report, values, 0.0)


@st.composite
def _updates(draw, sites=st.integers(1, 5)):
    def site(number):
        values = {name: draw(arrays(np.float32, (3,), elements=FLOATS)) for name in NAMES}
        return _update(f"site-{number}", values, {m: (draw(COUNTS), draw(COUNTS)) for m in MODULES})

    return [site(number) for number in range(draw(sites))]


def test_a_module_is_the_mean_weighted_by_labelled_patients_plus_u_times_the_others():
    a = _update("a", weights(1.0), {"encoder": (30, 10), "classifier": (10, 0), "decoder": (0, 40)})
    b = _update("b", weights(5.0), {"encoder": (9, 10), "classifier": (30, 0), "decoder": (8, 0)})
    new = average(weights(), [a, b], unlabelled_weight=0.1)
    # encoder 31 to 10, classifier 10 to 30, decoder 4 to 8
    np.testing.assert_allclose(new.weights["encoder.a"], (31 * 1 + 10 * 5) / 41, rtol=1e-7)
    np.testing.assert_allclose(new.weights["classifier.b"], 4.0, rtol=1e-7)
    np.testing.assert_allclose(new.weights["decoder.c"], (4 * 1 + 8 * 5) / 12, rtol=1e-7)
    assert new.shares["decoder"] == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert new.kept == ()


def test_sums_are_taken_in_float64():
    # In float32 the 1 disappears beside 1e8: (1e8 + 1 - 1e8) / 3 would be 0.
    values = [1e8, 1.0, -1e8]
    updates = [_update(f"s{i}", weights(value), (1, 0)) for i, value in enumerate(values)]
    new = average(weights(), updates, unlabelled_weight=0.0)
    np.testing.assert_allclose(new.weights["encoder.a"], 1 / 3, rtol=1e-6)
    assert new.weights["encoder.a"].dtype == np.float32


@given(updates=_updates(), u=UNLABELLED_WEIGHTS, random=st.randoms(use_true_random=False))
def test_the_order_of_replies_changes_no_bit(updates, u, random):
    shuffled = list(updates)
    random.shuffle(shuffled)
    one, other = (average(ZEROS, some, unlabelled_weight=u) for some in (updates, shuffled))
    assert one.shares == other.shares
    assert {n: v.tobytes() for n, v in one.weights.items()} == {n: v.tobytes() for n, v in other.weights.items()}


@given(updates=_updates(), u=UNLABELLED_WEIGHTS)
def test_the_shares_of_a_module_sum_to_one_or_it_is_kept(updates, u):
    new = average(ZEROS, updates, unlabelled_weight=u)
    assert set(new.shares) | set(new.kept) == set(MODULES)
    for shares in new.shares.values():
        assert sum(shares.values()) == pytest.approx(1.0, abs=1e-12)
        assert min(shares.values()) > 0


@given(updates=_updates(), u=UNLABELLED_WEIGHTS)
def test_the_average_lies_between_the_teachers(updates, u):
    new = average(ZEROS, updates, unlabelled_weight=u)
    for name in NAMES:
        if (shares := new.shares.get(name.split(".")[0])) is None:
            continue
        taught = np.stack([x.weights[name] for x in updates if x.site in shares]).astype(np.float64)
        slack = 1e-6 * np.abs(taught).max(axis=0)
        assert (new.weights[name] >= taught.min(axis=0) - slack).all()
        assert (new.weights[name] <= taught.max(axis=0) + slack).all()


@given(values=arrays(np.float32, (3,), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)), n=COUNTS)
def test_a_site_alone_gives_its_own_weights_exactly(values, n):
    alone = _update("a", dict.fromkeys(NAMES, values), (n, 1))
    new = average(dict.fromkeys(NAMES, values * 0), [alone], unlabelled_weight=0.1)
    for name in NAMES:
        np.testing.assert_array_equal(new.weights[name], values)


def test_a_module_without_teachers_keeps_its_bytes_and_is_reported():
    previous = weights(0.1)
    previous["decoder.c"][:] = [-0.0, 1e-45, 0.1]  # bits that arithmetic would lose
    new = average(
        previous, [_update("a", weights(7.0), {"encoder": (5, 0), "classifier": (5, 0)})], unlabelled_weight=0.1
    )
    assert new.weights["decoder.c"].tobytes() == previous["decoder.c"].tobytes()
    assert new.kept == ("decoder",)
    assert "decoder" not in new.shares
    assert (new.weights["encoder.a"] == 7.0).all()


def test_a_site_that_did_not_teach_a_module_has_no_share_of_it():
    labels_only = _update("labels", weights(1.0), {"encoder": (5, 0), "classifier": (5, 0)})
    masks_only = _update("masks", weights(9.0), {"encoder": (5, 0), "decoder": (5, 0)})
    new = average(weights(), [labels_only, masks_only], unlabelled_weight=0.1)
    assert new.shares["classifier"] == {"labels": 1.0}
    assert (new.weights["classifier.b"] == 1.0).all()
    assert (new.weights["decoder.c"] == 9.0).all()
    assert (new.weights["encoder.a"] == 5.0).all()


def test_without_an_unlabelled_weight_consistency_alone_moves_nothing():
    new = average(weights(2.0), [_update("a", weights(9.0), (0, 100))], unlabelled_weight=0.0)
    assert new.kept == MODULES
    assert (new.weights["encoder.a"] == 2.0).all()


def test_a_module_that_the_network_lacks_is_neither_shared_nor_kept():
    encoder_only = {"encoder.a": np.zeros(2, np.float32)}
    new = average(encoder_only, [_update("a", encoder_only, (5, 0))], unlabelled_weight=0.1)
    assert (set(new.shares), new.kept) == ({"encoder"}, ())


def test_the_inputs_stay_as_they_were():
    previous, answer = weights(1.0), weights(2.0)
    average(previous, [_update("a", answer, (5, 0)), _update("b", weights(4.0), (5, 0))], unlabelled_weight=0.1)
    assert (previous["encoder.a"] == 1.0).all()
    assert (answer["encoder.a"] == 2.0).all()


def test_the_strategy_asks_the_nodes_it_is_told_to_and_averages_only_admitted_replies():
    FakeGrid([])
    strategy = ModuleAverage(unlabelled_weight=0.1)
    strategy.plans, strategy.previous = {4: ConfigRecord(), 7: ConfigRecord()}, weights()
    orders = list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid=None))
    assert [(m.metadata.dst_node_id, m.metadata.message_type) for m in orders] == [
        (4, MessageType.TRAIN),
        (7, MessageType.TRAIN),
    ]
    strategy.take_in(_update("a", weights(3.0), (5, 0)))
    replies = [Message(RecordDict(), reply_to=order) for order in orders]
    averaged, metrics = strategy.aggregate_train(1, replies)
    assert metrics["accepted-sites"] == 1
    assert (unpack_arrays(averaged)["encoder.a"] == 3.0).all()
    assert strategy.result.shares["encoder"] == {"a": 1.0}


def test_the_strategy_without_replies_gives_nothing():
    strategy = ModuleAverage(unlabelled_weight=0.1)
    assert strategy.aggregate_train(1, []) == (None, None)
    assert strategy.result is None


def test_evaluation_orders_go_to_the_same_nodes():
    FakeGrid([])
    strategy = ModuleAverage(unlabelled_weight=0.1)
    strategy.plans = {4: ConfigRecord()}
    orders = list(strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid=None))
    assert [(m.metadata.dst_node_id, m.metadata.message_type) for m in orders] == [(4, MessageType.EVALUATE)]


# 40 patients, of whom 10 have a mask; and 8, of whom 3 have a label, at a site that did not train the decoder.
BOTH_TASKS = _update("both", weights(1.0), {"encoder": (10, 30), "classifier": (0, 30), "decoder": (10, 30)})
NO_DECODER = _update(
    "labels",
    {name: value for name, value in weights(5.0).items() if not name.startswith("decoder")},
    {"encoder": (3, 5), "classifier": (3, 5)},
)


def test_plain_averaging_counts_each_patient_of_a_site_once_in_every_module():
    new = average(weights(3.0), [BOTH_TASKS, NO_DECODER], unlabelled_weight=0.1, weighting="plain")
    for name in ("encoder.a", "classifier.b"):
        np.testing.assert_allclose(new.weights[name], (40 * 1 + 8 * 5) / 48, rtol=1e-7)
    assert new.shares == {module: {"both": 40 / 48, "labels": 8 / 48} for module in MODULES}
    assert new.kept == ()


def test_in_plain_averaging_what_a_site_received_stands_for_what_it_did_not_train():
    new = average(weights(3.0), [BOTH_TASKS, NO_DECODER], unlabelled_weight=0.1, weighting="plain")
    np.testing.assert_allclose(new.weights["decoder.c"], (40 * 1 + 8 * 3) / 48, rtol=1e-7)


def test_in_plain_averaging_a_module_that_no_site_trained_keeps_its_bytes_and_is_reported():
    previous = weights(0.1)
    previous["decoder.c"][:] = [-0.0, 1e-45, 0.1]  # bits that arithmetic would lose
    new = average(previous, [NO_DECODER, replace(NO_DECODER, site="other")], unlabelled_weight=0.1, weighting="plain")
    assert new.weights["decoder.c"].tobytes() == previous["decoder.c"].tobytes()
    assert (new.kept, set(new.shares)) == (("decoder",), {"encoder", "classifier"})


def test_plain_averaging_of_sites_without_patients_changes_nothing():
    new = average(
        weights(2.0), [_update("a", weights(9.0), {"classifier": (5, 0)})], unlabelled_weight=0.1, weighting="plain"
    )
    assert new.kept == MODULES
    assert all((new.weights[name] == 2.0).all() for name in NAMES)


def _without(update, names):
    return replace(update, weights={name: value for name, value in update.weights.items() if name not in names})


@given(updates=_updates(), random=st.randoms(use_true_random=False), missing=st.lists(st.sets(st.sampled_from(NAMES))))
def test_in_plain_averaging_the_order_of_replies_changes_no_bit(updates, random, missing):
    updates = [_without(update, names) for update, names in zip_longest(updates, missing[: len(updates)], fillvalue=())]
    shuffled = list(updates)
    random.shuffle(shuffled)
    one, other = (average(ONES, some, unlabelled_weight=0.1, weighting="plain") for some in (updates, shuffled))
    assert (one.shares, one.kept) == (other.shares, other.kept)
    assert {n: v.tobytes() for n, v in one.weights.items()} == {n: v.tobytes() for n, v in other.weights.items()}


@pytest.mark.parametrize(("weighting", "decoder"), [("per-module", 1.0), ("plain", (40 * 1 + 8 * 3) / 48)])
def test_the_strategy_averages_as_the_run_is_configured(weighting, decoder):
    strategy = ModuleAverage(unlabelled_weight=0.1, weighting=weighting)
    strategy.previous = weights(3.0)
    strategy.take_in(BOTH_TASKS)
    strategy.take_in(NO_DECODER)
    averaged, _ = strategy.aggregate_train(1, [])
    np.testing.assert_allclose(unpack_arrays(averaged)["decoder.c"], decoder, rtol=1e-7)


def _private_update(site, values, module_weights):
    return replace(_update(site, values, (0, 0)), private_weights=module_weights)


def test_private_updates_are_averaged_with_the_weights_of_their_plans():
    a = _private_update("a", weights(1.0), {"encoder": 30.0, "classifier": 10.0, "decoder": 0.0})
    b = _private_update("b", weights(5.0), {"encoder": 10.0, "classifier": 10.0, "decoder": 2.0})
    new = average(weights(), [a, b], unlabelled_weight=0.1)
    np.testing.assert_allclose(new.weights["encoder.a"], (30 * 1 + 10 * 5) / 40)
    np.testing.assert_allclose(new.weights["classifier.b"], 3.0)
    np.testing.assert_allclose(new.weights["decoder.c"], 5.0)


def test_an_array_that_private_plans_keep_frozen_stays_bit_for_bit_what_it_was():
    previous = weights(0.1)
    previous["encoder.frozen"] = np.array([-0.0, 1e-45, 0.1], np.float32)
    updates = [_private_update(site, weights(3.0), dict.fromkeys(MODULES, 1.0)) for site in "ab"]
    new = average(previous, updates, unlabelled_weight=0.1)
    assert new.weights["encoder.frozen"].tobytes() == previous["encoder.frozen"].tobytes()
    assert (new.weights["encoder.a"] == 3.0).all()


QUIET = SiteLevel(noise_multiplier=1e-12, clip_norm=100.0, sites=4, delta=0.1, rounds=3, epsilon=1.0)


def test_site_level_noise_leaves_what_does_not_learn_and_names_its_modules_as_kept():
    fixed = SiteLevelRound(replace(QUIET, noise_multiplier=1.0), ("a", "b"), frozenset({"classifier.b"}))
    new = noised_average(weights(0.1), [], fixed)
    assert (new.weights["classifier.b"] != weights(0.1)["classifier.b"]).all()
    for name in ("encoder.a", "decoder.c"):
        assert new.weights[name].tobytes() == weights(0.1)[name].tobytes()
    assert (set(new.shares), new.kept) == ({"classifier"}, ("encoder", "decoder"))


def test_under_site_level_privacy_a_site_counts_the_same_whatever_it_taught():
    a, b = _update("a", weights(1.0), (1000, 0)), _update("b", weights(3.0), (1, 0))
    new = noised_average(weights(), [a, b], SiteLevelRound(QUIET, tuple("abcd"), frozenset(NAMES)))
    for name in NAMES:
        np.testing.assert_allclose(new.weights[name], (1.0 + 3.0) / 4, rtol=1e-6)
    assert new.shares["encoder"] == dict.fromkeys("abcd", 0.25)


def test_the_strategy_under_site_level_privacy_gives_noise_without_a_reply():
    fixed = SiteLevelRound(replace(QUIET, noise_multiplier=1.0), ("a",), frozenset(NAMES))
    strategy = ModuleAverage(unlabelled_weight=0.1, site_level=fixed)
    strategy.previous = weights(1.0)
    averaged, metrics = strategy.aggregate_train(1, [])
    assert metrics["accepted-sites"] == 0
    assert (unpack_arrays(averaged)["encoder.a"] != 1.0).all()


def test_a_running_average_takes_sites_in_the_order_of_their_names():
    running = RunningAverage(weights(), unlabelled_weight=0.1)
    running.add(_update("b", weights(1.0), (5, 0)))
    with pytest.raises(ValueError, match="order"):
        running.add(_update("a", weights(1.0), (5, 0)))


def test_a_running_average_keeps_no_update():
    running, update = RunningAverage(weights(), unlabelled_weight=0.1), _update("a", weights(1.0), (5, 0))
    running.add(update)
    gone = weakref.ref(update)
    del update
    gc.collect()
    assert gone() is None
