"""One round at a hospital: what leaves, what is refused, and that nothing stays."""

import math

import numpy as np
import pytest
import torch
from tiny_hospitals import (
    EXPERT,
    HEART,
    HOSPITALS,
    KEY,
    METHOD,
    OPEN,
    SIZE,
    WEIGHTS,
    dealt,
    order,
    site_of,
    write_radiographs,
)

from client.policy import SitePolicy
from client.site import LocalSite
from multimix.config import row
from multimix.contract.messages import MODULES, ClassCounts, LocalWork, Teachers, weights_sha256
from multimix.data.hospitals import Hospital
from multimix.errors import Refused
from multimix.network import new_network
from multimix.weights import export

NOBODY = Teachers(labelled=0, unlabelled=0)
# Enough draws of every pool that each of the 8 training patients (9 images) is seen.
THOROUGH = LocalWork(steps=5, images_per_group=4, total_steps=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_radiographs(tmp_path_factory.mktemp("radiographs"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def hospitals(data, cache) -> dict[str, Hospital]:
    return dealt(data, cache)


def refusal(answer, *asked) -> Refused:
    with pytest.raises(Refused) as caught:
        answer(*asked)
    return caught.value


def sent_bytes(weights) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in weights.items()}


# --- describe


@pytest.mark.parametrize("name", HOSPITALS)
def test_a_card_counts_what_the_store_holds(hospitals, name):
    label_of, origin_of = HOSPITALS[name]
    card = site_of(hospitals[name]).describe()
    assert (card.site, card.images, card.patients, card.image_size) == (name, 15, 14, SIZE)
    held_out = name == "outside"
    assert card.role == ("held-out" if held_out else "train")
    training = [] if held_out else range(8)
    assert card.training_patients == len(training)
    counts = [sum(label_of(i) == label for i in training) for label in (0, 1)]
    assert card.labelled_patients == ClassCounts(normal=counts[0], pneumonia=counts[1])
    origins = [origin_of(i) for i in training if origin_of(i)]
    masked = {EXPERT: origins.count("expert"), HEART: len(origins) - origins.count("expert")}
    assert card.masked_patients == {convention: count for convention, count in masked.items() if count}


def test_a_card_names_the_conventions_of_test_masks_too(hospitals):
    assert site_of(hospitals["mixed"]).describe().conventions == (HEART, EXPERT)
    assert site_of(hospitals["outside"]).describe().conventions == (EXPERT,)
    assert site_of(hospitals["bare"]).describe().conventions == ()


def test_a_budget_bounds_what_the_card_counts(data, cache):
    card = site_of(dealt(data, cache, labels="4", masks="3")["both"]).describe()
    assert card.labelled_patients.normal + card.labelled_patients.pneumonia <= 4
    assert 1 <= card.masked_patients[EXPERT] <= 3


def test_a_budget_counts_for_each_convention_because_one_is_learned(data, cache):
    # 5 patients have expert masks, 3 the others: a budget of 1 mask gives 1 patient whichever is learned.
    card = site_of(dealt(data, cache, masks="1")["mixed"]).describe()
    assert card.masked_patients == {EXPERT: 1, HEART: 1}


def test_the_mean_mask_is_the_average_of_the_training_masks(hospitals):
    (mean,) = site_of(hospitals["both"]).describe().mean_masks.values()
    grid = np.array(mean).reshape(32, 32)
    # write_radiographs: rows 8 to 23, from column 4 + patient to 19; patient 0 has two images.
    masks = np.zeros((9, SIZE, SIZE))
    for mask, patient in zip(masks, [0, *range(8)], strict=True):
        mask[8:24, 4 + patient : 20] = 1
    assert np.abs(grid / 255 - masks.mean(axis=0)).max() <= 0.5 / 255 + 1e-9


@pytest.mark.parametrize(("minimum", "released"), [(6, True), (9, False)])
def test_the_mean_mask_of_fewer_patients_than_the_minimum_is_withheld(hospitals, minimum, released):
    policy = OPEN.model_copy(update={"minimum_cohort": minimum})  # 8 patients in 9 images
    assert bool(site_of(hospitals["both"], policy).describe().mean_masks) == released


def test_the_minimum_holds_for_each_convention(hospitals):
    policy = OPEN.model_copy(update={"minimum_cohort": 4})  # 5 patients by one, 3 by the other
    assert set(site_of(hospitals["mixed"], policy).describe().mean_masks) == {EXPERT}


def test_a_mean_mask_that_policy_does_not_release_stays(hospitals):
    policy = OPEN.model_copy(update={"release_mean_mask": False})
    assert site_of(hospitals["both"], policy).describe().mean_masks == {}


def test_a_held_out_site_shows_no_mean_mask(hospitals):
    assert site_of(hospitals["outside"]).describe().mean_masks == {}


def test_a_card_names_nobody_and_no_path(hospitals, data, cache):
    text = site_of(hospitals["both"]).describe().model_dump_json()
    for private in ("secret-", str(data), str(cache), ".png", "manifest"):
        assert private not in text


# --- train


def test_training_answers_with_finite_weights_of_the_same_shapes_bound_by_hash(hospitals):
    signed = order()
    answer = site_of(hospitals["both"]).train(signed, WEIGHTS)
    assert {name: value.shape for name, value in answer.weights.items()} == {k: v.shape for k, v in WEIGHTS.items()}
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in answer.weights.values())
    assert answer.report.weights_sha256 == weights_sha256(answer.weights) != weights_sha256(WEIGHTS)
    report = answer.report
    assert (report.site, report.job_id, report.round, report.plan_sha256) == ("both", "job", 1, signed.sha256)
    assert report.steps == 2
    assert math.isfinite(report.losses["total"])


def test_training_leaves_no_state_so_the_same_plan_gives_the_same_bytes(hospitals):
    site = site_of(hospitals["both"])
    first = site.train(order(), WEIGHTS)
    site.train(order(round=2, seed=9), WEIGHTS)
    torch.rand(3)  # whatever else draws from the global stream
    again = site_of(hospitals["both"])
    assert sent_bytes(again.train(order(), WEIGHTS).weights) == sent_bytes(first.weights)
    assert sent_bytes(again.train(order(), WEIGHTS).weights) == sent_bytes(first.weights)


def test_training_does_not_touch_the_weights_it_was_given(hospitals):
    before = sent_bytes(WEIGHTS)
    site_of(hospitals["both"]).train(order(), WEIGHTS)
    assert sent_bytes(WEIGHTS) == before


def test_another_seed_trains_otherwise(hospitals):
    a, b = (site_of(hospitals["both"]).train(order(seed=seed), WEIGHTS) for seed in (1, 2))
    assert a.report.weights_sha256 != b.report.weights_sha256


@pytest.mark.parametrize(
    ("name", "classifier", "decoder", "encoder"),
    [
        ("both", (8, 0), (8, 0), (8, 0)),
        ("labels", (8, 0), (0, 8), (8, 0)),
        ("masks", (0, 8), (8, 0), (8, 0)),
        ("bare", (0, 8), (0, 8), (0, 8)),
    ],
)
def test_a_site_teaches_by_what_it_knows_and_by_consistency_for_the_rest(hospitals, name, classifier, decoder, encoder):
    report = site_of(hospitals[name]).train(order(work=THOROUGH), WEIGHTS).report
    expected = {"classifier": classifier, "decoder": decoder, "encoder": encoder}
    assert {module: (t.labelled, t.unlabelled) for module, t in report.teachers.items()} == expected


def test_a_site_of_one_class_does_not_supervise_the_classifier(hospitals):
    report = site_of(hospitals["healthy"]).train(order(work=THOROUGH), WEIGHTS).report
    assert report.teachers["classifier"] == Teachers(labelled=0, unlabelled=8)
    assert report.teachers["decoder"].labelled == 8
    assert "classification" not in report.losses


@pytest.mark.parametrize("treatment", ["plain", "logit_adjusted"])
def test_a_site_of_one_class_supervises_where_the_plan_says_so(hospitals, treatment):
    asked = order(work=THOROUGH, one_class_sites=treatment)
    report = site_of(hospitals["healthy"]).train(asked, WEIGHTS).report
    assert report.teachers["classifier"] == Teachers(labelled=8, unlabelled=0)


def test_logit_adjustment_lowers_what_a_site_of_one_class_learns_about_it(hospitals):
    """With prior (9/10, 1/10) added to the logits the loss of `normal` images is smaller from the start."""
    losses = {}
    for treatment in ("plain", "logit_adjusted"):
        asked = order(one_class_sites=treatment, work=LocalWork(steps=1, images_per_group=8, total_steps=1))
        losses[treatment] = site_of(hospitals["healthy"]).train(asked, WEIGHTS).report.losses["classification"]
    # CE of (a, b) for class a is log(1 + e^(b - a)); the shift b - a falls by log 9, so e^loss - 1 falls ninefold.
    # The mean over images of a convex function obeys that only to the spread of the logits.
    plain, adjusted = (math.expm1(losses[t]) for t in ("plain", "logit_adjusted"))
    assert plain / adjusted == pytest.approx(9, rel=0.05)


@pytest.mark.parametrize(("minimum", "labelled"), [(4, 8), (5, 0)])
def test_both_classes_need_the_minimum_of_patients(hospitals, minimum, labelled):
    asked = order(work=THOROUGH, minimum_class_patients=minimum)  # 4 patients of each class, 5 images of normal
    report = site_of(hospitals["both"]).train(asked, WEIGHTS).report
    assert report.teachers["classifier"].labelled == labelled


@pytest.mark.parametrize(("convention", "masked"), [(EXPERT, 5), (HEART, 3), ("unheard of", 0), (None, 8)])
def test_masks_of_another_convention_teach_by_consistency_only(hospitals, convention, masked):
    asked = order(work=LocalWork(steps=8, images_per_group=4, total_steps=8), mask_convention=convention)
    decoder = site_of(hospitals["mixed"]).train(asked, WEIGHTS).report.teachers["decoder"]
    assert (decoder.labelled, decoder.labelled + decoder.unlabelled) == (masked, 8)


def test_the_classifier_is_untouched_where_the_method_has_none(hospitals):
    method = row("u-net", METHOD)
    weights = export(new_network(method.network, 0))
    report = site_of(hospitals["both"]).train(order(weights=weights, method=method), weights).report
    assert report.teachers["classifier"] == NOBODY
    assert set(report.teachers) == set(MODULES)


def test_a_site_with_nothing_to_learn_from_refuses(hospitals):
    """Held out for training, yet asked as a training site whose rows are all test."""
    empty = Hospital(**{**vars(hospitals["outside"]), "role": "train", "rows": np.empty(0, np.int64)})
    assert refusal(site_of(empty).train, order(), WEIGHTS).reason == "no_training_images"


def test_an_evaluation_rides_along_where_asked(hospitals):
    answer = site_of(hospitals["both"]).train(order(evaluate_on="validation"), WEIGHTS)
    assert answer.report.evaluation.split == "validation"
    assert answer.report.evaluation.statistics.images == 2
    scored_alone = site_of(hospitals["both"]).evaluate(order("evaluate", evaluate_on="validation"), WEIGHTS)
    assert answer.report.evaluation.statistics == scored_alone.report.statistics  # of the weights received


def test_an_evaluation_does_not_change_what_is_trained(hospitals):
    plain = site_of(hospitals["both"]).train(order(), WEIGHTS)
    scored = site_of(hospitals["both"]).train(order(evaluate_on="test"), WEIGHTS)
    assert plain.report.evaluation is None
    assert sent_bytes(scored.weights) == sent_bytes(plain.weights)


def test_an_evaluation_that_policy_does_not_release_is_left_out(hospitals):
    policy = OPEN.model_copy(update={"release_evaluation": False})
    assert site_of(hospitals["both"], policy).train(order(evaluate_on="test"), WEIGHTS).report.evaluation is None


def test_a_diverged_model_is_never_sent(hospitals):
    """Weights at the end of float32 overflow in the first forward pass."""
    huge = {name: np.full_like(value, 3e38) for name, value in WEIGHTS.items()}
    assert refusal(site_of(hospitals["both"]).train, order(weights=huge), huge).reason == "training_diverged"


# --- refused


def test_wrong_weights_are_refused_by_their_hash(hospitals):
    altered = {**WEIGHTS, "classifier.linear.bias": WEIGHTS["classifier.linear.bias"] + np.float32(1e-6)}
    site = site_of(hospitals["both"])
    assert refusal(site.train, order(), altered).reason == "weights_hash"
    assert refusal(site.evaluate, order("evaluate"), altered).reason == "weights_hash"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "classifier.linear.bias"}, "weights_shape"),
        (lambda w: {**w, "classifier.linear.bias": np.zeros(3, np.float32)}, "weights_shape"),
        (lambda w: {**w, "head": np.zeros(3, np.float32)}, "weights_shape"),
        (lambda w: {k: v.astype(np.float64) for k, v in w.items()}, "weights_type"),
        (lambda w: {k: v.astype(">f4") for k, v in w.items()}, "weights_type"),
        (lambda w: {**w, "classifier.linear.bias": np.array(["a", "b"])}, "weights_type"),
        (lambda _: {}, "weights_shape"),
    ],
    ids=["one missing", "other shape", "one more", "float64", "big-endian", "text", "none"],
)
def test_weights_that_do_not_fit_are_refused_even_when_signed_for(hospitals, change, reason):
    weights = change(WEIGHTS)
    assert refusal(site_of(hospitals["both"]).train, order(weights=weights), weights).reason == reason


