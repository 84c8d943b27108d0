"""One private round: it equals the plain loop over patients, and everything random in it comes from the secret."""

import copy
from dataclasses import dataclass, fields, replace
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.privacy import one_patient_at_a_time
from multimix.batches import TrainingData, make_batch, roles_of
from multimix.config import preset, row
from multimix.contract.messages import LocalWork, module_of
from multimix.data.sampling import Pools
from multimix.data.store import Store
from multimix.errors import Refused
from multimix.network import MultiMixNetwork, new_network
from multimix.privacy.dp_sgd import PrivateStep
from multimix.privacy.noise import SecretStream
from multimix.privacy.training import Population, taught_pools, train_privately
from multimix.training import average_into, learning_rate, unlabelled_ramp
from multimix.weights import export
from tests.client.tiny_hospitals import DP, METHOD, PRIVATE_METHOD, SIZE, dealt, write_radiographs

SECRET, OTHER_SECRET = b"s" * 32, b"t" * 32
CPU = torch.device("cpu")
SILENT = DP.model_copy(update={"noise_multiplier": 1e-20, "sampling_rate": 1.0})  # below float64's last digit
ALL = {"modules": ("encoder", "classifier", "decoder"), "module_weights": {}}
WORK = LocalWork(steps=2, images_per_group=1, first_step=2, total_steps=20)
ONE_STEP = LocalWork(steps=1, images_per_group=1, total_steps=20)


@dataclass(frozen=True, eq=False)
class DoubleStore(Store):
    """A store that gives float64, so that two ways to the same sum differ in the last digits only."""

    def load_images(self, rows):
        return super().load_images(rows).double()

    def load_masks(self, rows):
        return super().load_masks(rows).double()


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    return dealt(write_radiographs(tmp_path_factory.mktemp("radiographs")), tmp_path_factory.mktemp("cache"))


def data_of(hospital, store_class=Store) -> TrainingData:
    store = hospital.store()
    store = store_class(**{each.name: getattr(store, each.name) for each in fields(Store)})
    return TrainingData(hospital.name, store, hospital.pools(store, None))


@pytest.fixture(scope="module")
def data(hospitals):
    return data_of(hospitals["both"])


def trained(data, *, method=PRIVATE_METHOD, dp=DP, work=WORK, secret=SECRET, network=None):
    network = network or new_network(method.network, 0)
    return train_privately(network, data, method, work, dp, secret=secret)


def moved(after, method=PRIVATE_METHOD) -> dict[str, np.ndarray]:
    before = export(new_network(method.network, 0))
    return {name: value - before[name] for name, value in after.items()}


def same(a, b) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a) and set(a) == set(b)


# --- the plain loop


def by_hand(network: MultiMixNetwork, data, method, dp, work) -> None:
    """Every patient alone, everybody in every step, no noise."""
    teacher = network if method.objective.teacher == "student" else copy.deepcopy(network)
    names = tuple(name for name, _ in network.named_parameters())
    step = PrivateStep(network, teacher, method.objective, names)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=method.optimiser.weight_decay)
    pools, seed = data.pools, SecretStream(SECRET).text_seed()
    rows = np.union1d(pools.labelled_classification, pools.unlabelled_classification)
    for number in range(work.first_step, work.first_step + work.steps):
        now = replace(step, ramp=unlabelled_ramp(method.objective, number, work.total_steps))
        batches = [
            make_batch(
                data,
                roles_of(rows[data.store.patient[rows] == patient], pools, method),
                method,
                seed=seed,
                step=number,
                device=CPU,
            )
            for patient in np.unique(data.store.patient[rows])
        ]
        total = one_patient_at_a_time(now, batches, dp.clip_norm)
        for name, parameter in network.named_parameters():
            parameter.grad = total[name] / dp.declared_patients
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(method.optimiser, number, work.total_steps)
        optimiser.step()
        if method.objective.teacher == "ema":
            average_into(teacher, network, method.objective.ema_decay)


@pytest.mark.parametrize("clip_norm", [0.05, 1e6], ids=["everybody clipped", "nobody clipped"])
@pytest.mark.parametrize(
    ("name", "method"),
    [("mixed", METHOD), ("both", preset("paper", image_size=SIZE, width=2)), ("labels", PRIVATE_METHOD)],
    ids=["modern", "paper", "without decoder"],
)
def test_without_noise_a_round_is_the_plain_loop_over_patients(hospitals, name, method, clip_norm):
    data = data_of(hospitals[name], DoubleStore)
    dp = SILENT.model_copy(update=ALL | {"clip_norm": clip_norm})
    network, expected = (new_network(method.network, 0).double() for _ in range(2))
    trained(data, method=method, dp=dp, network=network)
    by_hand(expected, data, method, dp, WORK)
    before = new_network(method.network, 0).double()
    result, plain, start = (dict(each.state_dict()) for each in (network, expected, before))
    for each, value in plain.items():
        assert float((result[each] - value).abs().max()) <= 1e-6 * method.optimiser.learning_rate
        assert float((value - start[each]).abs().max()) >= 1e-2 * method.optimiser.learning_rate


