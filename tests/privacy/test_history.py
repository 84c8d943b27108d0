"""What a ledger has cost: every reservation counts, and what cannot be priced is told apart."""

from hypothesis import given
from hypothesis import strategies as st

from multimix.privacy.accountant import Mechanism
from multimix.privacy.history import history_of, non_private, seeded, spent_runs
from tests.privacy import sample_ledger as sample

QUIET = Mechanism(noise_multiplier=2.0, sampling_rate=0.064)
LOUD = Mechanism(noise_multiplier=1.0, sampling_rate=0.064)


def test_an_uncommitted_reservation_costs_as_much_as_a_committed_one():
    entries = sample.ledger([sample.reservation(steps=16), sample.commit(1), sample.reservation(steps=5)])
    assert history_of(entries) == {LOUD: 16 + 5}


def test_mechanisms_are_priced_apart_and_runs_can_be_told_apart():
    quiet = sample.patient_privacy(noise_multiplier=2.0)
    entries = sample.ledger([sample.reservation(steps=3), sample.reservation("second", dp=quiet, steps=7)])
    assert history_of(entries) == {LOUD: 3, QUIET: 7}
    assert history_of(entries, "second") == {QUIET: 7}
    assert history_of(entries, "third") == {}


def test_non_private_training_is_infinite_for_its_run_and_for_the_lifetime_only():
    entries = sample.ledger([sample.reservation("first"), sample.non_private("plain")])
    assert non_private(entries)
    assert non_private(entries, "plain")
    assert not non_private(entries, "first")


def test_a_known_seed_is_seen_in_its_run():
    entries = sample.ledger([sample.reservation("first"), sample.reservation("simulated", seeded=True)])
    assert seeded(entries)
    assert seeded(entries, "simulated")
    assert not seeded(entries, "first")


def test_runs_that_only_looked_or_were_refused_spent_nothing():
    bodies = [
        sample.evaluation("looked"),
        sample.refusal("greedy"),
        sample.non_private("plain"),
        sample.reservation("first"),
        sample.non_private("plain"),
    ]
    assert spent_runs(sample.ledger(bodies)) == ("plain", "first")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.sampled_from([1.0, 2.0])), max_size=12))
def test_the_histories_of_the_runs_add_up_to_the_history_of_the_population(spent):
    bodies = [
        sample.reservation(job, steps=steps, dp=sample.patient_privacy(noise_multiplier=sigma))
        for job, steps, sigma in spent
    ]
    entries = sample.ledger(bodies)
    by_run = [history_of(entries, job) for job in spent_runs(entries)]
    for mechanism, steps in history_of(entries).items():
        assert steps == sum(history.get(mechanism, 0) for history in by_run)
