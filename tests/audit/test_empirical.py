"""One empirical audit as a whole: what it says, of whom, and that it says the same again."""

import pytest
import torch

from multimix.audit.direct_tests import NUMBER_OF_TESTS
from multimix.audit.empirical import EmpiricalResult, audit
from multimix.audit.observation import Subject
from multimix.errors import Refused
from multimix.network import new_network
from multimix.privacy.canaries import AUDIT_HEAD
from multimix.privacy.training import train_privately
from tests.client.tiny_hospitals import DP, PRIVATE_METHOD
from tests.support import phantom_films, rows, training_data, write_films

CANARIES, PATIENTS, STEPS = 256, 2, 4
SHORT = DP.model_copy(update={"noise_multiplier": 1.0})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    store = write_films(tmp_path_factory.mktemp("films") / "store", phantom_films(4))
    return training_data(store, labelled=rows(0, 1), unlabelled=rows(2, 3))


def audited(data, train=train_privately, *, dp=SHORT, claimed=10.0, seed=1, **given) -> EmpiricalResult:
    subject = Subject(train, lambda: new_network(PRIVATE_METHOD.network, 0), data, PRIVATE_METHOD, dp, STEPS)
    asked = {"canaries": CANARIES, "patients": PATIENTS, "delta": 1e-5, "code": "0.1.0+test"} | given
    return audit(subject, claim=lambda _delta: claimed, seed=seed, **asked)


@pytest.fixture(scope="module")
def honest(data):
    return audited(data)


def shouting(network, data, method, work, dp, *, secret, progress=None, canaries=None, watch=None):
    """A trainer without noise whose every step shows who takes part, ten thousand times too loud."""
    for index in range(work.steps):
        there = torch.zeros(CANARIES, dtype=torch.float64)
        if canaries is not None:
            there[torch.from_numpy(canaries.coordinates)] = 1e4
        watch(index, {AUDIT_HEAD: there, "bias": torch.full((8,), float(len(data.pools.labelled_classification)))})
    return {}


def shouting_and_telling(*given, progress=None, **named):
    for done in range(given[3].steps if progress else 0):
        progress(done + 1)
    return shouting(*given, **named)


def test_an_honest_trainer_is_not_flagged(honest):
    assert honest.flags == ()
    assert (honest.canaries, honest.steps, honest.neighbours.patients) == (CANARIES, STEPS, PATIENTS)
    assert len(honest.tests) == NUMBER_OF_TESTS == len({test.name for test in honest.tests})
    assert honest.included + 0 == pytest.approx(CANARIES / 2, abs=4 * CANARIES**0.5 / 2)


def test_an_audit_repeats_by_its_seed_but_for_the_time_it_took(data, honest):
    again = audited(data)
    assert again.model_dump(exclude={"seconds"}) == honest.model_dump(exclude={"seconds"})
    assert audited(data, seed=2).tests != honest.tests


def test_what_it_was_given_stands_beside_what_it_found(honest):
    assert (honest.noise_multiplier, honest.sampling_rate, honest.clip_norm) == (1.0, 0.5, 1.0)
    assert (honest.claimed_epsilon, honest.delta, honest.seed, honest.code) == (10.0, 1e-5, 1, "0.1.0+test")
    assert honest.seconds > 0


def test_a_result_is_the_same_after_a_way_through_json(honest):
    assert EmpiricalResult.model_validate_json(honest.model_dump_json()) == honest


def test_every_kind_of_flag_is_named(data):
    """It leaks everything, so that bounds flag too where the claim is below what the canaries can show."""
    result = audited(data, shouting, claimed=0.5)
    assert {"bound_fdp_approximate", "bound_fdp_gaussian", "noise", "sensitivity", "neighbours"} <= set(result.flags)


def test_no_bound_is_above_its_ceiling_and_the_loudest_trainer_reaches_it(data):
    for bound in audited(data, shouting).bounds:
        assert bound.epsilon == pytest.approx(bound.ceiling)
        assert bound.correct == bound.guesses


def test_a_bound_flags_only_beyond_the_claim(data):
    """Of 256 canaries 222 at most are guessed, all right here: with a claim above that ceiling no bound can flag."""
    most = max(bound.ceiling for bound in audited(data, shouting).bounds)
    assert not [flag for flag in audited(data, shouting, claimed=most).flags if flag.startswith("bound_")]


def test_each_step_and_each_patient_is_told(data):
    told = []
    audited(data, shouting_and_telling, progress=lambda *what: told.append(what))
    steps = [("canaries", done, STEPS) for done in range(1, STEPS + 1)]
    assert told == [*steps, *(("neighbours", done, PATIENTS) for done in range(1, PATIENTS + 1))]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"canaries": 63}, "audit_parameters"),
        ({"patients": 1}, "audit_patients"),
        ({"false_alarm_rate": 0.0}, "audit_parameters"),
    ],
)
def test_an_audit_that_shows_nothing_is_refused(data, given, reason):
    with pytest.raises(Refused) as caught:
        audited(data, **given)
    assert caught.value.reason == reason
