"""One federation of made-up hospitals, as an experiment runs it, and what is made of its models."""

import numpy as np
import pytest

from multimix.config import preset
from multimix.data.sampling import union
from multimix.errors import InputError
from multimix.weights import load_model
from server.results import Privacy, SitePrivacy, SiteRound, read_results
from sim.experiments.case import BaselineCase, EnsembleCase, case_name, needs
from sim.experiments.federated import RUN, keep_if_of, refuse_gaps, run_federation, sets_of, spent
from sim.experiments.record import MODEL, SCORES
from sim.experiments.scores import ScoreFile, score
from sim.experiments.suites import cases
from sim.experiments.work import Place, do
from sim.run import hospitals_of

HOSPITALS = {"cohen", "jsrt", "kermany", "montgomery", "nih14", "shenzhen"}
FEDAVG = next(case for case in cases("federated", "smoke") if case_name(case) == "fedavg_without-montgomery_s0")
PUBLIC = next(case for case in cases("federated", "smoke") if case.row == "phantoms")


@pytest.fixture(scope="module")
def place(data, cache, tmp_path_factory):
    return Place(data=data, out=tmp_path_factory.mktemp("federated"), cache=cache)


@pytest.fixture(scope="module")
def record(place):
    return do(FEDAVG, place)


@pytest.mark.parametrize("case", [case for case in cases("federated", "smoke") if needs(case) == ()], ids=case_name)
def test_every_case_fits_its_data(place, case):
    assert place.store(case).fingerprint


def scores_in(place, case):
    return ScoreFile.load(place.folder(case) / SCORES).scores


def assert_same(found, expected):
    assert found.row.tolist() == expected.row.tolist()
    np.testing.assert_allclose(found.probability, expected.probability, rtol=1e-6)
    np.testing.assert_allclose(found.measures, expected.measures, rtol=1e-6)


def test_a_federation_is_scored_at_every_hospital_and_on_all_patients_of_the_one_held_out(place, record):
    assert set(scores_in(place, FEDAVG)) == {*(f"{name}/test" for name in HOSPITALS), "montgomery/all"}


def test_the_scores_of_a_federation_are_those_of_the_model_in_its_run_folder(place, record):
    store, network = place.store(FEDAVG), load_model(place.folder(FEDAVG) / RUN / MODEL)
    sets = {f"{each.name}/{each.split}": each for each in sets_of(hospitals_of(place.config(FEDAVG)), store)}
    for name in ("jsrt/test", "montgomery/all"):
        assert_same(scores_in(place, FEDAVG)[name], score(network, store, sets[name]))
    assert record.parameters == sum(p.numel() for p in network.parameters())


def test_the_hospital_held_out_is_scored_on_all_its_patients_and_the_others_on_their_test(place):
    store, hospitals = place.store(FEDAVG), hospitals_of(place.config(FEDAVG))
    rows = {(each.name, each.split): each.rows for each in sets_of(hospitals, store)}
    assert set(store.source[rows["montgomery", "all"]]) == {"montgomery"}
    assert len(rows["montgomery", "all"]) == 5
    for hospital in hospitals:
        if hospital.role == "train":
            assert rows[hospital.name, "test"].tolist() == hospital.evaluation_rows(store, "test").tolist()


def test_a_federation_whose_record_was_lost_is_not_trained_again(place, record):
    model = (place.folder(FEDAVG) / RUN / MODEL).read_bytes()
    (place.folder(FEDAVG) / "run.json").unlink()
    again = do(FEDAVG, place)
    assert (place.folder(FEDAVG) / RUN / MODEL).read_bytes() == model
    assert again.model_copy(update={"finished": 0, "train_s": 0, "score_s": 0}) == record.model_copy(
        update={"finished": 0, "train_s": 0, "score_s": 0}
    )


def test_a_run_folder_of_another_configuration_is_begun_afresh(place, record):
    config = place.config(FEDAVG)
    _, results = run_federation(config.model_copy(update={"seed": 1}), place.out / "other", workers=1)
    _, again = run_federation(config, place.out / "other", workers=1)
    assert (results.config["seed"], again.config["seed"]) == (1, 0)
    assert (place.out / "other" / MODEL).read_bytes() == (place.folder(FEDAVG) / RUN / MODEL).read_bytes()


def test_what_was_begun_as_another_case_or_by_other_code_is_removed(tmp_path):
    (tmp_path / RUN).mkdir()
    keep_if_of(tmp_path, FEDAVG, "code 1")
    assert not (tmp_path / RUN).exists()
    (tmp_path / RUN).mkdir()
    keep_if_of(tmp_path, FEDAVG, "code 1")
    assert (tmp_path / RUN).exists()
    keep_if_of(tmp_path, FEDAVG.model_copy(update={"method": preset("paper")}), "code 1")
    assert not (tmp_path / RUN).exists()
    (tmp_path / RUN).mkdir()
    keep_if_of(tmp_path, FEDAVG.model_copy(update={"method": preset("paper")}), "code 2")
    assert not (tmp_path / RUN).exists()


