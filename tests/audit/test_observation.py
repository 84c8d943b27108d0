"""What the auditor sees is what was released, to the last digit of the secret's noise; and nothing of it leaves."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multimix.audit.observation import FEWEST_CANARIES, Subject, audit_secret, observe, observe_nobody
from multimix.data.sampling import Pools
from multimix.errors import Refused
from multimix.network import new_network
from multimix.objective import Batch
from multimix.privacy import training
from multimix.privacy.canaries import AUDIT_HEAD, RAW_NORM, CanaryImages, add_head, plant
from multimix.privacy.dp_sgd import PrivateStep, add_clipped, patient_gradient
from multimix.privacy.noise import SecretStream
from multimix.privacy.training import Population, train_privately
from tests.client.tiny_hospitals import DP, PRIVATE_METHOD
from tests.support import phantom_films, rows, training_data, write_films

NOISE = DP.model_copy(update={"noise_multiplier": 1.5, "clip_norm": 0.5, "sampling_rate": 0.25})
CANARIES, STEPS, SEED = 96, 4, 7
MASKS_ONLY = {"modules": ("encoder", "decoder"), "module_weights": {}}


@dataclass
class Spy:
    """The true trainer, and what it was given, showed and returned."""

    calls: list[dict] = field(default_factory=list)
    gradients: list[dict] = field(default_factory=list)
    released: list[dict] = field(default_factory=list)

    def __call__(self, *given, watch=None, **named):
        self.calls.append(named)

        def seen(index, gradient):
            self.gradients.append(gradient)
            watch(index, gradient)

        self.released.append(train_privately(*given, watch=seen, **named))
        return self.released[-1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    films = phantom_films(6)
    films[1] = replace(films[1], patient="p0")  # 5 patients, one of two images
    store = write_films(tmp_path_factory.mktemp("films") / "store", films)
    return training_data(store, labelled=rows(0, 2, 3), unlabelled=rows(1, 4, 5), masked=rows(0, 1))


def network():
    return new_network(PRIVATE_METHOD.network, 0)


@pytest.fixture(scope="module")
def run(data):
    """One observed run of the true trainer."""
    spy = Spy()
    subject = Subject(spy, network, data, PRIVATE_METHOD, NOISE, STEPS)
    return spy, observe(subject, canaries=CANARIES, seed=SEED)


def noise_of(gradient, step: int) -> np.ndarray:
    """The audit head's noise: the last of the normals of the step, by the secret."""
    count = sum(value.numel() for value in gradient.values())
    return NOISE.noise_multiplier * SecretStream(audit_secret(SEED)).normals("noise", step, count)[-CANARIES:]


# --- what is seen


def test_what_is_seen_is_the_noise_of_the_secret_and_one_where_a_canary_was_in_the_step(run):
    spy, seen = run
    noise = np.stack([noise_of(gradient, step) for step, gradient in enumerate(spy.gradients)])
    np.testing.assert_allclose(seen.values - noise, seen.sampled, rtol=0, atol=1e-13)


def test_canaries_are_in_by_fair_coins_and_sampled_only_if_they_are(run):
    _, seen = run
    assert seen.included.shape == (CANARIES,)
    assert abs(seen.included.sum() - CANARIES / 2) < 4 * np.sqrt(CANARIES) / 2
    assert not seen.sampled[:, ~seen.included].any()
    expected = NOISE.sampling_rate * seen.sampled[:, seen.included].size
    assert abs(seen.sampled.sum() - expected) < 4 * np.sqrt(expected)


def test_a_score_is_what_a_canary_showed_over_all_steps(run):
    _, seen = run
    assert seen.scores == pytest.approx(seen.values[0] + seen.values[1] + seen.values[2] + seen.values[3])


def test_a_run_repeats_by_its_seed_and_differs_by_another(data, run):
    _, seen = run
    subject = Subject(train_privately, network, data, PRIVATE_METHOD, NOISE, STEPS)
    again, other = (observe(subject, canaries=CANARIES, seed=seed) for seed in (SEED, SEED + 1))
    assert np.array_equal(again.values, seen.values)
    assert np.array_equal(again.included, seen.included)
    assert not np.isclose(other.values, seen.values).any()
    assert not np.array_equal(other.included, seen.included)


