"""What a model says of every image, and what needs no network: scores, their file, baselines, ensembles, controls."""

import numpy as np
import pytest
import torch
from experiment_fakes import scores_of
from support import tiny_config

from multimix.contract.statistics import MEASURES
from multimix.evaluation import evaluate, predict
from multimix.metrics import summarise
from multimix.network import new_network
from sim.experiments.baselines import score_baseline
from sim.experiments.central import CONTROLS, score_case, with_bridge
from sim.experiments.ensemble import score_ensemble
from sim.experiments.scores import ScoreFile, mask_measures, score
from sim.experiments.sources import ScoredSet, scored_sets, training_data


def network_of(seed=0, **changes):
    return new_network(tiny_config(**changes), seed)


def everything(store, source):
    return ScoredSet(source, "all", np.flatnonzero(store.source == source))


@pytest.fixture(scope="module")
def pools(store):
    return training_data(store, labels=20, masks=5, seed=0, shared=False).pools


def test_scores_come_back_from_their_file(tmp_path):
    first = scores_of([0.25, 0.5], [0, 1], patient=[3, 3], dice=[0.125, float("nan")])
    second = scores_of(dice=[0.7])
    ScoreFile({"jsrt/test@zero": first, "nih14/test": second}).save(tmp_path / "scores.npz")
    found = ScoreFile.load(tmp_path / "scores.npz").scores
    assert list(found) == ["jsrt/test@zero", "nih14/test"]
    for name, scores in {"jsrt/test@zero": first, "nih14/test": second}.items():
        for column in ("row", "patient", "label", "probability", "measures"):
            np.testing.assert_array_equal(getattr(found[name], column), getattr(scores, column))


def test_an_image_without_a_mask_has_no_measure(store):
    chosen = everything(store, "shenzhen")
    found = score(network_of(), store, chosen)
    masked = store.mask_row[chosen.rows] >= 0
    assert (masked.sum(), len(masked)) == (9, 10)
    assert found.masked.tolist() == masked.tolist()
    assert np.isnan(found.measures[~masked]).all()


def test_scores_say_whose_images_they_are(store):
    chosen = everything(store, "nih14")
    found = score(network_of(), store, chosen)
    assert found.row.tolist() == chosen.rows.tolist()
    assert found.patient.tolist() == store.patient[chosen.rows].tolist()
    assert found.label.tolist() == store.label[chosen.rows].tolist()


def test_figures_of_scores_are_those_of_an_evaluation(store):
    network, chosen = network_of(), everything(store, "jsrt")
    found, report = score(network, store, chosen), summarise(evaluate(network, store, chosen.rows))
    for measure in MEASURES:
        assert found.measure(measure).mean() == pytest.approx(report[measure])


def test_a_model_without_one_of_the_tasks_has_no_scores_of_it(store):
    chosen = everything(store, "jsrt")
    decoder = score(network_of(classification=False, bridge="off"), store, chosen)
    classifier = score(network_of(segmentation=False, bridge="off"), store, chosen)
    assert np.isnan(decoder.probability).all()
    assert decoder.masked.all()
    assert np.isnan(classifier.measures).all()
    assert not np.isnan(classifier.probability).any()


def test_an_ensemble_says_the_mean_of_its_members(store):
    # 27 images and more are two batches.
    chosen = ScoredSet("chex224", "train", np.flatnonzero(store.split == "train"))
    members = [network_of(seed) for seed in (1, 2)]
    found = score_ensemble(members, members, store, [chosen])["chex224/train"]
    alone = [score(each, store, chosen).probability for each in members]
    np.testing.assert_allclose(found.probability, np.mean(alone, axis=0))


def test_the_mask_of_an_ensemble_is_where_the_mean_probability_is_above_one_half(store):
    chosen = everything(store, "montgomery")
    members = [network_of(seed) for seed in (1, 2)]
    found = score_ensemble([], members, store, [chosen])["montgomery/all"]
    masks = np.mean([predict(each, store.load_images(chosen.rows)).mask for each in members], axis=0) >= 0.5
    np.testing.assert_allclose(found.measures, mask_measures(store, chosen.rows, masks))
    assert np.isnan(found.probability).all()