@pytest.mark.parametrize("mu", [0.0, 10.0], ids=["plain", "FedProx"])
def test_a_round_that_draws_nobody_is_noise_of_the_secret_anew_each_step_and_then_the_pull(data, mu):
    """Noise of standard deviation sigma C over q N, in the order of the names; the pull is mu (w - w_round) on top."""
    dp = DP.model_copy(update={"sampling_rate": 1e-5, "clip_norm": 0.7})
    work = WORK.model_copy(update={"proximal_mu": mu})
    expected = new_network(PRIVATE_METHOD.network, 0)
    named = dict(expected.named_parameters())
    anchors = {name: value.detach().clone() for name, value in named.items()}
    optimiser = torch.optim.AdamW(named.values(), weight_decay=PRIVATE_METHOD.optimiser.weight_decay)
    stream, count = SecretStream(SECRET), sum(value.numel() for value in named.values())
    for index in range(work.steps):
        noise = torch.from_numpy(stream.normals("noise", index, count)) * (2.0 * 0.7) / (1e-5 * 8)
        for name, part in zip(sorted(named), noise.split([named[name].numel() for name in sorted(named)]), strict=True):
            value = named[name]
            value.grad = part.view(value.shape).float() + mu * (value.detach() - anchors[name])
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(PRIVATE_METHOD.optimiser, work.first_step + index, work.total_steps)
        optimiser.step()
    for name, value in trained(data, dp=dp, work=work).items():
        np.testing.assert_allclose(value, named[name].detach().numpy(), atol=1e-7, rtol=1e-6)


def test_the_pull_is_neither_clipped_nor_noised_away(data):
    """A pull far longer than the clip norm keeps the weights at the anchor; without it the noise moves them on."""
    loud = DP.model_copy(update={"noise_multiplier": 5.0})
    free, held = (moved(trained(data, dp=loud, work=WORK.model_copy(update={"proximal_mu": mu}))) for mu in (0.0, 1e6))
    assert length(held) < 0.8 * length(free)


def length(weights) -> float:
    return sqrt(sum(float(np.square(value).sum()) for value in weights.values()))


# --- who is in a step


