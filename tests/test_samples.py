import io
import re

import numpy as np
import pytest
from PIL import Image
from support import SIZE, Film, phantom_films, rows, tiny_config, write_films

from multimix.network import new_network
from multimix.samples import sample_pictures


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Ten phantoms of patients with telling names; the even ones have masks."""
    films = [
        Film(film.image, f"patient-name-{i}", film.label, film.mask if i % 2 == 0 else None, "lung")
        for i, film in enumerate(phantom_films(10))
    ]
    return write_films(tmp_path_factory.mktemp("samples") / "store", films)


@pytest.fixture(scope="module")
def network():
    return new_network(tiny_config(), 0)


ALL = np.arange(10)


def test_as_many_pictures_are_made_as_asked(network, store):
    pictures = sample_pictures(network, store, ALL, count=3)
    assert len(pictures) == 3
    assert len({picture.png for picture in pictures}) == 3
    for picture in pictures:
        image = Image.open(io.BytesIO(picture.png))
        assert image.format == "PNG"
        assert image.height >= SIZE


def test_captions_tell_label_and_score_and_no_patient(network, store):
    for picture in sample_pictures(network, store, ALL, count=10):
        assert re.fullmatch(r"label (normal|pneumonia), predicted pneumonia [01]\.\d\d", picture.caption)
        assert b"patient-name" not in picture.png


def test_masked_images_are_shown_where_there_are_enough(network, store):
    chosen = sample_pictures(network, store, ALL, count=5)
    assert chosen == sample_pictures(network, store, rows(0, 2, 4, 6, 8), count=5)


def test_with_too_few_masks_any_image_is_shown(network, store):
    assert len(sample_pictures(network, store, ALL, count=6)) == 6


def test_no_image_is_shown_twice(network, store):
    assert len(sample_pictures(network, store, rows(1, 3), count=8)) == 2


def test_no_rows_or_a_count_of_zero_give_no_picture(network, store):
    assert sample_pictures(network, store, rows(), count=3) == ()
    assert sample_pictures(network, store, ALL, count=0) == ()


@pytest.mark.parametrize(
    ("tasks", "caption"),
    [
        ({"classification": False, "bridge": "off"}, r"label \w+"),
        ({"segmentation": False, "bridge": "off"}, r"label \w+, predicted pneumonia [01]\.\d\d"),
    ],
)
def test_a_network_of_one_task_is_pictured_too(store, tasks, caption):
    pictures = sample_pictures(new_network(tiny_config(**tasks), 0), store, ALL, count=2)
    assert all(re.fullmatch(caption, picture.caption) for picture in pictures)
