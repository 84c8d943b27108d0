import numpy as np
import pytest
import torch
from support import SIZE, Film, phantom_films, rows, tiny_config, write_films

from multimix.contract.messages import MEAN_MASK_SIDE
from multimix.evaluation import (
    ModelTime,
    enlarge_mean_mask,
    evaluate,
    predict,
    predictions,
    reduce_mean_mask,
)
from multimix.metrics import hausdorff_px
from multimix.network import new_network
from multimix.saliency import view

COUNT = 20  # more than one batch of predictions
ALL = np.arange(COUNT)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Phantoms of two conventions: every fourth without label, every fifth without mask, two of one patient."""
    films = []
    for index, film in enumerate(phantom_films(COUNT)):
        label = ("unknown", film.label, film.label, "other" if index == 3 else film.label)[index % 4]
        mask = None if index % 5 == 0 else film.mask
        convention = "with heart" if index % 2 else "without heart"
        films.append(Film(film.image, f"p{max(index, 1)}", label, mask, convention))
    return write_films(tmp_path_factory.mktemp("evaluation") / "store", films)


@pytest.fixture(scope="module")
def network(store):
    """A fresh network, its scores moved so that half of them fall on each side of one half."""
    made = new_network(tiny_config(), 3)
    with torch.no_grad():
        scores = made.classify(made.encode(store.load_images(ALL)))
        made.classifier.linear.bias[1] -= (scores[:, 1] - scores[:, 0]).median()
        made.classifier.linear.bias[1] -= 1e-4  # no score lies on the threshold
    return made


def one_by_one(network, store):
    """Each image's prediction alone, computed from the network's parts."""
    for image in ALL:
        images = store.load_images(rows(image))
        seen = view(network, images)
        with torch.no_grad():
            mask = network.decode(seen.levels, seen.bridge).sigmoid()[0, 0].numpy()
        yield float(seen.class_logits.double().softmax(dim=1)[0, 1]), mask


def test_classification_statistics_are_those_of_the_predictions(network, store):
    statistics = evaluate(network, store, ALL).classification
    counts, scores = np.zeros((2, 2), int), []
    for (score, _), label in zip(one_by_one(network, store), store.label, strict=True):
        if label in (0, 1):
            counts[label, int(score >= 0.5)] += 1
            scores.append(score)
    assert statistics.confusion == ((counts[0, 0], counts[0, 1]), (counts[1, 0], counts[1, 1]))
    assert min(counts.sum(axis=0)) > 0, "both classes are predicted, so the counts can be told apart"
    assert statistics.score_sum == pytest.approx(sum(scores), rel=1e-5)
    assert statistics.images == len(scores) == 14  # 20 less 5 unlabelled and the one of another label


def test_segmentation_statistics_are_those_of_the_masks_by_convention(network, store):
    tables = evaluate(network, store, ALL).segmentation
    expected = {"with heart": [], "without heart": []}
    for image, (_, mask) in enumerate(one_by_one(network, store)):
        if store.mask_row[image] < 0:
            continue
        truth, guess = store.load_masks(rows(image))[0, 0].numpy() > 0, mask >= 0.5
        overlap, size = (truth & guess).sum(), truth.sum() + guess.sum()
        expected[str(store.convention[image])].append((2 * overlap / size, hausdorff_px(guess, truth)))
    assert set(tables) == set(expected)
    for convention, values in expected.items():
        dice, hausdorff = np.array(values).T
        table = tables[convention]
        assert table.images == len(values) == 8
        assert table.dice.total == pytest.approx(dice.sum(), abs=1e-3)
        assert table.dice.squares == pytest.approx((dice**2).sum(), abs=1e-3)
        assert table.hausdorff_px.total == pytest.approx(hausdorff.sum(), rel=0.02)


def test_patients_and_images_are_counted(network, store):
    statistics = evaluate(network, store, ALL)
    assert (statistics.images, statistics.patients) == (COUNT, COUNT - 1)


def test_scoring_twice_or_in_another_order_gives_the_same_counts(network, store):
    first, again = evaluate(network, store, ALL), evaluate(network.train(), store, ALL)
    assert first == again
    backwards = evaluate(network, store, ALL[::-1])
    assert backwards.classification.confusion == first.classification.confusion
    assert backwards.segmentation["with heart"].dice.total == pytest.approx(
        first.segmentation["with heart"].dice.total, abs=1e-3
    )


def test_no_rows_give_empty_statistics(network, store):
    statistics = evaluate(network, store, rows())
    assert (statistics.images, statistics.patients, statistics.classification, statistics.segmentation) == (
        0,
        0,
        None,
        {},
    )


def test_rows_without_label_or_mask_give_no_table(network, store):
    statistics = evaluate(network, store, rows(0))
    assert (statistics.images, statistics.classification, statistics.segmentation) == (1, None, {})


@pytest.mark.parametrize(
    ("tasks", "classes", "masks"),
    [
        ({"classification": False, "bridge": "off"}, False, True),
        ({"segmentation": False, "bridge": "off"}, True, False),
    ],
)
def test_a_network_of_one_task_is_scored_on_that_task(store, tasks, classes, masks):
    network = new_network(tiny_config(**tasks), 0)
    statistics = evaluate(network, store, ALL)
    assert (statistics.classification is not None, bool(statistics.segmentation)) == (classes, masks)
    prediction = predict(network, store.load_images(rows(0, 1)))
    assert (prediction.pneumonia is not None, prediction.mask is not None) == (classes, masks)
    assert prediction.saliency is None


def test_predictions_are_probabilities_of_the_shapes_stated(network, store):
    prediction = predict(network, store.load_images(rows(0, 1, 2)))
    assert prediction.pneumonia.shape == (3,)
    assert prediction.mask.shape == prediction.saliency.shape == (3, SIZE, SIZE)
    for values in (prediction.pneumonia, prediction.mask):
        assert 0 <= values.min() <= values.max() <= 1
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("bridge", ["saliency", "random"])
def test_a_prediction_does_not_depend_on_the_batch(store, bridge):
    network = new_network(tiny_config(bridge=bridge), 0)
    together = predict(network, store.load_images(rows(0, 1, 2)))
    alone = predict(network, store.load_images(rows(2)))
    np.testing.assert_allclose(alone.mask[0], together.mask[2], atol=1e-4)
    np.testing.assert_allclose(alone.pneumonia[0], together.pneumonia[2], atol=1e-5)


def test_every_row_is_predicted_once_in_order_and_the_model_is_timed(network, store):
    spent = ModelTime()
    parts = list(predictions(network, store, ALL[::-1], spent))
    assert np.concatenate([part for part, _ in parts]).tolist() == ALL[::-1].tolist()
    assert all(len(part) == len(prediction.mask) for part, prediction in parts)
    assert spent.model_s > 0


def test_masks_are_drawn_only_where_there_is_one_to_compare_with(network, store):
    without = np.flatnonzero(store.mask_row < 0)
    ((_, drawn),) = predictions(network, store, without, ModelTime(), every_mask=True)
    ((_, spared),) = predictions(network, store, without, ModelTime())
    assert drawn.mask is not None
    assert (spared.mask, spared.saliency) == (None, None)
    assert np.array_equal(spared.pneumonia, drawn.pneumonia)


def half_masks(tmp_path, shares):
    """A store of masks that cover the upper part of the image, each a share of it."""
    films = []
    for index, share in enumerate(shares):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[: round(share * SIZE)] = 1
        films.append(Film(np.full((SIZE, SIZE), index, np.uint8), f"p{index}", mask=mask))
    return write_films(tmp_path / "masks", films)


def test_the_mean_mask_is_the_share_of_images_with_lung_at_a_pixel(tmp_path):
    store = half_masks(tmp_path, [0.25, 0.5, 0.5, 1.0])
    mean = reduce_mean_mask(store, rows(0, 1, 2, 3))
    assert mean.shape == (MEAN_MASK_SIDE, MEAN_MASK_SIDE)
    quarter = MEAN_MASK_SIDE // 4
    expected = np.repeat([1.0, 0.75, 0.25, 0.25], quarter)
    np.testing.assert_allclose(mean, np.broadcast_to(expected[:, None], mean.shape))


def test_the_mean_mask_of_no_image_is_empty(tmp_path):
    assert reduce_mean_mask(half_masks(tmp_path, [0.5]), rows()).max() == 0.0


@pytest.mark.parametrize("size", [32, 48, 128])
def test_a_mean_mask_fits_any_image_size(size):
    mean = np.zeros((MEAN_MASK_SIDE, MEAN_MASK_SIDE))
    mean[: MEAN_MASK_SIDE // 2] = 1.0
    large = enlarge_mean_mask(mean, size) >= 0.5
    assert np.array_equal(large, np.arange(size)[:, None].repeat(size, 1) < size / 2)


def test_the_mean_mask_is_scored_beside_the_model(tmp_path):
    store = half_masks(tmp_path, [0.25, 0.5])
    mean = np.zeros((MEAN_MASK_SIDE, MEAN_MASK_SIDE))
    mean[: MEAN_MASK_SIDE // 2] = 1.0
    network = new_network(tiny_config(), 0)
    table = evaluate(network, store, rows(0, 1), mean_mask=mean).mean_mask["lung"]
    assert table.images == 2
    assert table.dice.total == pytest.approx(2 * 0.25 / (0.25 + 0.5) + 1.0)
    assert evaluate(network, store, rows(0, 1)).mean_mask == {}
