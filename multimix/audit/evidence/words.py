"""The sentences of the evidence page, for a data-protection officer: what a patient can rely on and what not.

They follow from what the ledger holds. Where anything was trained without noise, or with noise that anybody can
compute, or where the evidence contradicts the claim, there is nothing to rely on and the page says so.
"""

import math
from collections.abc import Iterator
from typing import Final

from multimix.audit.evidence.figures import relied_on, same_steps
from multimix.audit.evidence.records import Evidence, Word
from multimix.audit.evidence.replays import reproduced
from multimix.audit.evidence.verdict import many
from multimix.privacy.statement_sections import upwards

_CONSISTENT: Final = (
    "What is named below was looked at, and nothing of it speaks against the claim. That is no proof that the claim is "
    "true: an audit can find a false claim, it cannot rule one out."
)
_CONTRADICTED: Final = (
    "Something that was looked at speaks against the claim. Do not rely on it until each point below is explained."
)
_INCOMPLETE: Final = (
    "Nothing that was looked at speaks against the claim, and not everything was looked at. What is missing stands "
    "below; a false claim could hide there."
)
VERDICTS: Final[dict[Word, tuple[str, str]]] = {
    "consistent": ("Consistent", _CONSISTENT),
    "contradicted": ("Contradicted", _CONTRADICTED),
    "incomplete": ("Incomplete", _INCOMPLETE),
}
TESTS: Final = {  # of the canaries' own parameters, unless a line says otherwise; a test not named here keeps its name
    "noise": "the noise is as strong as claimed, where the audit looks",
    "noise_sum": "noise over all steps together is as strong as fresh noise is",
    "noise_lag_1": "noise of one step is not correlated with the next",
    "noise_coordinates": "noise of one number is not correlated with its neighbour",
    "noise_steps": "noise of every parameter is fresh from step to step",
    "noise_tensors": "parameters do not share noise",
    "noise_repeats": "no number of the noise occurs twice",
    "sensitivity": "canaries count for no more than the clip norm on average",
    "participation": "canaries that were not drawn for a step are not in it",
    "exclusion": "nothing moves where no canary takes part",
    "rate": "canaries are drawn no more often than the sampling rate says",
    "noise_parameters": "every parameter of the model has as much noise as claimed, in a step without patients",
}
METHODS: Final = {
    "steinke": "Steinke, Nasr, Jagielski 2023 (any mechanism)",
    "fdp_approximate": "f-DP, Mahloujifar et al. 2024 (any mechanism)",
    "fdp_gaussian": "f-DP, Mahloujifar et al. 2024 (if the mechanism is Gaussian)",
}
FINDINGS: Final = {
    "reproduced": "the same release came out, within the tolerance",
    "differs": "another release came out",
    "not_replayable": "could not be executed again",
}
CLAIM_AND_BOUND: Final = (
    "Claimed is what the trainer entered, recomputed what the same entries cost by another programme: both are upper "
    "bounds. The lower bound is what an audit with planted canaries could prove, each with 95 % confidence by itself. "
    "If the claim is right, the truth lies between bound and claim."
)
CEILING: Final = (
    "The ceiling is the most that this audit could have proved with its canaries, however much the training leaked: a "
    "bound far below the claim is no sign that the truth is there too. A dash: no audit took these steps. A bound at a "
    "smaller delta than the claim's is about a larger epsilon, and stands with the audit below only."
)
EACH_CLAIM: Final = (
    "Each reservation's claim beside what all entries up to it cost, at its own delta. Overstated harms no patient: it "
    "costs the hospital budget."
)
CANNOT_SHOW: Final = (
    "That the training is private. Such a claim is proved from the algorithm; an audit can only fail to refute it.",
    (
        "That epsilon is the claimed one. If the claim is right, it lies between the lower bound and the claim. "
        "A bound cannot come out above the ceiling that the number of canaries permits, however bad the training is."
    ),
    (
        "Training that never came near the ledger. Software that trains beside it and sends the result by another way "
        "leaves no entry."
    ),
    (
        "That the software of every round was the software that was audited. Its hash is what it says of itself; only "
        "a round that is executed again is checked."
    ),
    "How software behaves when it is not watched: a trainer that knows an audit by its canaries can behave meanwhile.",
    "A difference below the tolerance of a replay: what is smaller can carry anything.",
    "That the committed answer is the one that was sent. Only the coordinator has what it received.",
    "That the images are the patients', that one PatientID is one person, or that as many as declared train here.",
    "What left the hospital by other ways: on disks, on paper, in logs, or through its staff.",
    "Losses at other hospitals that treat the same patient. Each has a ledger of its own, and no ledger sees the sum.",
)
_WEAK, _MODERATE = 3.0, 1.0


