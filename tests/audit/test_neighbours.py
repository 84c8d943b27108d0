"""Removing one patient: by how much the sum moves, and whether what others add moves with it.

The trainers here add up numbers that the tests choose, so that every difference is known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isnan, sqrt

import numpy as np
import pytest
import torch

from multimix.audit.neighbours import TOLERANCE, compare_neighbours
from multimix.audit.observation import Subject
from multimix.errors import Refused
from multimix.network import new_network
from multimix.privacy.noise import SecretStream
from multimix.privacy.training import Population, train_privately
from tests.client.tiny_hospitals import DP, METHOD, PRIVATE_METHOD
from tests.support import phantom_films, rows, training_data, write_films

NOISY = DP.model_copy(update={"clip_norm": 0.5, "declared_patients": 40, "noise_multiplier": 3.0})
PATIENTS, STEPS = 6, 5
Sum = Callable[[list[int]], Sequence[float]]  # of the patients in the step: their sum, in units of the clip norm


@dataclass
class Adds:
    """A trainer that adds noise to a sum of its own and remembers what it was asked."""

    sum_of: Sum
    asked: list = None

    def __call__(self, network, data, method, work, dp, *, secret, progress=None, canaries=None, watch=None):
        self.asked = [*(self.asked or []), (work, dp)]
        present = np.unique(data.store.patient[Population.of(data).rows]).tolist()
        noise = dp.noise_multiplier * SecretStream(secret).normals("noise", 0, 2)
        value = torch.tensor(self.sum_of(present), dtype=torch.float64) * NOISY.clip_norm
        watch(0, {"w": (value + dp.clip_norm * torch.from_numpy(noise)) / (dp.sampling_rate * dp.declared_patients)})
        return {}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    store = write_films(tmp_path_factory.mktemp("films") / "store", phantom_films(PATIENTS))
    return training_data(
        store, labelled=rows(0, 1, 2), unlabelled=rows(3, 4, 5), masked=rows(0, 3), unmasked=rows(1, 2, 4, 5)
    )


def subject(data, train) -> Subject:
    return Subject(train, lambda: None, data, PRIVATE_METHOD, NOISY, STEPS)


def compared(data, sum_of: Sum, patients: int = PATIENTS):
    return compare_neighbours(subject(data, Adds(sum_of)), patients=patients, seed=0)


def test_patients_that_each_add_the_clip_norm_are_apart_and_within_the_bound(data):
    found = compared(data, lambda present: [len(present), 0.0])
    assert found.sensitivity == pytest.approx(1, abs=1e-12)
    assert found.leakage == pytest.approx(0, abs=1e-9)
    assert (found.patients, found.flagged) == (PATIENTS, False)


def test_one_patient_beyond_the_bound_is_flagged_by_sensitivity(data):
    """Patient 4 adds (0.9, 1.2), of norm 1.5; the others (0.6, 0.8), of norm 1."""
    found = compared(
        data, lambda present: np.sum([[0.9, 1.2] if each == 4 else [0.6, 0.8] for each in present] or [[0, 0]], axis=0)
    )
    assert found.sensitivity == pytest.approx(1.5)
    assert found.leakage == pytest.approx(0, abs=1e-9)
    assert found.flagged


def test_a_mean_over_the_step_leaks_though_nobody_moves_it_by_much(data):
    """Of 6 patients one adds 1 and a mean m is taken over all: with 1/6, without 0, alone 1; 1/6 - 0 - 1 = -5/6.

    Without one of the others: 1/6 - 1/5 - 0 = -1/30, which is less.
    """
    found = compared(data, lambda present: [float(0 in present) / max(1, len(present)), 0.0])
    assert found.leakage == pytest.approx(5 / 6)
    assert found.sensitivity == pytest.approx(1 / 6)
    assert found.flagged


def test_what_patients_share_by_pairs_leaks(data):
    """n (n - 1) of (0.01, 0.01): of 6 the difference is 30 - 20 - 0 = 10 of them."""
    found = compared(data, lambda present: [0.01 * len(present) * (len(present) - 1)] * 2)
    assert found.leakage == pytest.approx(0.1 * sqrt(2))


def test_noise_that_depends_on_who_is_there_leaks(data):
    found = compared(data, lambda present: [len(present) + 0.1 * (not present), 0.0])
    assert found.leakage == pytest.approx(0.1)
    assert found.flagged


@pytest.mark.parametrize(("beyond", "flagged"), [(0.5 * TOLERANCE, False), (2 * TOLERANCE, True)])
def test_rounding_is_tolerated_and_no_more(data, beyond, flagged):
    assert compared(data, lambda present: [(1 + beyond) * len(present), 0.0]).flagged is flagged


def test_a_sum_that_is_no_number_is_flagged_and_not_forgotten(data):
    found = compared(data, lambda present: [float("nan") if len(present) == 1 else len(present), 0.0])
    assert isnan(found.leakage)
    assert found.flagged


def test_everybody_is_in_the_step_and_it_is_the_last(data):
    trainer = Adds(lambda present: [len(present), 0.0])
    compare_neighbours(subject(data, trainer), patients=2, seed=0)
    for work, dp in trainer.asked:
        assert (work.steps, work.first_step, work.total_steps) == (1, STEPS - 1, STEPS)
        assert dp == NOISY.model_copy(update={"sampling_rate": 1.0, "clip_norm": dp.clip_norm})
    assert {dp.clip_norm for _, dp in trainer.asked} == {0.5, 5000.0}


def test_what_clipping_hides_leaks_with_the_larger_clip_norm(data):
    """Each patient's gradient is 100 times as long when all are there; clipped, it is of length 1 whoever is there."""

    def trainer(network, data, method, work, dp, *, secret, progress=None, canaries=None, watch=None):
        present = np.unique(data.store.patient[Population.of(data).rows])
        each = 200.0 if len(present) == PATIENTS else 2.0
        total = len(present) * min(each, dp.clip_norm)
        watch(0, {"w": torch.tensor([total], dtype=torch.float64) / (dp.sampling_rate * dp.declared_patients)})
        return {}

    found = compare_neighbours(subject(data, trainer), patients=PATIENTS, seed=0)
    assert found.sensitivity == pytest.approx(1)
    assert found.leakage == pytest.approx((6 * 200 - 5 * 2 - 2) / NOISY.clip_norm)
    assert found.flagged