def test_another_image_size_than_the_stored_is_refused_with_both(hospitals):
    method = METHOD.model_copy(update={"network": METHOD.network.model_copy(update={"image_size": 48})})
    refused = refusal(site_of(hospitals["both"]).train, order(method=method), WEIGHTS)
    assert (refused.reason, refused.detail) == ("image_size", "asked 48 px, stored 32 px")


def test_a_held_out_site_does_not_train_but_evaluates(hospitals):
    assert refusal(site_of(hospitals["outside"]).train, order(), WEIGHTS).reason == "site_held_out"
    report = site_of(hospitals["outside"]).evaluate(order("evaluate"), WEIGHTS).report
    assert report.statistics.images == 15  # all of a held-out hospital is test


def test_a_changed_plan_for_the_same_round_is_refused(hospitals):
    site = site_of(hospitals["both"])
    site.train(order(round=2), WEIGHTS)
    assert refusal(site.train, order(round=2, seed=6), WEIGHTS).reason == "plan_changed"


def test_an_older_round_is_refused(hospitals):
    site = site_of(hospitals["both"])
    site.train(order(round=2), WEIGHTS)
    assert refusal(site.train, order(round=1), WEIGHTS).reason == "plan_replayed"


def test_a_refused_order_does_not_use_up_its_round(hospitals):
    site = site_of(hospitals["both"])
    assert refusal(site.train, order(round=9), {}).reason == "weights_hash"
    assert site.train(order(round=2), WEIGHTS).report.round == 2