def test_who_is_in_a_step_is_read_right_where_not_all_tasks_are_taught(data):
    """Only masks teach, those of one patient, so that the lot counts fewer patients than the pools hold."""
    spy = Spy()
    dp = NOISE.model_copy(update=MASKS_ONLY)
    method = PRIVATE_METHOD.model_copy(
        update={"network": PRIVATE_METHOD.network.model_copy(update={"segmentation": True})}
    )
    subject = Subject(spy, lambda: new_network(method.network, 0), data, method, dp, 2)
    seen = observe(subject, canaries=CANARIES, seed=SEED)
    noise = np.stack([noise_of(gradient, step) for step, gradient in enumerate(spy.gradients)])
    np.testing.assert_allclose(seen.values - noise, seen.sampled, rtol=0, atol=1e-13)


# --- what is seen with nobody there


def test_steps_with_nobody_in_them_are_the_noise_of_the_secret_on_every_parameter(data):
    subject = Subject(train_privately, network, data, PRIVATE_METHOD, NOISE, STEPS + 3)
    found = observe_nobody(subject, canaries=CANARIES, seed=SEED)
    assert {len(values) for values in found.values()} == {4}
    assert found[AUDIT_HEAD].shape == (4, CANARIES)
    for step in range(4):
        row = np.concatenate([values[step].ravel() for values in found.values()])
        expected = NOISE.noise_multiplier * SecretStream(audit_secret(SEED)).normals("noise", step, len(row))
        np.testing.assert_allclose(row, expected, rtol=1e-13)


def test_of_a_run_of_two_steps_two_are_seen_with_nobody(data):
    subject = Subject(train_privately, network, data, PRIVATE_METHOD, NOISE, 2)
    assert len(observe_nobody(subject, canaries=CANARIES, seed=SEED)[AUDIT_HEAD]) == 2


@pytest.mark.parametrize(
    "shown",
    [
        [],
        [{AUDIT_HEAD: (3,)}] * (STEPS - 1),
        [{"weight": (3,)}] * STEPS,
        [{AUDIT_HEAD: (3,), "weight": (2,)}] * (STEPS - 1) + [{AUDIT_HEAD: (3,)}],
        [{AUDIT_HEAD: (3,)}] * (STEPS - 1) + [{AUDIT_HEAD: (4,)}],
    ],
    ids=["no step", "a step less", "no audit head", "a parameter less", "another shape"],
)
def test_steps_with_nobody_that_are_not_shown_whole_are_refused(data, shown):
    def train(*given, watch, **named):
        for step, shapes in enumerate(shown):
            watch(step, {name: torch.zeros(shape) for name, shape in shapes.items()})
        return {}

    with pytest.raises(Refused, match="audit_not_watched"):
        observe_nobody(Subject(train, network, data, PRIVATE_METHOD, NOISE, STEPS), canaries=CANARIES, seed=SEED)


# --- what stays


def test_what_is_released_never_holds_the_audit_head(run):
    spy, _ = run
    (released,) = spy.released
    assert released
    assert AUDIT_HEAD not in released
    assert all(CANARIES not in array.shape for array in released.values())


def test_canaries_change_nobodys_lot(data):
    """In a step are the same patients of the store, with the same images, whether canaries stand behind them or not."""
    included = np.ones(CANARIES, dtype=bool)
    planted, _ = plant(data, included, images=2, clip_norm=1.0)
    stream, first_canary = SecretStream(audit_secret(SEED)), len(data.store)
    for step in range(20):
        alone, among = (
            Population.of(each).sample(stream, step, rate=0.5, images_per_patient=1) for each in (data, planted)
        )
        of_the_store = [taken.tolist() for taken in among if taken[0] < first_canary]
        assert of_the_store == [taken.tolist() for taken in alone]


def test_canaries_leave_what_the_patients_add_as_it_was(data, run):
    """Without the noise, the gradient of the model's own parameters is that of a run without canaries."""
    silent = NOISE.model_copy(update={"noise_multiplier": 1e-20, "sampling_rate": 0.8})
    sums = []
    for canaries in (False, True):
        spy, subject = Spy(), Subject(train_privately, network, data, PRIVATE_METHOD, silent, 1)
        planted, chosen = plant(data, np.ones(CANARIES, dtype=bool), images=2, clip_norm=silent.clip_norm)
        given = {"canaries": chosen} if canaries else {}
        spy(
            network(), planted if canaries else data, PRIVATE_METHOD, subject.work(), silent,
            secret=audit_secret(3), watch=lambda *_: None, **given,
        )  # fmt: skip
        sums.append({name: value for name, value in spy.gradients[0].items() if name != AUDIT_HEAD})
    assert max(float(value.abs().max()) for value in sums[0].values()) > 1e-6
    for name, value in sums[0].items():
        torch.testing.assert_close(sums[1][name], value, rtol=0, atol=1e-18)