def test_the_classifiers_of_an_ensemble_have_no_say_in_the_mask(store):
    chosen, (first, second) = everything(store, "montgomery"), (network_of(seed) for seed in (1, 2))
    found = score_ensemble([first], [second], store, [chosen])["montgomery/all"]
    np.testing.assert_allclose(found.probability, score(first, store, chosen).probability)
    np.testing.assert_allclose(found.measures, score(second, store, chosen).measures)


def test_a_model_with_a_bridge_is_asked_again_with_controls_where_there_are_masks(store):
    found = set(score_case(network_of(), store))
    sets = {f"{each.name}/{each.split}" for each in scored_sets(store)}
    masked = {"jsrt/validation", "jsrt/test", "montgomery/test", "shenzhen/test"}
    assert found == sets | {f"{name}@{control}" for name in masked for control in CONTROLS}


@pytest.mark.parametrize("changes", [{"bridge": "off"}, {"bridge": "zero"}, {"segmentation": False, "bridge": "off"}])
def test_a_model_that_sees_no_saliency_is_asked_once(store, changes):
    assert not [name for name in score_case(network_of(**changes), store) if "@" in name]


def test_a_control_changes_the_bridge_and_no_weight():
    network = network_of()
    control = with_bridge(network, "zero")
    assert control.config == network.config.model_copy(update={"bridge": "zero"})
    assert all(torch.equal(value, control.state_dict()[name]) for name, value in network.state_dict().items())


def test_the_majority_answers_the_more_frequent_class_of_each_set(store, pools):
    # The children's training images are 13 normal and 16 with pneumonia, of whom validation takes some; jsrt has
    # no pneumonia at all; in nih14 both classes are as frequent.
    train = ScoredSet("chex224", "train", np.flatnonzero((store.source == "chex224") & (store.split != "test")))
    sets = [train, everything(store, "jsrt"), everything(store, "nih14")]
    found = score_baseline("majority", store, pools, sets)
    assert {name: set(each.probability) for name, each in found.items()} == {
        "chex224/train": {1.0},
        "jsrt/all": {0.0},
        "nih14/all": {0.0},
    }
    assert not any(each.masked.any() for each in found.values())


def test_the_mean_mask_is_where_half_of_the_taught_masks_are(store, pools):
    chosen = everything(store, "montgomery")
    found = score_baseline("mean-mask", store, pools, [chosen])["montgomery/all"]
    taught = store.load_masks(pools.labelled_segmentation)[:, 0].numpy()
    mean = taught.mean(axis=0) >= 0.5
    expected = mask_measures(store, chosen.rows, np.stack([mean] * len(chosen.rows)))
    assert len(taught) == 5
    np.testing.assert_allclose(found.measures, expected)
    assert np.isnan(found.probability).all()


def test_the_ridge_tells_what_it_was_taught_and_is_sure_of_nothing(store, pools):
    taught = ScoredSet("chex224", "taught", pools.labelled_classification)
    found = score_baseline("thumbnail-ridge", store, pools, [taught])["chex224/taught"]
    # Twenty images in 144 dimensions: regression separates them whatever they show.
    assert ((found.probability >= 0.5) == (found.label == 1)).all()
    assert ((found.probability > 0) & (found.probability < 1)).all()
    assert not found.masked.any()


def test_the_ridge_learns_from_the_labels_that_it_is_given(store, pools):
    taught = pools.labelled_classification
    fewer = training_data(store, labels=6, masks=5, seed=0, shared=False).pools
    chosen = ScoredSet("chex224", "taught", taught)
    all_labels, some = (
        score_baseline("thumbnail-ridge", store, each, [chosen])["chex224/taught"].probability
        for each in (pools, fewer)
    )
    assert not np.allclose(all_labels, some)