@pytest.mark.parametrize(("kind", "asked_of"), [("train", "evaluate"), ("evaluate", "train")])
def test_a_plan_of_one_kind_is_no_order_of_the_other(hospitals, kind, asked_of):
    answer = getattr(site_of(hospitals["both"]), asked_of)
    assert refusal(answer, order(kind), WEIGHTS).reason == "plan_malformed"


def test_a_gpu_that_is_not_there_is_refused_by_name(hospitals):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    site = LocalSite(hospitals["both"], OPEN, KEY.public_key(), device="cuda")
    assert refusal(site.describe).reason == "device_unavailable"
    assert refusal(site.train, order(), WEIGHTS).reason == "device_unavailable"


# --- evaluate


def test_an_evaluation_counts_the_patients_of_the_split(hospitals):
    signed = order("evaluate")
    report = site_of(hospitals["both"]).evaluate(signed, WEIGHTS).report
    assert (report.plan_sha256, report.split, report.site) == (signed.sha256, "test", "both")
    statistics = report.statistics
    assert (statistics.patients, statistics.images) == (4, 4)
    assert statistics.classification.class_counts == (2, 2)
    assert statistics.segmentation[EXPERT].images == 4
    assert statistics.mean_mask == {}  # the plan brought none


@pytest.mark.parametrize(
    ("name", "labels", "masks"), [("labels", True, False), ("masks", False, True), ("bare", False, False)]
)
def test_a_site_scores_only_what_it_knows(hospitals, name, labels, masks):
    statistics = site_of(hospitals[name]).evaluate(order("evaluate"), WEIGHTS).report.statistics
    assert (statistics.classification is not None, bool(statistics.segmentation)) == (labels, masks)


