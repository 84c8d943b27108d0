from dataclasses import replace

import numpy as np
import pytest
import torch
from support import SIZE, Film, phantom_films, rows, training_data, write_films

from multimix.batches import draw_rows, make_batch, slots
from multimix.config import MethodConfig, ObjectiveConfig, ViewConfig, preset, row
from multimix.objective import Slots

CPU = torch.device("cpu")
PAPER = preset("paper", image_size=SIZE, width=2)
SHARED = PAPER.model_copy(update={"objective": ObjectiveConfig(share_unlabelled=True)})
STILL = ViewConfig(flip=False, weak_translate=0, weak_rotate_degrees=0, weak_scale=0)
NO_VIEWS = PAPER.model_copy(update={"views": STILL.model_copy(update={"strong_operations": 0})})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("batches") / "store", phantom_films(12))


@pytest.fixture
def data(store):
    return training_data(
        store, labelled=rows(0, 1, 2), unlabelled=rows(4, 5, 6, 7), masked=rows(1, 2, 3), unmasked=rows(7, 8, 9, 10)
    )


def drawn(data, method=PAPER, **changes):
    return draw_rows(data, method, **{"seed": 1, "step": 0, "images_per_group": 4, **changes})


def made(data, method=PAPER, seed=1, step=0):
    return make_batch(data, drawn(data, method, seed=seed, step=step), method, seed=seed, step=step, device=CPU)


def test_a_step_of_five_by_ten_has_ten_images_a_group():
    # 50 images: 10 labelled, 10 masked, 10 weak and 10 strong for the class, 5 pairs for the mask.
    planned = slots(PAPER, 10)
    assert planned == Slots(labelled=10, masked=10, unlabelled_classification=10, unlabelled_segmentation=5)
    views = planned.labelled + planned.masked + 2 * planned.unlabelled_classification
    assert views + 2 * planned.unlabelled_segmentation == 50


def test_shared_unlabelled_images_are_one_set_of_pairs():
    assert slots(SHARED, 10) == Slots(10, 10, 10, 10)


def test_every_group_is_drawn_from_its_pool(data):
    found = drawn(data)
    assert set(found.labelled) <= {0, 1, 2}
    assert set(found.masked) <= {1, 2, 3}
    assert set(found.unlabelled[found.teaches_classifier]) <= {4, 5, 6, 7}
    assert set(found.unlabelled[found.teaches_decoder]) <= {7, 8, 9, 10}
    assert (len(found.labelled), len(found.masked), found.teaches_classifier.sum(), found.teaches_decoder.sum()) == (
        4,
        4,
        4,
        2,
    )
    assert not (found.teaches_classifier & found.teaches_decoder).any()


def test_a_shared_image_teaches_what_it_has_no_label_for(data):
    seen = {}
    for step in range(10):
        found = drawn(data, SHARED, step=step)
        for image, classifier, decoder in zip(
            found.unlabelled.tolist(), found.teaches_classifier, found.teaches_decoder, strict=True
        ):
            seen[image] = (bool(classifier), bool(decoder))
    assert seen == {
        **dict.fromkeys((4, 5, 6), (True, False)),
        7: (True, True),
        **dict.fromkeys((8, 9, 10), (False, True)),
    }


@pytest.mark.parametrize(
    ("name", "empty"),
    [
        ("u-net", {"labelled", "unlabelled"}),
        ("enc", {"masked", "unlabelled"}),
        ("enc-ssl", {"masked"}),
        ("umtl", {"unlabelled"}),
        ("multimix", set()),
    ],
)
def test_a_row_draws_nothing_that_it_does_not_use(data, name, empty):
    found = drawn(data, row(name, PAPER))
    assert {group for group in ("labelled", "masked", "unlabelled") if not len(getattr(found, group))} == empty
    if name == "enc-ssl":
        assert not found.teaches_decoder.any()


def test_consecutive_steps_walk_through_the_whole_pool(data):
    labelled = np.concatenate([drawn(data, step=step, images_per_group=1).labelled for step in range(6)])
    assert sorted(labelled[:3]) == sorted(labelled[3:]) == [0, 1, 2]


