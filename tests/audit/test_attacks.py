"""Both attacks on a model that the real private training released."""

from functools import partial

import numpy as np
import pytest

from multimix.audit.attacks import Target, attack
from multimix.audit.membership import permitted_auc, permitted_tpr
from multimix.audit.observation import Subject
from multimix.batches import TrainingData
from multimix.network import new_network
from multimix.privacy.training import train_privately
from tests.client.tiny_hospitals import DP, PRIVATE_METHOD, dealt, write_radiographs

SPLITS = ("train", "test")
STEPS = 2


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    return dealt(write_radiographs(tmp_path_factory.mktemp("radiographs")), tmp_path_factory.mktemp("cache"))["labels"]


def attacked(hospital, dp, *, shadow_models=0, seed=0, splits=SPLITS, train=train_privately):
    store = hospital.store()
    data = TrainingData(hospital.name, store, hospital.pools(store, None))
    subject = Subject(train, partial(new_network, PRIVATE_METHOD.network, 0), data, PRIVATE_METHOD, dp, STEPS)
    network = subject.network()
    train(network, data, PRIVATE_METHOD, subject.work(), dp, secret=b"s" * 32)
    rows = [hospital.evaluation_rows(store, split) for split in splits]
    target = Target(network, *rows, conventions=None)
    return attack(subject, target, epsilon=2.0, delta=0.01, shadow_models=shadow_models, seed=seed)


def test_both_attacks_stand_beside_what_the_claim_permits(hospital):
    result = attacked(hospital, DP.model_copy(update={"noise_multiplier": 2.0}), shadow_models=4)
    assert [each.name for each in result.attacks] == ["loss threshold", "likelihood ratio"]
    assert {(each.members, each.others) for each in result.attacks} == {(8, 4)}
    assert (result.permitted_auc, result.permitted_tpr) == (permitted_auc(2.0, 0.01), permitted_tpr(0.01, 2.0, 0.01))


def test_without_shadow_models_there_is_no_likelihood_ratio(hospital):
    assert [each.name for each in attacked(hospital, DP).attacks] == ["loss threshold"]


def test_the_same_seed_gives_the_same_figures(hospital):
    assert attacked(hospital, DP, shadow_models=4, seed=3) == attacked(hospital, DP, shadow_models=4, seed=3)


def test_with_members_and_others_exchanged_the_auc_is_what_it_lacks_to_1(hospital):
    (one,), (other,) = (attacked(hospital, DP, splits=splits).attacks for splits in (SPLITS, SPLITS[::-1]))
    assert (one.members, other.members) == (8, 4)
    assert one.auc + other.auc == pytest.approx(1.0)


def test_shadow_models_learn_from_both_sides_and_never_from_the_patients_they_leave_out(hospital):
    seen = []

    def watched(network, data, *rest, **named):
        pools = data.pools
        seen.append(set(data.store.patient[np.union1d(pools.labelled_classification, pools.unlabelled_classification)]))
        return train_privately(network, data, *rest, **named)

    attacked(hospital, DP, shadow_models=4, train=watched)
    _target, *shadows = seen
    everyone = set().union(*shadows)
    assert len(everyone) == 12
    assert [len(each) for each in shadows] == [6] * 4
    assert shadows[0] | shadows[1] == everyone == shadows[2] | shadows[3]