def infinite(evidence: Evidence) -> str:
    """Return why epsilon is infinity; an empty text where it is not."""
    reasons = []
    if evidence.non_private:
        reasons.append(f"{many(evidence.non_private, 'training')} ran without differential privacy")
    if evidence.seeded:
        reasons.append("noise was drawn from a known seed, as in a simulation")
    return f"Epsilon is infinity: {' and '.join(reasons)}." if reasons else ""


def can_rely(evidence: Evidence) -> tuple[str, ...]:
    """Return what a patient can rely on; one sentence beginning with "Nothing" where that is all."""
    nothing = _nothing(evidence)
    relied = relied_on(evidence)
    if nothing or relied is None:
        return (nothing or "Nothing: no epsilon of this ledger was computed again.",)
    if math.isinf(relied[0]):
        return ("Nothing: epsilon is infinity, or so large that it was not computed.",)
    return (*_promise(*relied), *_extent(evidence), *_checks(evidence))


def cannot_rely(evidence: Evidence) -> tuple[str, ...]:
    """Return what a patient cannot rely on."""
    return (*_exposures(evidence), *_releases(evidence), *_limits(evidence), *_unchecked(evidence))


def _nothing(evidence: Evidence) -> str:
    if not evidence.runs:
        return "Nothing was claimed: no training is entered in this ledger."
    reasons = [infinite(evidence).rstrip(".").replace("Epsilon", "epsilon")] if infinite(evidence) else []
    if evidence.judgement.word == "contradicted":
        reasons.append("the evidence contradicts the claim")
    notices = evidence.statement.notices if evidence.statement else ()
    if any(notice.kind == "delta_too_large" for notice in notices):
        reasons.append("delta is not below one in the number of patients, which makes the guarantee hollow")
    return f"Nothing: {'; '.join(reasons)}." if reasons else ""


def _promise(epsilon: float, delta: float) -> Iterator[str]:
    odds = math.exp(epsilon)
    told, chance = upwards(epsilon), upwards(delta)
    yield (
        f"Epsilon is at most {told} at delta {chance}. In plain words: whatever anyone knew before, whatever they see "
        f'and conclude, such as a yes to "was this patient in?", is at most e^{told} = {_rounded_up(odds)} times as '
        f"likely as it would be without this patient, plus a chance of {chance}."
    )
    yield (
        f"That chance aside, someone who held it even, 50 to 50, can become at most {_share(odds)} sure; "
        f"{_strength(epsilon)}"
    )
    yield "The limit holds for each patient, in the training or left out of it, and whatever else becomes known later."
    yield "It holds whatever the coordinator, the other hospitals or any later owner of the model compute from it."


def _strength(epsilon: float) -> str:
    if epsilon > _WEAK:
        return (
            "this is a weak limit. By itself it does not stop a near-certain answer; it says that the noise is real "
            "and counted, and that is short of saying that a patient cannot be found."
        )
    if epsilon > _MODERATE:
        return "this is a moderate limit."
    return "this is a tight limit."


