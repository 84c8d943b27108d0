"""Images cut to the lungs: where the box is, what lands where, and that nothing but the pixels of a copy changes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multimix.config import NetworkConfig
from multimix.data.store import IMAGES, INDEX
from multimix.network import MultiMixNetwork, new_network
from sim.experiments.lungs import _affine, _cut, cut_to_lungs, lung_box
from tests.support import Film, tiny_config, write_films

SIZE = 32
EVERYTHING = (0, SIZE, 0, SIZE)


def drawn(*boxes, size=SIZE):
    mask = np.zeros((size, size), bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


@st.composite
def boxes(draw, least=8):
    top, left = (draw(st.integers(0, SIZE - least)) for _ in range(2))
    return top, draw(st.integers(top + least, SIZE)), left, draw(st.integers(left + least, SIZE))


@given(boxes())
def test_the_box_of_a_rectangle_is_the_rectangle(box):
    assert lung_box(drawn(box)) == box


def test_the_box_is_around_both_lungs():
    assert lung_box(drawn((6, 28, 3, 12), (4, 25, 20, 30))) == (4, 28, 3, 30)


def test_a_mask_that_fills_the_image_has_the_whole_image_as_its_box():
    assert lung_box(drawn(EVERYTHING)) == EVERYTHING


def test_a_speck_does_not_widen_the_box():
    lungs = (8, 24, 8, 24)  # 256 pixels: a part below 25.6 is none
    assert lung_box(drawn(lungs, (0, 5, 0, 5))) == lungs
    assert lung_box(drawn(lungs, (0, 2, 0, 13))) == (0, 24, 0, 24)


def test_a_part_of_exactly_a_tenth_of_the_largest_is_kept():
    assert lung_box(drawn((10, 20, 10, 20), (0, 1, 0, 10))) == (0, 20, 0, 20)


def test_of_many_specks_of_one_size_all_are_kept():
    assert lung_box(drawn(*((y, y + 4, x, x + 4) for y in (2, 20) for x in (5, 25)))) == (2, 24, 5, 29)


def test_a_mask_that_draws_nothing_has_no_box():
    assert lung_box(drawn()) is None


def test_a_mask_of_less_than_a_twentieth_of_the_image_has_no_box():
    # 5 % of 1024 pixels are 51.2.
    assert lung_box(drawn((0, 3, 0, 17))) is None
    assert lung_box(drawn((0, 4, 0, 13))) == (0, 4, 0, 13)


def test_specks_do_not_make_a_drawing_trusted():
    specks = [(y, y + 1, x, x + 2) for y in range(10, 32, 2) for x in range(0, 30, 4)]
    assert drawn(*specks).mean() > 0.1
    assert lung_box(drawn((0, 5, 0, 10), *specks)) is None


@given(boxes(), st.sampled_from([0.0, 0.05, 0.5]))
def test_the_edges_of_a_box_and_its_margin_land_on_the_edges_of_the_image(box, margin):
    top, bottom, left, right = box
    corners = torch.tensor([[-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])  # of the image that is made: x, y, one
    (x0, y0), (x1, y1) = ((corners @ _affine(box, SIZE, margin).T + 1) / 2 * SIZE).tolist()
    more_x, more_y = margin * (right - left), margin * (bottom - top)
    assert [x0, x1, y0, y1] == pytest.approx([left - more_x, right + more_x, top - more_y, bottom + more_y], abs=1e-4)


@given(boxes())
def test_every_pixel_comes_from_its_place_in_the_box(box):
    # Of a ramp, the grey level tells the place: rows in the first image, columns in the second.
    ramp = torch.arange(SIZE).float() * 8 / 255
    images = torch.stack([ramp[:, None].expand(SIZE, SIZE), ramp.expand(SIZE, SIZE)])[:, None]
    found = _cut(images, [box, box])
    centres = (np.arange(SIZE) + 0.5) / SIZE
    for image, (start, end) in zip((found[0].T, found[1]), (box[:2], box[2:]), strict=True):
        margin = 0.05 * (end - start)
        place = start - margin + centres * (end - start + 2 * margin) - 0.5
        expected = 8 * np.clip(place, 0, SIZE - 1)
        assert np.abs(image.astype(float) - expected).max() <= 0.51


def test_an_image_without_a_box_is_unchanged_beside_one_with():
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE), np.uint8)
    found = _cut(torch.from_numpy(pixels)[:, None].float() / 255, [None, (4, 20, 8, 28)])
    assert (found[0] == pixels[0]).all()
    assert (found[1] != pixels[1]).any()
    assert found.dtype == np.uint8


@given(boxes(), st.sampled_from([0, 1, 127, 255]))
def test_a_margin_beyond_the_image_is_not_black(box, grey):
    assert (_cut(torch.full((1, 1, SIZE, SIZE), grey / 255), [box]) == grey).all()


class _DrawsWhatIsBright(MultiMixNetwork):
    """A U-Net whose masks are known: what is brighter than middle grey."""

    def __init__(self):
        super().__init__(NetworkConfig(image_size=SIZE, width=2, classification=False, bridge="off"))

    def encode(self, images, dropout=None):
        return [images]

    def decode(self, levels, bridge, dropout=None):
        return 20 * (levels[0] - 0.5)


# More than a batch of 16, each with lungs of its own; the last has none. The second batch has no masks.
LUNGS = [(4 + n % 5, 26 + n % 3, 3 + n % 7, 22 + n % 4) for n in range(18)]


def film(number, lungs):
    image = np.full((SIZE, SIZE), 10 + number, np.uint8)
    image[drawn(*lungs)] = 200 + number
    return Film(
        image, f"p{number}", ("normal", "pneumonia")[number % 2], drawn(*lungs) if number % 3 and number < 16 else None
    )


@pytest.fixture
def store(tmp_path):
    films = [film(number, [box]) for number, box in enumerate(LUNGS)]
    return write_films(tmp_path / "store", [*films, film(len(films), [])])


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_image_of_the_copy_is_cut_to_its_own_lungs(store, tmp_path):
    with cut_to_lungs(store, _DrawsWhatIsBright(), tmp_path / "scratch") as copy:
        found = 255 * copy.load_images(np.arange(len(store)))[:, 0].numpy()
    for number, image in enumerate(found[:-1]):
        # 1 / 1.1 of 32 pixels are 29.1: all but the outer two are lung, and they are no more.
        assert (image[2:-2, 2:-2] == 200 + number).all()
        assert image[0].max() < 200 > image[-1].max()
        assert image[:, 0].max() < 200 > image[:, -1].max()
    assert (found[-1] == 10 + len(LUNGS)).all()


def test_the_copy_keeps_everything_but_the_pixels(store, tmp_path):
    with cut_to_lungs(store, _DrawsWhatIsBright(), tmp_path / "scratch") as copy:
        assert copy.path != store.path
        for name in ("label", "patient", "mask_row", "convention", "split", "source", "image_row"):
            assert (getattr(copy, name) == getattr(store, name)).all()
        masked = np.flatnonzero(store.mask_row >= 0)
        assert torch.equal(copy.load_masks(masked), store.load_masks(masked))
        before, after = files_of(store.path), files_of(copy.path)
        assert {name for name in after if before[name] != after[name]} == {IMAGES}
        assert len(after[IMAGES]) == len(before[IMAGES])


def test_the_original_store_is_unchanged(store, tmp_path):
    before = files_of(store.path)
    images = store.load_images(np.arange(len(store)))
    with cut_to_lungs(store, _DrawsWhatIsBright(), tmp_path / "scratch"):
        assert torch.equal(store.load_images(np.arange(len(store))), images)
    assert files_of(store.path) == before
    assert before.keys() >= {IMAGES, INDEX}


def test_a_network_that_draws_no_lungs_leaves_the_images_as_they_are(store, tmp_path):
    network = new_network(tiny_config(classification=False, bridge="off"), 0)
    torch.nn.init.constant_(network.decoder.output.bias, -1000.0)
    with cut_to_lungs(store, network, tmp_path / "scratch") as copy:
        assert files_of(copy.path) == files_of(store.path)


def test_the_copy_is_removed_when_it_is_no_longer_needed(store, tmp_path):
    with cut_to_lungs(store, _DrawsWhatIsBright(), tmp_path / "deep" / "scratch") as copy:
        assert copy.path.is_relative_to(tmp_path / "deep" / "scratch")
    assert list((tmp_path / "deep" / "scratch").iterdir()) == []


def test_the_copy_is_removed_when_training_on_it_fails(store, tmp_path):
    with pytest.raises(KeyboardInterrupt), cut_to_lungs(store, _DrawsWhatIsBright(), tmp_path / "scratch"):
        raise KeyboardInterrupt
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_network_without_a_decoder_is_refused_and_leaves_nothing(store, tmp_path):
    network = new_network(tiny_config(segmentation=False, bridge="off"), 0)
    with pytest.raises(ValueError, match="no lungs"), cut_to_lungs(store, network, tmp_path / "scratch"):
        pytest.fail("it was cut")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_images_of_a_real_network_s_lungs_are_cut_the_same_again(store, tmp_path):
    network, cut = new_network(tiny_config(), 3), []
    for _ in range(2):
        with cut_to_lungs(store, network, tmp_path / "scratch") as copy:
            cut.append(files_of(copy.path)[IMAGES])
    assert cut[0] == cut[1]
