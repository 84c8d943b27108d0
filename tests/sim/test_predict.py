import csv

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from multimix.config import NetworkConfig
from multimix.errors import InputError
from multimix.network import new_network
from multimix.weights import export, save_model
from sim.cli import app
from sim.predict import predict_images

SIZE = 32


def _save(folder, **changes):
    config = NetworkConfig(image_size=SIZE, width=2, **changes)
    save_model(folder / "model.safetensors", export(new_network(config, 0)), config)
    return folder / "model.safetensors"


@pytest.fixture
def model(tmp_path):
    return _save(tmp_path)


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.JPG", "more/b.png"]):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_every_image_of_a_folder_gets_a_row_and_files_of_its_own(model, films, tmp_path):
    rows = predict_images(model, [films], tmp_path / "out")
    assert [row.image for row in rows] == [str(films / name) for name in ("a.JPG", "b.png", "more/b.png")]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"predictions.csv"} | {row.overlay for row in rows} | {row.mask for row in rows}
    assert len(written) == 7
    with (tmp_path / "out" / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["pneumonia"]) for line in table] == [row.pneumonia for row in rows]


def test_the_lung_fraction_is_that_of_the_mask_file(model, films, tmp_path):
    for row in predict_images(model, [films], tmp_path / "out"):
        mask = np.asarray(Image.open(tmp_path / "out" / row.mask).convert("L"))
        assert (mask > 0).mean() == pytest.approx(row.lung_fraction)


def test_the_same_image_gets_the_same_prediction_again(model, films, tmp_path):
    one, two = (predict_images(model, [films / "b.png"], tmp_path / out) for out in ("one", "two"))
    assert one == two


def test_padding_and_stretching_are_different_pictures_of_an_oblong_image(model, films, tmp_path):
    padded = predict_images(model, [films / "b.png"], tmp_path / "a", fit="pad")
    stretched = predict_images(model, [films / "b.png"], tmp_path / "b", fit="stretch")
    assert padded[0].pneumonia != stretched[0].pneumonia


def test_a_model_of_one_task_leaves_the_other_empty(films, tmp_path):
    (tmp_path / "encoder").mkdir()
    (row,) = predict_images(
        _save(tmp_path / "encoder", segmentation=False, bridge="off"), [films / "b.png"], tmp_path / "out"
    )
    assert row.mask is None
    assert row.lung_fraction is None
    assert 0.0 <= row.pneumonia <= 1.0


def test_progress_counts_up_to_the_number_of_images(model, films, tmp_path):
    seen = []
    predict_images(model, [films], tmp_path / "out", progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_file_that_does_not_exist_is_named(model, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.png") as caught:
        predict_images(model, [tmp_path / "nothing.png"], tmp_path / "out")
    assert caught.value.reason == "image_missing"
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_image_is_named_and_leaves_no_table(model, films, tmp_path):
    with pytest.raises(InputError, match=r"notes\.txt"):
        predict_images(model, [films / "notes.txt"], tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_an_unknown_fit_is_refused(model, films, tmp_path):
    with pytest.raises(InputError, match="pad or stretch"):
        predict_images(model, [films], tmp_path / "out", fit="crop")


def test_a_folder_that_cannot_be_written_is_named(model, films, tmp_path):
    (tmp_path / "out").write_text("a file in its place")
    with pytest.raises(InputError, match="Cannot write") as caught:
        predict_images(model, [films], tmp_path / "out")
    assert caught.value.reason == "unwritable-file"


def test_a_path_with_brackets_is_printed_as_it_is(model, tmp_path):
    done = CliRunner().invoke(app, ["predict", str(model), str(tmp_path / "[/red] films")])
    assert done.exit_code == 2
    assert "[/red] films" in done.output
