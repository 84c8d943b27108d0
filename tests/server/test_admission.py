import numpy as np
import pytest
from fake_sites import card, dice_of, weights

from multimix.contract.messages import EvaluateReport, Teachers, TrainReport, weights_sha256
from multimix.contract.privacy import PatientPrivacy
from multimix.errors import Refused
from server.admission import admit, capped

PLAN, OTHER_PLAN = "a" * 64, "b" * 64


def _report(sent, **fields):
    honest = {
        "site": "jsrt",
        "job_id": "job",
        "round": 3,
        "plan_sha256": PLAN,
        "weights_sha256": weights_sha256(sent),
        "steps": 1,
        "teachers": dict.fromkeys(("encoder", "classifier", "decoder"), Teachers(labelled=2, unlabelled=3)),
        "losses": {},
    }
    return TrainReport.model_validate(honest | fields)


def _evaluation(**fields):
    honest = {
        "site": "jsrt",
        "job_id": "job",
        "round": 3,
        "plan_sha256": PLAN,
        "split": "validation",
        "statistics": dice_of(0.9),
    }
    return EvaluateReport.model_validate(honest | fields)


DP = PatientPrivacy(
    noise_multiplier=1.0,
    clip_norm=1.0,
    sampling_rate=0.1,
    declared_patients=40,
    images_per_patient=2,
    delta=1e-3,
    modules=("encoder", "decoder"),
    module_weights={"encoder": 7.0, "decoder": 3.0},
    rounds=3,
    epsilon=8.0,
)


def _admit(report, answer, *, received=None, maximum_update_norm=100.0, **fields):
    return admit(
        report,
        answer,
        card=card("jsrt"),
        job_id="job",
        round_number=3,
        plan_sha256=PLAN,
        sent=weights() if received is None else received,
        maximum_update_norm=maximum_update_norm,
        **fields,
    )


def test_an_honest_reply_is_admitted_with_its_own_weights_and_counts():
    answer = weights(0.5)
    update = _admit(_report(answer, evaluation=_evaluation()), answer)
    assert update.site == "jsrt"
    assert update.weights is answer
    assert update.report.teachers["encoder"] == Teachers(labelled=2, unlabelled=3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"site": "cohen"}, "site_mismatch"),
        ({"job_id": "another"}, "wrong_job"),
        ({"round": 2}, "wrong_round"),
        ({"plan_sha256": OTHER_PLAN}, "wrong_plan"),
        ({"weights_sha256": OTHER_PLAN}, "weights_hash"),
        ({"evaluation": _evaluation(site="cohen")}, "evaluation_mismatch"),
        ({"evaluation": _evaluation(job_id="another")}, "evaluation_mismatch"),
        ({"evaluation": _evaluation(plan_sha256=OTHER_PLAN)}, "evaluation_mismatch"),
        ({"evaluation": _evaluation(statistics=dice_of(0.9, images=61))}, "evaluation_images"),
    ],
)
def test_a_report_about_something_else_is_left_out_with_its_reason(fields, reason):
    answer = weights(0.5)
    with pytest.raises(Refused) as caught:
        _admit(_report(answer, **fields), answer)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classifier.b": None}, "weights_names"),
        ({"decoder.d": np.zeros(3, np.float32)}, "weights_names"),
        ({"classifier.b": np.zeros(3, np.float32)}, "weights_shape"),
        ({"classifier.b": np.zeros((2, 1), np.float32)}, "weights_shape"),
        ({"classifier.b": np.zeros(2, np.float64)}, "weights_type"),
        ({"classifier.b": np.zeros(2, np.int32)}, "weights_type"),
        ({"classifier.b": np.zeros(2, ">f4")}, "weights_type"),
        ({"classifier.b": np.array([0, np.nan], np.float32)}, "weights_not_finite"),
        ({"classifier.b": np.array([np.inf, 0], np.float32)}, "weights_not_finite"),
        ({"classifier.b": np.array([-np.inf, 0], np.float32)}, "weights_not_finite"),
        ({"classifier.b": np.array([3e38, -3e38], np.float32)}, "update_norm"),
    ],
)
def test_weights_that_cannot_be_averaged_are_left_out_with_their_reason(changes, reason):
    answer = {name: value for name, value in (weights(0.5) | changes).items() if value is not None}
    with pytest.raises(Refused) as caught:
        _admit(_report(answer), answer)
    assert caught.value.reason == reason


def test_the_update_norm_is_over_all_arrays_and_the_bound_itself_is_admitted():
    received, answer = weights(1.0), weights(1.0)
    answer["encoder.a"][0, 0] += 3.0  # 3 and 4 in two arrays: norm 5
    answer["decoder.c"][2] -= 4.0
    assert _admit(_report(answer), answer, received=received, maximum_update_norm=5.0).update_norm == 5.0
    with pytest.raises(Refused, match="update_norm: 5 is above 4.99"):
        _admit(_report(answer), answer, received=received, maximum_update_norm=4.99)