def test_the_secret_is_of_the_audit_and_its_seed(run):
    spy, _ = run
    assert spy.calls[0]["secret"] == audit_secret(SEED) != audit_secret(SEED + 1)
    assert len(audit_secret(SEED)) == 32


# --- what is refused


def refused(train, data, *, canaries: int = CANARIES) -> str:
    subject = Subject(train, network, data, PRIVATE_METHOD, NOISE, STEPS)
    with pytest.raises(Refused) as caught:
        observe(subject, canaries=canaries, seed=SEED)
    return caught.value.reason


def showing(steps: list[int], gradient: dict):
    def train(*given, watch, **named):
        for step in steps:
            watch(step, gradient)
        return {}

    return train


@pytest.mark.parametrize(
    ("steps", "gradient"),
    [
        ([], {}),
        ([0, 1, 2], {AUDIT_HEAD: torch.zeros(CANARIES)}),
        ([0, 1, 2, 3, 4], {AUDIT_HEAD: torch.zeros(CANARIES)}),
        ([0, 1, 2, 3], {AUDIT_HEAD: torch.zeros(CANARIES - 1)}),
        ([0, 1, 2, 3], {"weight": torch.zeros(CANARIES)}),
    ],
    ids=["no step", "a step less", "a step more", "a canary less", "no audit head"],
)
def test_a_trainer_that_does_not_show_every_step_is_refused(data, steps, gradient):
    assert refused(showing(steps, gradient), data) == "audit_not_watched"


def test_too_few_canaries_are_refused_before_anything_is_trained(data):
    spy = Spy()
    assert refused(spy, data, canaries=FEWEST_CANARIES - 1) == "audit_parameters"
    assert spy.calls == []


# --- canaries


@given(
    clip_norm=st.floats(1e-3, 100),
    images=st.integers(1, 40),
    chunk=st.integers(1, 8),
    coordinate=st.integers(0, FEWEST_CANARIES - 1),
)
def test_a_canary_adds_exactly_the_clip_norm_on_its_own_coordinate(clip_norm, images, chunk, coordinate):
    model = network()
    add_head(model, FEWEST_CANARIES)
    names = tuple(name for name, _ in model.named_parameters())
    step = PrivateStep(model, model, PRIVATE_METHOD.objective, names)
    parts = [
        CanaryImages(coordinate, min(chunk, images - start), RAW_NORM * clip_norm) for start in range(0, images, chunk)
    ]
    total = {name: torch.zeros_like(model.get_parameter(name), dtype=torch.float64) for name in names}
    add_clipped(total, patient_gradient(step, parts), clip_norm)
    expected = torch.zeros(FEWEST_CANARIES, dtype=torch.float64)
    expected[coordinate] = clip_norm
    torch.testing.assert_close(total.pop(AUDIT_HEAD), expected, rtol=1e-15, atol=0)
    assert not any(value.any() for value in total.values())


def test_a_canary_is_a_patient_of_its_own_with_images_in_every_pool(data):
    included = np.array([True, False, True, True])
    planted, canaries = plant(data, included, images=2, clip_norm=1.0)
    first = len(data.store)
    assert Population.of(planted).count == Population.of(data).count + 3
    assert [canaries.of(np.array([first + row])).coordinate for row in range(6)] == [0, 0, 2, 2, 3, 3]
    assert canaries.of(np.array([first - 1])) is None
    assert canaries.of(np.array([first + 2, first + 3])).images == 2
    labelled = planted.pools.labelled_classification[len(data.pools.labelled_classification) :] - first
    assert labelled.tolist() == [0, 1, 4, 5]
    assert isinstance(planted.pools, Pools)


def test_a_canarys_images_are_never_looked_up_in_the_store(data):
    included = np.ones(FEWEST_CANARIES, dtype=bool)
    planted, canaries = plant(data, included, images=2, clip_norm=1.0)
    everybody = Population.of(planted)
    draws = training._Draws(planted, PRIVATE_METHOD, NOISE, everybody, SecretStream(b"s" * 32), canaries)
    made = [
        part
        for taken in everybody.sample(draws.stream, 0, rate=1.0, images_per_patient=2)
        for part in draws.images(taken, 0, torch.device("cpu"))
    ]
    kinds = [type(part) for part in made]
    assert kinds.count(CanaryImages) == FEWEST_CANARIES
    assert kinds.count(Batch) == Population.of(data).count