def test_as_many_patients_are_removed_as_asked_and_told_one_by_one(data):
    told = []
    trainer = Adds(lambda present: [len(present), 0.0])
    found = compare_neighbours(subject(data, trainer), patients=3, seed=0, progress=told.append)
    assert (found.patients, told) == (3, [1, 2, 3])


def test_one_patient_has_no_neighbours_to_compare(data):
    with pytest.raises(Refused, match="audit_patients"):
        compared(data, lambda present: [0.0, 0.0], patients=1)


def test_a_trainer_that_shows_no_step_is_refused(data):
    def silent(*given, **named):
        return {}

    with pytest.raises(Refused, match="audit_not_watched"):
        compare_neighbours(subject(data, silent), patients=2, seed=0)


def test_patients_who_teach_nothing_here_are_not_among_the_neighbours(data):
    """Only the masks teach: patients 0 and 3 of these pools."""
    masks = replace(data, pools=replace(data.pools, unlabelled_segmentation=rows()))
    dp = NOISY.model_copy(update={"modules": ("encoder", "decoder"), "module_weights": {}})
    asked = replace(subject(masks, Adds(lambda present: [len(present), 0.0])), dp=dp)
    assert compare_neighbours(asked, patients=PATIENTS, seed=0).patients == 2


def test_the_true_trainer_keeps_patients_apart_and_clips_the_loudest_to_the_bound(data):
    """The clip norm is below every gradient of these patients, so that each adds exactly it."""
    modules = ("encoder", "classifier", "decoder")
    dp = NOISY.model_copy(update={"clip_norm": 1e-3, "modules": modules, "module_weights": {}})
    true = replace(subject(data, train_privately), network=lambda: new_network(METHOD.network, 0), method=METHOD, dp=dp)
    found = compare_neighbours(true, patients=2, seed=0)
    assert found.sensitivity == pytest.approx(1, abs=1e-9)
    assert found.leakage < 1e-9
    assert not found.flagged
