"""The sections of the evidence page on what was measured at the site: audits, neighbours, attacks and replays."""

from typing import Final

from multimix.audit.attacks import MembershipResult
from multimix.audit.empirical import Bound, EmpiricalResult, NeighbourResult
from multimix.audit.evidence import words
from multimix.audit.evidence.flags import (
    beats_claim,
    bound_flagged,
    effect_within,
    is_above,
    is_flagged,
    leakage_within,
    neighbours_flagged,
)
from multimix.audit.evidence.records import Evidence
from multimix.audit.evidence.replays import are_entered, worst_verdict
from multimix.audit.evidence.tables import DASH, Section, bounded, priced, table
from multimix.audit.membership import permitted_auc, permitted_tpr
from multimix.privacy.statement_sections import Code, upwards

_FLAG: Final = {True: "FLAGGED", False: "nothing"}
_WITHIN: Final = "within the bound"


def sections_of(evidence: Evidence) -> tuple[Section, ...]:
    """Return the sections, each also where nothing was measured: that too is evidence."""
    return (
        _empirical(evidence.empirical),
        _neighbours(evidence.empirical),
        _membership(evidence.membership),
        _replays(evidence),
    )


def _empirical(results: tuple[EmpiricalResult, ...]) -> Section:
    if not results:
        return Section("The training software, audited with canaries", ("Not done.",))
    header = ("Audit", "Noise", "Rate", "Clip norm", "Steps", "Claim", "Delta", "Canaries", "Seed", "Software")
    rows = [
        (str(number), f"{each.noise_multiplier:.6g}", f"{each.sampling_rate:.6g}", f"{each.clip_norm:.6g}",
         f"{each.steps:,}", priced(each.claimed_epsilon), upwards(each.delta), f"{each.canaries:,}", str(each.seed),
         Code(each.code)) for number, each in enumerate(results, 1)
    ]  # fmt: skip
    bounds = [(number, each, bound) for number, each in enumerate(results, 1) for bound in each.bounds]
    bound_rows = [
        (str(number), words.METHODS[bound.method], bounded(bound.epsilon), bounded(bound.ceiling),
         priced(bound.claimed_epsilon), upwards(bound.delta),
         f"{bound.correct:,} of {bound.guesses:,}", _against(each, bound))
        for number, each, bound in bounds
    ]  # fmt: skip
    tests = [(number, each, test) for number, each in enumerate(results, 1) for test in each.tests]
    test_rows = [
        (str(number), words.TESTS.get(test.name, test.name.replace("_", " ")), f"{test.measured:.5g}",
         f"{test.expected:.5g}", f"{test.z:+.2f}", f"{test.p_value:.2g}", _FLAG[is_flagged(each, test)])
        for number, each, test in tests
    ]  # fmt: skip
    text = (
        "Canaries are patients that do not exist, planted in one run of the real training software; half of them, by "
        "lot, took part. How well they are told apart is a lower bound on epsilon. The direct tests ask whether noise, "
        f"clipping and sampling are as claimed. A correct trainer is flagged by an audit in at most "
        f"{max(each.false_alarm_rate for each in results):g} of all audits."
    )
    return Section(
        "The training software, audited with canaries",
        (text,),
        tables=(
            table(header, rows),
            table(
                (
                    "Audit",
                    "Lower bound by",
                    "At least",
                    "Ceiling",
                    "Claim",
                    "Delta",
                    "Right guesses",
                    "Speaks against it",
                ),
                bound_rows,
                bad=[place for place, (_, each, bound) in enumerate(bounds) if _against(each, bound) != _FLAG[False]],
            ),
            table(
                ("Audit", "Is it so that", "Measured", "Expected", "z", "p", "Speaks against it"),
                test_rows,
                bad=[place for place, (_, each, test) in enumerate(tests) if is_flagged(each, test)],
            ),
        ),
    )


