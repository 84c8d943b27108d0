"""The strips: which images are shown, what is on them, and that captions name no one."""

import io
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from multimix.config import preset
from multimix.network import new_network
from multimix.weights import export, save_model
from sim.experiments.case import CentralCase, case_sha256
from sim.experiments.record import MODEL, SCORES, CaseRecord, write_record
from sim.experiments.scores import ScoreFile, Scores, new_scores
from sim.experiments.strips import case_strips, set_strips
from tests.support import phantom_films, rows, tiny_config, write_films

COUNT = 5


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("store") / "films", phantom_films(COUNT))


@pytest.fixture(scope="module")
def network():
    return new_network(tiny_config(), 0)


def scores_of(store, *, dice=None, probability=None, chosen=None):
    chosen = np.arange(COUNT) if chosen is None else chosen
    table = np.full((len(chosen), 5), np.nan)
    table[:, 0] = np.nan if dice is None else dice
    return new_scores(store, chosen, np.full(len(chosen), np.nan) if probability is None else probability, table)


def ranks(strips):
    return [strip.caption.split(": ")[1].split(" ")[0] for strip in strips]


def test_best_median_and_worst_are_by_dice(store, network):
    strips = set_strips(network, store, scores_of(store, dice=[0.5, 0.9, 0.1, 0.7, 0.6]), title="modern on here/test")
    assert [strip.caption.partition(",")[0] for strip in strips] == [
        "modern on here/test: best of 5 by Dice; Dice 0.900",
        "modern on here/test: median of 5 by Dice; Dice 0.600",
        "modern on here/test: worst of 5 by Dice; Dice 0.100",
    ]


def test_without_masks_they_are_by_the_error_of_the_score(store, network):
    label = store.label[:COUNT]
    error = np.array([0.3, 0.2, 0.05, 0.9, 0.4])
    scores = scores_of(store, probability=np.where(label == 1, 1 - error, error))
    strips = set_strips(network, store, scores, title="m")
    shown = [0.05, 0.3, 0.9]  # the least error, the middle one of five, the largest
    assert ranks(strips) == ["best", "median", "worst"]
    for strip, wrong in zip(strips, shown, strict=True):
        label = "pneumonia" if "label pneumonia" in strip.caption else "normal"
        expected = 1 - wrong if label == "pneumonia" else wrong
        assert strip.caption.endswith(f"score of pneumonia {expected:.2f}")


def test_a_strip_has_the_image_the_outlines_and_the_saliency(store, network):
    strip = set_strips(network, store, scores_of(store, dice=[0.5] * COUNT), title="m")[0]
    width, height = Image.open(io.BytesIO(strip.png)).size
    assert height == 192
    assert width == 3 * 192 + 2 * 6  # panels and the gaps between


def test_a_caption_names_no_patient_and_no_row(store, network):
    for chosen in (rows(3), rows(4)):
        (strip,) = set_strips(network, store, scores_of(store, dice=[0.25], chosen=chosen), title="m")
        label = "pneumonia" if store.label[chosen[0]] else "normal"
        assert strip.caption == f"m: best of 1 by Dice; Dice 0.250, label {label}"


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, ["best"]), (2, ["best", "worst"])])
def test_of_few_images_each_is_shown_once(store, network, count, expected):
    scores = scores_of(store, dice=np.linspace(1, 0, count), chosen=np.arange(count))
    assert ranks(set_strips(network, store, scores, title="m")) == expected


def test_the_strips_of_a_finished_case_come_from_its_folder(store, network, tmp_path):
    _finish(tmp_path, store, network)
    strips = case_strips(tmp_path, store, ["here/test", "there/test"])
    assert ranks(strips) == ["best", "median", "worst"]
    assert strips[0].caption.startswith("modern 8-4 on here/test: best of 5 by Dice")


def test_a_case_without_a_model_has_no_strips(store, network, tmp_path):
    assert case_strips(tmp_path, store, ["here/test"]) == ()
    _finish(tmp_path, store, network)
    (tmp_path / MODEL).unlink()
    assert case_strips(tmp_path, store, ["here/test"]) == ()


def test_a_model_of_images_cut_to_the_lungs_has_no_strips_of_whole_ones(store, network, tmp_path):
    _finish(tmp_path, store, network, lungs_by=preset("modern"))
    assert case_strips(tmp_path, store, ["here/test"]) == ()


def _finish(folder, store, network, **changes):
    method = preset("modern")
    case = CentralCase(row="modern", labels=8, masks=4, method=method, steps=1, images_per_group=1, **changes)
    save_model(folder / MODEL, export(network), network.config)
    scores: dict[str, Scores] = {"here/test": scores_of(store, dice=[0.5, 0.9, 0.1, 0.7, 0.6])}
    ScoreFile(scores).save(folder / SCORES)
    record = CaseRecord(
        case=case,
        case_sha256=case_sha256(case),
        data_sha256=store.fingerprint,
        code="0",
        software={},
        device="cpu",
        finished=datetime.now(UTC),
        train_s=0,
        score_s=0,
        parameters=1,
    )
    write_record(folder, record)