def test_a_batch_is_a_function_of_seed_site_and_step(data):
    first, again = made(data), made(data)
    for name in ("labelled", "masked", "masks", "weak", "strong"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.dropout_seeds == again.dropout_seeds
    for other in (made(data, seed=2), made(data, step=1), made(replace(data, site="b"))):
        assert set(other.dropout_seeds).isdisjoint(first.dropout_seeds)
        assert not torch.equal(other.weak, first.weak)


def test_images_masks_and_labels_of_a_batch_belong_together(data, store):
    found, batch = drawn(data), made(data, NO_VIEWS)
    assert torch.equal(batch.labelled, store.load_images(found.labelled))
    assert batch.labels.tolist() == store.label[found.labelled].tolist()
    assert torch.equal(batch.masked, store.load_images(found.masked))
    assert torch.equal(batch.masks, store.load_masks(found.masked))
    assert torch.equal(batch.weak, store.load_images(found.unlabelled))
    assert torch.equal(batch.strong, batch.weak)
    assert len(batch.dropout_seeds) == 4 + 6 + 4 == len(set(batch.dropout_seeds))


def test_repeated_draws_of_an_image_in_one_step_are_seen_differently(store):
    data = training_data(store, labelled=rows(3))
    batch = made(data)
    assert len({image.numpy().tobytes() for image in batch.labelled}) == 4
    assert len(set(batch.dropout_seeds)) == 4


@pytest.mark.parametrize("method", [PAPER, SHARED])
def test_masks_follow_their_images(tmp_path, method):
    # The image is its own mask, so after any weak view the two must still agree.
    square = np.zeros((SIZE, SIZE), np.uint8)
    square[6:20, 10:25] = 1
    store = write_films(tmp_path / "store", [Film(square * 255, "p", mask=square)])
    batch = made(training_data(store, masked=rows(0)), method)
    assert torch.equal((batch.masked >= 0.5).float(), batch.masks)
    assert len({mask.numpy().tobytes() for mask in batch.masks}) > 1  # they were warped


def test_the_strong_view_lies_over_the_weak_one_where_masks_are_compared(store):
    views = PAPER.views.model_copy(update={"photometric": ("identity",)})  # else geometry, five times in six
    method = PAPER.model_copy(update={"views": views})
    data = training_data(store, unlabelled=rows(0, 1, 2, 3), unmasked=rows(0, 1, 2, 3))
    over_class = []
    for step in range(4):
        batch = made(data, method, step=step)
        for weak, strong, mask in zip(batch.weak, batch.strong, batch.teaches_decoder, strict=True):
            if mask:
                assert torch.equal(weak, strong)
            else:
                over_class.append(torch.equal(weak, strong))
    assert sum(over_class) < len(over_class) / 2  # two draws of six leave one in 36 alone


@pytest.mark.parametrize(("strong_labelled", "same"), [(False, True), (True, False)])
def test_labelled_images_are_strong_views_only_where_asked(data, store, strong_labelled, same):
    views = STILL.model_copy(update={"strong_labelled": strong_labelled, "strong_magnitude": 20.0})
    method = MethodConfig(network=PAPER.network, views=views)
    batch, found = made(data, method), drawn(data, method)
    assert torch.equal(batch.labelled, store.load_images(found.labelled)) is same
    assert torch.equal(batch.masked, store.load_images(found.masked)) is same


def test_the_view_of_an_image_does_not_depend_on_who_else_is_drawn(data, store):
    found = drawn(data)
    whole = made(data)
    fewer = replace(found, labelled=found.labelled[:1], masked=found.masked[:0])
    part = make_batch(data, fewer, PAPER, seed=1, step=0, device=CPU)
    torch.testing.assert_close(part.labelled, whole.labelled[:1], rtol=0, atol=1e-6)
    torch.testing.assert_close(part.strong, whole.strong, rtol=0, atol=1e-6)
    assert part.dropout_seeds == (whole.dropout_seeds[0], *whole.dropout_seeds[4:10])


def test_a_site_without_images_makes_an_empty_batch(store):
    batch = made(training_data(store))
    assert [len(getattr(batch, name)) for name in ("labelled", "masked", "masks", "weak", "strong")] == [0] * 5
    assert batch.labelled.shape[1:] == (1, SIZE, SIZE)
    assert batch.dropout_seeds == ()


def test_the_log_prior_of_the_site_reaches_the_batch(data):
    assert made(replace(data, log_prior=(-0.5, -1.0))).log_prior.tolist() == [-0.5, -1.0]