def _against(result: EmpiricalResult, bound: Bound) -> str:
    if not bound_flagged(result, bound):
        return "above the claim, and not sure" if is_above(bound) else _FLAG[False]
    return "FLAGGED, if the leak is like a Gaussian's" if bound.method == "fdp_gaussian" else _FLAG[True]


def _neighbours(results: tuple[EmpiricalResult, ...]) -> Section:
    if not results:
        return Section("Neighbours: one patient more or less", ("Not done.",))
    rows = [
        (str(number), str(each.neighbours.patients), *_apart(each.neighbours), f"{each.neighbours.tolerance:g}",
         _FLAG[neighbours_flagged(each.neighbours)])
        for number, each in enumerate(results, 1)
    ]  # fmt: skip
    header = (
        "Audit",
        "Patients removed in turn",
        "Largest effect",
        "Largest leakage",
        "Tolerance",
        "Speaks against it",
    )
    text = (
        "One step was taken with a patient and without. The effect, in units of the clip norm, has to be 1 at most. "
        "Leakage is what a patient changes in the share of the others, and has to be 0. Both are exact "
        "functions of real patients, so figures within the bound are not given."
    )
    flagged = [place for place, each in enumerate(results) if neighbours_flagged(each.neighbours)]
    return Section("Neighbours: one patient more or less", (text,), tables=(table(header, rows, bad=flagged),))


def _apart(found: NeighbourResult) -> tuple[str, str]:
    return (
        _WITHIN if effect_within(found) else f"{found.sensitivity:.6f}",
        _WITHIN if leakage_within(found) else f"{found.leakage:.2g}",
    )


def _membership(results: tuple[MembershipResult, ...]) -> Section:
    if not results:
        return Section("Membership attacks on the released model", ("Not done, or its figures were not released.",))
    header = ("Attack", "Members, others", "AUC", "AUC permitted", "Found at 1 % false alarms", "Permitted", "Note")
    pairs = [(each, attack) for each in results for attack in each.attacks]
    rows = [
        (attack.name, f"{attack.members:,}, {attack.others:,}", _with(attack.auc, attack.auc_interval),
         f"{permitted_auc(each.epsilon, each.delta):.4f}", _with(attack.tpr, attack.tpr_interval),
         f"{permitted_tpr(0.01, each.epsilon, each.delta):.4f}", attack.note)
        for each, attack in pairs
    ]  # fmt: skip
    warning = (
        "These are EXACT figures about real patients. They are not differentially private and not counted in epsilon; "
        "they stand here because the officer chose to release them."
    )
    text = (
        "Can a training patient be told from one held back? AUC 0.5 is guessing. Permitted is what the claimed epsilon "
        "allows the best of all attacks. A weak attack proves nothing: a better one may exist."
    )
    bad = [place for place, (each, attack) in enumerate(pairs) if beats_claim(each, attack)]
    return Section("Membership attacks on the released model", (warning, text), tables=(table(header, rows, bad=bad),))


def _with(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _replays(evidence: Evidence) -> Section:
    heading, replays = "Rounds executed again", evidence.replays
    if not replays:
        return Section(heading, ("Not done.",))
    header = ("Entry", "Run, round", "What came out", "Why", "Difference", "Tolerance", "Software then", "Software now")
    rows = [
        (str(each.sequence), f"{each.job_id}, {each.round}", words.FINDINGS[worst_verdict(each)],
         ", ".join(reason.replace("_", " ") for reason in each.reasons) or DASH,
         "not computed" if each.difference is None else f"{each.difference:.2g}", f"{each.tolerance:g}",
         Code(each.code_then), Code(each.code_now)) for each in replays
    ]  # fmt: skip
    text = (
        "A round was trained again from its order, the weights received, the images and the opened secret of its "
        "noise. Difference is relative to the size of the update."
    )
    entered = are_entered(evidence)
    bad = [n for n, each in enumerate(replays) if worst_verdict(each) == "differs" or not entered[n]]
    return Section(heading, (text,), tables=(table(header, rows, bad=bad),))