def crowd(patients: int, images: int) -> Population:
    rows = np.arange(patients * images)
    return Population(rows, rows // images, patients)


def draws(population, *, rate, images=9, steps=1, secret=SECRET) -> list[list[np.ndarray]]:
    stream = SecretStream(secret)
    return [population.sample(stream, step, rate=rate, images_per_patient=images) for step in range(steps)]


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_each_patient_is_drawn_at_the_rate_and_independently_of_the_others(rate):
    steps, patients = 1000, 20
    drawn = draws(crowd(patients, 2), rate=rate, steps=steps)
    table = np.zeros((steps, patients))
    for step, groups in enumerate(drawn):
        table[step, [group[0] // 2 for group in groups]] = 1
    spread = sqrt(rate * (1 - rate))
    assert abs(table.mean() - rate) <= 5 * spread / sqrt(table.size)
    assert np.abs(table.mean(axis=0) - rate).max() <= 5 * spread / sqrt(steps)
    # Poisson, not a fixed number: the size of a step varies as that of a binomial does (variance to 5 deviations).
    sizes = table.sum(axis=1)
    expected = patients * spread**2
    kurtosis = 3 + (1 - 6 * spread**2) / (patients * spread**2)
    assert abs(sizes.var() - expected) <= 5 * expected * sqrt((kurtosis - 1) / steps)
    again = np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]
    assert abs(again) <= 5 / sqrt(table.size)


def test_at_rate_1_everybody_is_drawn_and_at_rate_0_nobody():
    everybody, nobody = (draws(crowd(5, 2), rate=rate)[0] for rate in (1.0, 0.0))
    assert [group.tolist() for group in everybody] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert nobody == []


def test_where_there_is_nobody_nobody_is_drawn():
    assert draws(crowd(0, 1), rate=1.0) == [[]]


def test_no_more_images_of_a_patient_are_used_than_the_cap_each_as_often(data):
    steps, cap = 900, 2
    seen = np.zeros(3)
    for groups in draws(crowd(4, 3), rate=1.0, images=cap, steps=steps):
        assert [len(group) for group in groups] == [cap] * 4
        assert [set((group // 3).tolist()) for group in groups] == [{0}, {1}, {2}, {3}]
        seen[groups[0]] += 1
    assert np.abs(seen / steps - cap / 3).max() <= 5 * sqrt(2 / 9 / steps)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(0, 20), st.floats(0, 1), st.integers(1, 4))
def test_a_draw_is_of_whole_patients_each_once_and_within_the_cap(owners, step, rate, cap):
    patients, index = np.unique(owners, return_inverse=True)
    population = Population(np.arange(len(owners)) * 10, index, len(patients))
    groups = population.sample(SecretStream(SECRET), step, rate=rate, images_per_patient=cap)
    owner_of = dict(zip(population.rows.tolist(), owners, strict=True))
    whose = [{owner_of[row] for row in group.tolist()} for group in groups]
    assert all(len(who) == 1 for who in whose)
    assert len(set.union(set(), *whose)) == len(groups)
    for group, (who,) in zip(groups, whose, strict=True):
        assert len(set(group.tolist())) == len(group) == min(cap, owners.count(who))


def test_a_patient_of_several_pools_is_in_the_population_once(data):
    """Patients 0 to 3 have a class, 2 to 7 a mask."""
    rows, patient = data.pools.labelled_classification, data.store.patient
    order = np.unique(patient[rows])
    pools = Pools(
        labelled_classification=rows[np.isin(patient[rows], order[:4])],
        unlabelled_classification=rows[:0],
        labelled_segmentation=rows[np.isin(patient[rows], order[2:])],
        unlabelled_segmentation=rows[:0],
    )
    population = Population.of(replace(data, pools=pools))
    assert (population.count, population.rows.tolist()) == (8, rows.tolist())  # 8 patients, 9 images
    assert np.bincount(population.patient).tolist() == [2] + [1] * 7


@pytest.mark.parametrize("name", ["both", "labels", "masks", "bare", "healthy", "mixed"])
def test_all_training_patients_are_the_population_whatever_is_known_of_them(hospitals, name):
    data = data_of(hospitals[name])
    population = Population.of(data)
    assert population.count == 8
    assert set(data.store.split[population.rows]) == {"train"}


def test_a_task_whose_module_does_not_learn_teaches_nothing(data):
    pools = data.pools
    none = (0, 0)

    def sizes(modules):
        left = taught_pools(pools, modules)
        return [
            (len(left.labelled_classification), len(left.unlabelled_classification)),
            (len(left.labelled_segmentation), len(left.unlabelled_segmentation)),
        ]

    assert sizes(("encoder", "classifier", "decoder")) == [(9, 0), (9, 0)]
    assert sizes(("encoder", "classifier")) == [(9, 0), none]
    assert sizes(("decoder",)) == [none, (9, 0)]
    assert sizes(("encoder",)) == [none, none]


def test_masks_move_the_encoder_only_where_the_decoder_learns(data):
    nothing = data.pools.labelled_segmentation[:0]
    without = replace(data, pools=replace(data.pools, labelled_segmentation=nothing))
    for modules, alike in ((("encoder", "classifier"), True), (("encoder", "classifier", "decoder"), False)):
        dp = SILENT.model_copy(update={"modules": modules})
        a, b = (trained(each, method=METHOD, dp=dp, work=ONE_STEP) for each in (data, without))
        assert same(a, b) == alike


# --- the secret


def test_the_same_secret_gives_the_same_bits_whatever_else_was_drawn(data):
    first = trained(data)
    torch.manual_seed(99)
    np.random.default_rng().random(3)
    assert same(trained(data), first)


def test_another_secret_draws_other_patients_views_and_noise(data):
    silent = DP.model_copy(update={"noise_multiplier": 1e-20})
    for dp in (DP, silent, SILENT):  # all three; patients and views; views only
        a, b = (trained(data, dp=dp, secret=secret) for secret in (SECRET, OTHER_SECRET))
        assert not same(a, b)


# --- what learns


@pytest.mark.parametrize("modules", [("classifier",), ("encoder", "decoder"), ("decoder", "classifier")])
def test_a_frozen_module_stays_as_it_was_to_the_bit_and_is_not_returned(data, modules):
    network = new_network(METHOD.network, 0)
    before = export(network)
    dp = DP.model_copy(update={"modules": modules})
    result = trained(data, method=METHOD, dp=dp, work=ONE_STEP, network=network)
    after = export(network)
    assert {module_of(name) for name in result} == set(modules)
    for name, value in after.items():
        assert np.array_equal(value, before[name]) == (module_of(name) not in modules)
        assert name not in result or np.array_equal(value, result[name])


def test_affine_training_moves_normalisation_and_the_last_layers_only(data):
    method = preset("private", image_size=SIZE, width=2)
    network = new_network(method.network, 0)
    before = export(network)
    assert "classifier.standard_mean" in before
    dp = DP.model_copy(update=ALL | {"parameters": "affine"})
    result = trained(data, method=method, dp=dp, work=ONE_STEP, network=network)
    learns = {name for name in before if ".norm" in name}
    learns |= {f"{layer}.{part}" for layer in ("classifier.linear", "decoder.output") for part in ("weight", "bias")}
    after = export(network)
    assert set(result) == learns == {name for name in before if not np.array_equal(after[name], before[name])}


@pytest.mark.parametrize(("modules", "name"), [((), "multimix"), (("decoder",), "enc"), (("classifier",), "u-net")])
def test_where_nothing_would_learn_training_is_refused(data, modules, name):
    method = row(name, METHOD)
    with pytest.raises(Refused) as caught:
        trained(data, method=method, dp=DP.model_copy(update={"modules": modules}))
    assert caught.value.reason == "nothing_taught"