def test_a_perfect_mean_mask_scores_a_dice_of_one(hospitals):
    """Patients 10 to 13 are tested; a mean mask that is patient 10's own scores it with 1."""
    lung = np.zeros((32, 32), int)
    lung[8:24, 14:20] = 255
    asked = order("evaluate", mean_mask=tuple(lung.ravel().tolist()))
    dice = site_of(hospitals["both"]).evaluate(asked, WEIGHTS).report.statistics.mean_mask[EXPERT].dice
    # Columns 14 to 19 against 14, 15, 16, 17 to 19: 2 n / (6 + n) for n = 6, 5, 4, 3.
    assert dice.total == pytest.approx(sum(2 * n / (6 + n) for n in (6, 5, 4, 3)))


def test_fewer_patients_than_the_minimum_give_no_table(hospitals):
    policy = OPEN.model_copy(update={"minimum_cohort": 5})
    for statistics in (
        site_of(hospitals["both"], policy).evaluate(order("evaluate"), WEIGHTS).report.statistics,
        site_of(hospitals["both"], policy).train(order(evaluate_on="test"), WEIGHTS).report.evaluation.statistics,
    ):
        assert (statistics.classification, statistics.segmentation, statistics.mean_mask) == (None, {}, {})
        assert statistics.withheld == ("all:patients_below_minimum",)