def test_a_run_in_which_a_hospital_was_left_out_is_not_scored(place, record):
    results = read_results(place.folder(FEDAVG) / RUN)
    refuse_gaps(results)
    last = results.rounds[-1]
    site = next(iter(last.sites))
    gap = last.model_copy(update={"sites": {**last.sites, site: SiteRound(state="absent")}})
    with pytest.raises(InputError, match=f"{site} was absent in round {last.round}") as caught:
        refuse_gaps(results.model_copy(update={"rounds": (*results.rounds[:-1], gap)}))
    assert caught.value.reason == "site_left_out"


@pytest.fixture(scope="module")
def public(place):
    return do(PUBLIC, place)


def test_a_public_model_is_scored_where_the_private_runs_are(place, public):
    network = load_model(place.folder(PUBLIC) / MODEL)
    assert (network.config.image_size, network.config.width, network.config.standardised) == (32, 2, True)
    assert set(scores_in(place, PUBLIC)) == {*(f"{name}/test" for name in HOSPITALS), "montgomery/all"}
    assert public.epsilon_spent == {}


def test_a_run_begins_with_the_public_model(place, public):
    without = next(case for case in cases("federated", "smoke") if case.row == "not-private")
    do(without, place)
    begun = read_results(place.folder(without) / RUN).config["start-from"]
    assert begun == str(place.folder(PUBLIC) / MODEL)


def privacy(epsilon, **changes):
    site = SitePrivacy(
        epsilon=epsilon,
        delta=1e-3,
        planned_epsilon=8.0,
        noise_multiplier=1.0,
        clip_norm=1.0,
        sampling_rate=0.5,
        declared_patients=10,
        images_per_patient=1,
        modules=("encoder",),
        parameters="affine",
        rounds=1,
        steps=1,
    )
    return Privacy(patients={"jsrt": site}, **changes)


def test_what_a_run_spent_is_that_of_its_results(place, record):
    results = read_results(place.folder(FEDAVG) / RUN)
    assert spent(results) == {}
    assert spent(results.model_copy(update={"privacy_details": privacy(7.5)})) == {"jsrt": 7.5}


@pytest.mark.parametrize("details", [privacy(None), privacy(7.5, seeded=True)], ids=["unknown", "known noise"])
def test_a_run_whose_privacy_is_not_sure_is_no_private_row(place, record, details):
    results = read_results(place.folder(FEDAVG) / RUN).model_copy(update={"privacy_details": details})
    with pytest.raises(InputError) as caught:
        spent(results)
    assert caught.value.reason == "not_private"


@pytest.mark.slow
def test_a_private_row_spends_no_more_than_its_epsilon_at_any_hospital(place, public):
    private = next(case for case in cases("federated", "smoke") if case.row == "epsilon-8")
    found = do(private, place).epsilon_spent
    assert set(found) == HOSPITALS - {"montgomery"}
    assert all(0 < epsilon <= 8 for epsilon in found.values())


def test_an_ensemble_of_one_federation_says_what_the_federation_says(place, record):
    ensemble = EnsembleCase(row="ensemble", like=FEDAVG, classifiers=(FEDAVG,), segmenters=(FEDAVG,))
    do(ensemble, place)
    found, expected = scores_in(place, ensemble), scores_in(place, FEDAVG)
    assert set(found) == set(expected)
    for name, scores in found.items():
        assert_same(scores, expected[name])


def test_a_baseline_of_a_federation_is_taught_by_the_masks_of_its_hospitals(place):
    case = BaselineCase(row="mean-mask", of=FEDAVG)
    do(case, place)
    store = place.store(FEDAVG)
    hospitals = hospitals_of(place.config(FEDAVG))
    taught = union([each.pools(store, FEDAVG.config.mask_convention) for each in hospitals]).labelled_segmentation
    # Two masks each of jsrt and shenzhen; montgomery is held out, and the others draw lungs otherwise.
    assert sorted(store.source[taught]) == ["jsrt", "jsrt", "shenzhen", "shenzhen"]
    mean = store.load_masks(taught)[:, 0].numpy().mean(axis=0) >= 0.5
    found = scores_in(place, case)["montgomery/all"]
    truth = store.load_masks(found.row)[:, 0].numpy() >= 0.5
    dice = [2 * (mean & each).sum() / (mean.sum() + each.sum()) for each in truth]
    np.testing.assert_allclose(found.measure("dice"), dice)
