"""May this plan run here? The hospital's policy wins over anything the server asks.

Every check is made before a pixel is read and ends in a reason code. The server may ask for less than policy
allows, never for more.
"""

import math
from typing import Annotated

from pydantic import Field

from client.population import PopulationSettings
from multimix.config import Frozen
from multimix.contract.messages import RoundPlan
from multimix.contract.privacy import MECHANISM, PatientPrivacy
from multimix.errors import Refused

_WITH_A_LOSS = frozenset({"classifier", "decoder"})  # the encoder alone has nothing to learn from
_ABSURD = 1e6  # no parameter of a sensible plan is as large


class SitePolicy(Frozen):
    """The bounds a hospital sets; a fresh one refuses training without differential privacy."""

    allow_non_private: bool = False  # at a real site the officer has to sign it too
    maximum_clip_norm: Annotated[float, Field(gt=0)] = 10.0
    minimum_noise_multiplier: Annotated[float, Field(gt=0)] = 0.5
    minimum_expected_patients: Annotated[float, Field(ge=1)] = (
        10.0  # of a private step: sampling rate x declared patients
    )
    approve_jobs: bool = False  # each job waits at the site's agent for `multimix-site approve`
    allowed_jobs: tuple[str, ...] | None = None  # None allows every job of this coordinator
    maximum_steps: Annotated[int, Field(ge=1)] = 100_000
    maximum_images_per_group: Annotated[int, Field(ge=1)] = 512
    maximum_width: Annotated[int, Field(ge=1)] = 64  # of the network's first block: bounds memory
    minimum_cohort: Annotated[int, Field(ge=1)] = 10  # smallest cell in statistics that leave
    release_evaluation: bool = False  # exact figures over patients held back from training
    release_mean_mask: bool = True
    share_budget: bool = False  # the card tells what share of the lifetime's epsilon is left; no image decides it
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
    if plan.dp is not None:
        _check_privacy(plan.dp, policy)
    elif not policy.allow_non_private:
        raise Refused("dp_required", "this site trains with differential privacy only")
    if plan.dp is not None and not 1 <= plan.round <= plan.dp.rounds:
        raise Refused("dp_rounds", f"round {plan.round} of {plan.dp.rounds}")
    if plan.work.steps > policy.maximum_steps:
        raise Refused("too_many_steps", f"asked {plan.work.steps}, allowed {policy.maximum_steps}")
    if plan.work.images_per_group > policy.maximum_images_per_group:
        raise Refused(
            "batch_too_large",
            f"asked {plan.work.images_per_group}, allowed {policy.maximum_images_per_group}",
        )
    if plan.work.first_step + plan.work.steps > plan.work.total_steps:
        raise Refused("plan_incomplete", "steps beyond the end of the run")


def _check_privacy(dp: PatientPrivacy, policy: SitePolicy) -> None:
    """Refuse what has no meaning first, then what is weaker than policy; the budget is the ledger's business."""
    if dp.mechanism != MECHANISM:
        raise Refused("dp_mechanism_unknown")
    positive = (dp.noise_multiplier, dp.clip_norm, dp.sampling_rate, dp.delta, dp.epsilon)
    counts = (dp.declared_patients, dp.images_per_patient, dp.rounds)
    sensible = all(math.isfinite(value) and 0 < value <= _ABSURD for value in positive)
    if not sensible or min(counts) < 1 or max(counts) > 10 * _ABSURD or dp.sampling_rate > 1 or dp.delta >= 1:
        raise Refused("dp_parameters", "a value outside its range")
    if not dp.modules or len(set(dp.modules)) != len(dp.modules) or set(dp.module_weights) != set(dp.modules):
        raise Refused("dp_parameters", "modules and their weights")
    if not _WITH_A_LOSS & set(dp.modules):
        raise Refused("dp_parameters", "neither classifier nor decoder")
    if dp.clip_norm > policy.maximum_clip_norm:
        raise Refused("dp_clip_norm", f"asked {dp.clip_norm:g}, allowed {policy.maximum_clip_norm:g}")
    if dp.noise_multiplier < policy.minimum_noise_multiplier:
        raise Refused("dp_noise", f"asked {dp.noise_multiplier:g}, at least {policy.minimum_noise_multiplier:g}")
    expected = dp.sampling_rate * dp.declared_patients
    if expected < policy.minimum_expected_patients:
        raise Refused("dp_cohort", f"asked {expected:g}, at least {policy.minimum_expected_patients:g} patients a step")


def check_population(dp: PatientPrivacy, population: PopulationSettings) -> None:
    """Refuse a plan that speaks of another population than the hospital declared, or asks for more of its privacy."""
    declared, images = population.declared_patients, population.images_per_patient
    delta, epsilon = population.failure_probability, population.epsilon_per_run
    if dp.declared_patients != declared:
        raise Refused("dp_declared_patients", f"asked {dp.declared_patients}, declared {declared}")
    if dp.images_per_patient > images:
        raise Refused("dp_images_per_patient", f"asked {dp.images_per_patient}, allowed {images}")
    if dp.delta > delta:
        raise Refused("dp_delta", f"asked {dp.delta:.3g}, allowed {delta:.3g}")
    if dp.epsilon > epsilon:
        raise Refused("dp_epsilon", f"asked {dp.epsilon:g}, allowed {epsilon:g} for a run")
