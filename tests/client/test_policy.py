"""The hospital's policy: each bound refuses with its own reason, before a pixel is read."""

import pytest
from tiny_hospitals import DP, KEY, OPEN, PRIVATE, WEIGHTS, order, plan

from client.policy import SitePolicy, check
from client.site import LocalSite
from multimix.contract.messages import LocalWork
from multimix.contract.signing import simulation_key
from multimix.data.hospitals import Hospital
from multimix.errors import Refused


class LockedHospital(Hospital):
    """A hospital whose images must not be touched."""

    def store(self):
        raise AssertionError("the store was opened")


ENCODER_ONLY = DP.model_copy(update={"modules": ("encoder",), "module_weights": {"encoder": 8.0}})
LOCKED = LockedHospital("locked", "train", None, None, None, None, 0)


def refusal(asked, policy) -> Refused:
    with pytest.raises(Refused) as caught:
        check(asked, policy)
    return caught.value


def working(**fields: int) -> LocalWork:
    return LocalWork(**{"steps": 5, "images_per_group": 4, "first_step": 0, "total_steps": 5} | fields)


@pytest.mark.parametrize(
    ("policy", "asked", "reason"),
    [
        (SitePolicy(), plan(), "dp_required"),
        (SitePolicy(), plan("evaluate"), "evaluation_not_released"),
        (OPEN.model_copy(update={"allowed_jobs": ("other",)}), plan(), "job_not_approved"),
        (OPEN.model_copy(update={"allowed_jobs": ()}), plan("evaluate"), "job_not_approved"),
        (OPEN.model_copy(update={"maximum_steps": 4}), plan(work=working()), "too_many_steps"),
        (OPEN.model_copy(update={"maximum_images_per_group": 3}), plan(work=working()), "batch_too_large"),
        (OPEN, plan(work=None), "plan_incomplete"),
        (OPEN, plan(work=working(first_step=1)), "plan_incomplete"),
        (OPEN, plan("evaluate", evaluate_on="none"), "plan_incomplete"),
        (PRIVATE, plan(dp=DP, round=0), "dp_rounds"),
        (PRIVATE, plan(dp=DP, round=51), "dp_rounds"),
        (PRIVATE, plan(dp=ENCODER_ONLY), "dp_parameters"),
        (OPEN.model_copy(update={"release_evaluation": False}), plan("evaluate"), "evaluation_not_released"),
    ],
)
def test_each_bound_refuses_with_its_reason_before_a_pixel_is_read(policy, asked, reason):
    assert refusal(asked, policy).reason == reason
    site = LocalSite(LOCKED, policy, KEY.public_key(), device="cpu")
    answer = site.train if asked.kind == "train" else site.evaluate
    with pytest.raises(Refused, match=reason):
        answer(order(**dict(asked)), WEIGHTS)


@pytest.mark.parametrize(
    ("policy", "asked"),
    [
        (OPEN, plan()),
        (OPEN.model_copy(update={"allowed_jobs": ("other", "job")}), plan()),
        (OPEN.model_copy(update={"maximum_steps": 5, "maximum_images_per_group": 4}), plan(work=working())),
        (OPEN, plan(work=working(first_step=5, total_steps=10))),
        (SitePolicy(release_evaluation=True), plan("evaluate")),
        (SitePolicy(), plan(dp=DP.model_copy(update={"declared_patients": 20, "sampling_rate": 0.5}))),
        (PRIVATE, plan(dp=DP, round=1)),
        (PRIVATE, plan(dp=DP, round=50)),
        (OPEN.model_copy(update={"release_evaluation": False}), plan(evaluate_on="validation")),
        (OPEN.model_copy(update={"pictures": 0}), plan("evaluate", pictures=64)),
    ],
    ids=[
        *("open", "approved job", "exactly at the bounds", "last steps", "figures released"),
        *("private, 10 of 20 patients a step", "private, first round", "private, last round"),
        *("an extra evaluation is left out, not refused", "pictures are left out, not refused"),
    ],
)
def test_a_plan_within_the_bounds_may_run(policy, asked):
    check(asked, policy)


def test_a_refusal_of_a_bound_names_what_was_asked_and_what_is_allowed():
    refused = refusal(plan(work=working()), OPEN.model_copy(update={"maximum_steps": 4}))
    assert refused.detail == "asked 5, allowed 4"


def test_a_fresh_policy_releases_no_picture_and_no_figures_and_hides_small_groups():
    fresh = SitePolicy()
    assert (fresh.pictures, fresh.release_evaluation, fresh.minimum_cohort) == (0, False, 10)


def test_a_forged_order_is_refused_before_policy_is_asked_and_a_pixel_read():
    forged = order()
    other = LocalSite(LOCKED, SitePolicy(), simulation_key(1).public_key(), device="cpu")
    with pytest.raises(Refused, match="plan_signature"):
        other.train(forged, WEIGHTS)


def test_the_locked_hospital_would_notice():
    with pytest.raises(AssertionError, match="the store was opened"):
        LocalSite(LOCKED, OPEN, KEY.public_key(), device="cpu").train(order(), WEIGHTS)