def test_a_small_class_is_withheld_while_the_masks_leave(hospitals):
    policy = OPEN.model_copy(update={"minimum_cohort": 3})  # 4 patients, 2 of each class
    statistics = site_of(hospitals["both"], policy).evaluate(order("evaluate"), WEIGHTS).report.statistics
    assert statistics.classification is None
    assert statistics.segmentation[EXPERT].images == 4


@pytest.mark.parametrize(("asked", "allowed", "shown"), [(3, 64, 3), (3, 2, 2), (3, 0, 0), (0, 64, 0)])
def test_pictures_are_as_many_as_both_plan_and_policy_allow(hospitals, asked, allowed, shown):
    site = site_of(hospitals["both"], OPEN.model_copy(update={"pictures": allowed}))
    pictures = site.evaluate(order("evaluate", pictures=asked), WEIGHTS).pictures
    assert len(pictures) == shown
    assert all(picture.png.startswith(b"\x89PNG\r\n") for picture in pictures)


def test_a_hospital_that_releases_figures_shows_no_picture_however_many_are_asked(hospitals):
    policy = SitePolicy(release_evaluation=True)
    assert site_of(hospitals["both"], policy).evaluate(order("evaluate", pictures=64), WEIGHTS).pictures == ()


def test_a_fresh_hospital_releases_no_figures(hospitals):
    site = site_of(hospitals["both"], SitePolicy(allow_non_private=True))
    assert refusal(site.evaluate, order("evaluate"), WEIGHTS).reason == "evaluation_not_released"
    assert site.train(order(evaluate_on="test"), WEIGHTS).report.evaluation is None


def test_nothing_that_leaves_names_a_patient_or_path(hospitals, data, cache):
    site = site_of(hospitals["both"])
    trained = site.train(order(evaluate_on="test"), WEIGHTS)
    evaluated = site.evaluate(order("evaluate", pictures=4), WEIGHTS)
    left = trained.report.model_dump_json() + evaluated.report.model_dump_json()
    left += "".join(picture.caption + picture.png.decode("latin-1") for picture in evaluated.pictures)
    for private in ("secret-", str(data), str(cache), ".png"):
        assert private not in left