def _extent(evidence: Evidence) -> Iterator[str]:
    steps, runs = sum(run.steps for run in evidence.runs), many(len(evidence.runs), "run")
    yield (
        f"It covers all of a patient's images at this site in both tasks, over {runs} and {steps:,} training steps "
        "together, also those whose answer was never sent."
    )
    yield "The figure was computed again from the entries, by a programme that shares nothing with the trainer's."


def _checks(evidence: Evidence) -> Iterator[str]:
    seen = evidence.verification
    if seen.truncation == "checked":
        yield (
            f"No entry was changed, put in or taken out among the first {seen.covered:,} of {seen.entries:,}: the "
            "coordinator countersigned them."
        )
    else:
        yield "No entry was changed by anyone without the ledger's key."
    audits = [each for each in evidence.empirical if any(same_steps(each, run) for run in evidence.runs)]
    if audits:
        yield (
            f"{many(len(audits), 'audit')} of the training software with planted canaries found nothing against the "
            "noise, the clipping and the sampling that are claimed."
        )
    if same := reproduced(evidence).values():
        largest = max(each.difference or 0.0 for each in same)
        yield (
            f"{many(len(same), 'round was', 'rounds were')} executed again, and the same weights came out: at most "
            f"{largest:.2g} of an update apart, where up to {max(each.tolerance for each in same):g} was allowed."
        )


def _exposures(evidence: Evidence) -> Iterator[str]:
    for run in evidence.runs:
        if run.non_private_trainings:
            yield (
                f"Run {run.job_id} trained {many(run.non_private_trainings, 'time')} without differential privacy: its "
                "exact weights left the site, and no later noise takes that back."
            )
    if evidence.seeded:
        yield f"{many(evidence.seeded, 'reservation')} drew noise that anyone with the seed can take off again."


def _releases(evidence: Evidence) -> Iterator[str]:
    if evidence.evaluations:
        yield (
            f"{many(len(evidence.evaluations), 'evaluation')} released exact figures over patients held back from "
            "training. These carry no noise, and the epsilon says nothing about them."
        )
    else:
        yield "Patients held back from training are not protected by the noise. No evaluation of them is entered."
    if evidence.membership:
        yield (
            f"{many(len(evidence.membership), 'membership test')} in this bundle tells exact figures about real "
            "patients, released by the officer and not counted in epsilon."
        )
    if evidence.tuning:
        yield "Settings were tuned before: what a search on these patients tells counts only if its runs are entered."


def _limits(evidence: Evidence) -> Iterator[str]:
    yield "That nothing is revealed: epsilon limits what can be told, it does not make it nothing."
    yield "That the model says nothing about people like you: what holds for many is what it is trained to learn."
    yield (
        "That this stays the last: further runs add to the loss, up to the limit that the site has set"
        f"{_limit(evidence)}."
    )
    yield "A family or another group of k patients together: their epsilon is k times as large, their delta even more."
    yield "The same patient at another hospital: both losses add up, and nobody here sees the sum."
    yield "The hospital itself: its own staff and machines see the images, and the noise does not protect from them."


def _limit(evidence: Evidence) -> str:
    limits = [run.limit_lifetime[-1] for run in sorted(evidence.runs, key=lambda run: run.last) if run.limit_lifetime]
    return f" (epsilon {limits[-1]:g})" if limits else ""


def _unchecked(evidence: Evidence) -> Iterator[str]:
    if evidence.judgement.gaps:
        yield f"What was not looked at: {many(len(evidence.judgement.gaps), 'point')} above."


def _rounded_up(odds: float) -> str:
    return f"{math.ceil(odds):,}" if odds >= 10 else f"{math.ceil(odds * 100) / 100:.2f}"  # noqa: PLR2004


def _share(odds: float) -> str:
    share = odds / (1 + odds)
    digits = max(1, 1 + math.ceil(-math.log10(1 - share))) - 2 if share < 1 else 4
    scale = 10 ** max(0, digits)
    return f"{math.ceil(share * 100 * scale) / scale:.{max(0, digits)}f} %" if share < 1 else "100 %"
