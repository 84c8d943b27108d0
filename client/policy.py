"""May this plan run here? The hospital's policy wins over anything the server asks.

Every check is made before a pixel is read and ends in a reason code. The server may ask for less than policy
allows, never for more.
"""

from typing import Annotated

from pydantic import Field

from multimix.config import Frozen
from multimix.contract.messages import RoundPlan
from multimix.errors import Refused


class SitePolicy(Frozen):
    """The bounds a hospital sets; a fresh one refuses training without differential privacy."""

    allow_non_private: bool = False
    allowed_jobs: tuple[str, ...] | None = None  # None allows every job of this coordinator
    maximum_steps: Annotated[int, Field(ge=1)] = 100_000
    maximum_images_per_group: Annotated[int, Field(ge=1)] = 512
    maximum_width: Annotated[int, Field(ge=1)] = 64  # of the network's first block: bounds memory
    minimum_cohort: Annotated[int, Field(ge=1)] = 10  # smallest cell in statistics that leave
    release_evaluation: bool = True
    release_mean_mask: bool = True
    pictures: Annotated[int, Field(ge=0)] = 0  # predictions on images that may leave: 0 at a real hospital


def check(plan: RoundPlan, policy: SitePolicy) -> None:
    """Raise `Refused` unless policy allows the plan.

    Extras that policy does not release (pictures, evaluations riding on a training reply) do not refuse a plan:
    they are left out of the reply.
    """
    if policy.allowed_jobs is not None and plan.job_id not in policy.allowed_jobs:
        raise Refused("job_not_approved")
    if plan.method.network.width > policy.maximum_width:
        raise Refused("network_too_wide", f"asked {plan.method.network.width}, allowed {policy.maximum_width}")
    if plan.kind == "train":
        _check_training(plan, policy)
        return
    if plan.evaluate_on == "none":
        raise Refused("plan_incomplete", "an evaluation names no split")
    if not policy.release_evaluation:
        raise Refused("evaluation_not_released")


def _check_training(plan: RoundPlan, policy: SitePolicy) -> None:
    if plan.work is None:
        raise Refused("plan_incomplete", "a training plan without work")
    if plan.dp is None and not policy.allow_non_private:
        raise Refused("dp_required", "this site trains with differential privacy only")
    if plan.work.steps > policy.maximum_steps:
        raise Refused("too_many_steps", f"asked {plan.work.steps}, allowed {policy.maximum_steps}")
    if plan.work.images_per_group > policy.maximum_images_per_group:
        raise Refused(
            "batch_too_large",
            f"asked {plan.work.images_per_group}, allowed {policy.maximum_images_per_group}",
        )
    if plan.work.first_step + plan.work.steps > plan.work.total_steps:
        raise Refused("plan_incomplete", "steps beyond the end of the run")