def test_weights_hashed_with_another_shape_of_the_same_bytes_are_left_out():
    answer = weights(0.5)
    report = _report(answer | {"encoder.a": answer["encoder.a"].reshape(3, 2)})
    with pytest.raises(Refused, match="weights_hash"):
        _admit(report, answer)


def test_teacher_counts_are_cut_to_what_the_card_can_hold():
    # The card: 40 training patients, 10 + 10 labels, 15 masks.
    claimed = {module: Teachers(labelled=1000, unlabelled=1000) for module in ("encoder", "classifier", "decoder")}
    counts = capped(_report(weights(), teachers=claimed), card("jsrt"))
    assert counts == {
        "encoder": Teachers(labelled=40, unlabelled=0),
        "classifier": Teachers(labelled=20, unlabelled=20),
        "decoder": Teachers(labelled=15, unlabelled=25),
    }


def test_masks_of_several_conventions_cap_the_decoder_by_their_sum():
    masked = card("jsrt", conventions=("a", "b"), masked_patients={"a": 4, "b": 7})
    claimed = {"decoder": Teachers(labelled=12)}
    assert capped(_report(weights(), teachers=claimed), masked)["decoder"] == Teachers(labelled=4 + 7, unlabelled=0)


def test_a_site_that_claims_teachers_without_labels_teaches_by_consistency_only():
    bare = card("jsrt", labelled_patients={"normal": 0, "pneumonia": 0}, masked_patients={})
    claimed = {module: Teachers(labelled=40, unlabelled=40) for module in ("classifier", "decoder")}
    counts = capped(_report(weights(), teachers=claimed), bare)
    assert counts["classifier"] == counts["decoder"] == Teachers(labelled=0, unlabelled=40)


def test_a_module_that_was_not_named_is_taught_by_nobody_and_a_foreign_one_is_dropped():
    counts = capped(_report(weights(), teachers={"optimiser": Teachers(labelled=5)}), card("jsrt"))
    assert counts == dict.fromkeys(("encoder", "classifier", "decoder"), Teachers())


def test_a_module_that_the_site_did_not_teach_is_neither_expected_nor_taken():
    teachers = {"encoder": Teachers(labelled=2), "classifier": Teachers(unlabelled=1), "decoder": Teachers()}
    answer = {name: value for name, value in weights(0.5).items() if not name.startswith("decoder")}
    assert _admit(_report(answer, teachers=teachers), answer).weights is answer
    with pytest.raises(Refused, match="weights_names"):
        _admit(_report(weights(0.5), teachers=teachers), weights(0.5))


def test_a_reply_of_a_site_that_taught_nothing_is_left_out():
    with pytest.raises(Refused, match="nothing_taught"):
        _admit(_report({}, teachers={}), {})


def _private(**changes):
    answer = {name: value for name, value in weights(0.5).items() if not name.startswith("classifier")}
    return {name: value for name, value in (answer | changes).items() if value is not None}


def test_a_private_reply_weighs_what_its_plan_says():
    update = _admit(_report(_private(), teachers={}), _private(), dp=DP)
    assert update.private_weights == {"encoder": 7.0, "decoder": 3.0}


@pytest.mark.parametrize(
    "figures",
    [
        {"teachers": {"encoder": Teachers(labelled=2)}},
        {"losses": {"total": 0.5}},
        {"seconds": {"step": 1.0}},
        {"pseudo_label_rate": 0.0},
        {"evaluation": _evaluation()},
    ],
)
def test_figures_beside_private_weights_are_refused(figures):
    with pytest.raises(Refused, match="private_figures"):
        _admit(_report(_private(), **{"teachers": {}, **figures}), _private(), dp=DP)


@pytest.mark.parametrize(
    "changes", [{"decoder.c": None}, {"classifier.b": np.zeros(2, np.float32)}, {"encoder.d": np.zeros(1, np.float32)}]
)
def test_a_private_reply_holds_the_arrays_of_its_plan_and_no_other(changes):
    answer = _private(**changes)
    with pytest.raises(Refused, match="weights_names"):
        _admit(_report(answer, teachers={}), answer, dp=DP)


@pytest.mark.parametrize("value", [np.inf, np.nan, 3e38])
def test_under_site_level_privacy_no_size_of_an_update_is_a_reason_to_leave_it_out(value):
    answer = weights(0.5)
    answer["decoder.c"][0] = value
    assert _admit(_report(answer), answer, maximum_update_norm=1.0, site_level=True).weights is answer
    with pytest.raises(Refused):
        _admit(_report(answer), answer, maximum_update_norm=1.0)
