"""What an audit found, as tables for a person at a terminal."""

from datetime import UTC
from typing import TYPE_CHECKING, Final

from client.console import out, table

if TYPE_CHECKING:  # some import torch
    from multimix.audit.attacks import MembershipResult
    from multimix.audit.empirical import EmpiricalResult
    from multimix.audit.evidence.records import Judgement
    from multimix.audit.recompute import Recomputation, Row
    from multimix.audit.replay import Replayed
    from multimix.audit.verification.verify import Verification

MOST_ROWS: Final = 40  # of a table; --json has all


def show_verification(found: "Verification") -> None:
    """Print what a ledger was found to be."""
    length = found.head.length if found.head else found.entries
    out.print(f"{found.population} of {found.site}: {length} entries", highlight=False, markup=False)
    if found.head:
        out.print(f"head {found.head.sha256}", highlight=False, soft_wrap=True)
    if found.last:
        out.print(f"last entry {found.last.astimezone(UTC):%Y-%m-%d %H:%M} UTC", highlight=False)
    out.print(f"truncation: {found.truncation}", highlight=False)
    for title, findings in (("violations", found.violations), ("to know", found.notices)):
        if findings:
            rows = [("" if f.entry is None else str(f.entry), f.reason, f.detail) for f in findings[:MOST_ROWS]]
            table(f"\n{title}: {len(findings)}", ("entry", "reason", "what"), rows)
    out.print("\nNO VIOLATION" if not found.violations else "\nVIOLATIONS", style="bold", highlight=False)


def show_recomputation(found: "Recomputation", *, every: bool) -> None:
    """Print claims beside what the events say: the newest entries, or every one."""
    shown = found.rows if every else found.rows[-MOST_ROWS:]
    exposed = any(row.entry.claimed_private != row.entry.claimed_lifetime for row in found.rows)
    rows = [_recomputed(row, exposed=exposed) for row in shown]
    claims = ("run", "lifetime", *(("private part",) if exposed else ()))
    header = ("entry", "run", "round", "noise", "rate", "steps", *claims, "verdict")
    table(f"{len(shown)} of {len(found.rows)} reservations, epsilon claimed / by the events", header, rows)
    delta = "none claimed" if found.delta is None else f"{found.delta:.3g}"
    out.print(f"\n{found.population} of {found.site}, delta {delta}", highlight=False, markup=False)
    for job, epsilon in found.runs.items():
        out.print(f"run {job}: epsilon {epsilon:.3f}", highlight=False, markup=False)
    out.print(f"lifetime: epsilon {found.lifetime:.3f}; private training alone: {found.private:.3f}", highlight=False)
    for note in found.notes:
        out.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    out.print("Signatures are not checked here: multimix-audit verify does.", highlight=False)
    out.print("\nAGREES" if found.agrees else "\nDOES NOT AGREE", style="bold", highlight=False)


def _recomputed(row: "Row", *, exposed: bool) -> tuple[str, ...]:
    entry = row.entry
    pairs = [(entry.claimed_run, row.run), (entry.claimed_lifetime, row.lifetime)]
    if exposed:  # else it is the lifetime's
        pairs.append((entry.claimed_private, row.private))
    return (
        str(entry.sequence),
        entry.job,
        str(entry.round),
        f"{entry.noise_multiplier:g}",
        f"{entry.sampling_rate:g}",
        str(entry.steps),
        *(f"{claim:.3f} / {_between(part.low, part.high)}" for claim, part in pairs),
        row.verdict + (", seeded" if entry.seeded else "") + (", above limit" if entry.above_limit else ""),
    )


def _between(low: float, high: float) -> str:
    """Return a bracket, as one number where it was priced exactly."""
    return f"{high:.3f}" if low == high else f"{low:.3f} to {high:.3f}"


def show_empirical(result: "EmpiricalResult") -> None:
    """Print bounds, tests and neighbours, and what they do not show."""
    mechanism = f"{result.steps} steps, noise {result.noise_multiplier:g}, rate {result.sampling_rate:g}"
    out.print(f"{mechanism}; {result.included} of {result.canaries} canaries were in", highlight=False)
    out.print(f"claimed: epsilon {result.claimed_epsilon:.3f} at delta {result.delta:.3g}\n", highlight=False)
    bounds = [
        (
            each.method,
            f"{each.epsilon:.3f}",
            f"{each.ceiling:.3f}",
            f"{each.claimed_epsilon:.3f}",
            f"{each.delta:.2g}",
            f"{each.correct} of {each.guesses}",
            _flag(flagged=each.flagged),
        )
        for each in result.bounds
    ]
    title = f"epsilon is at least this (confidence {result.confidence:.0%} each)"
    table(title, ("method", "at least", "most it shows", "claim", "at delta", "right guesses", ""), bounds)
    tests = [
        (
            each.name,
            f"{each.measured:.4f}",
            f"{each.expected:.4f}",
            f"{each.z:+.2f}",
            f"{each.p_value:.2g}",
            _flag(flagged=each.flagged),
        )
        for each in result.tests
    ]
    table("\ndirect tests", ("test", "measured", "expected", "z", "p", ""), tests)
    near = result.neighbours
    out.print(
        f"\nneighbours: {near.patients} patients removed in turn: each moved the sum by {near.sensitivity:.6f} clip "
        f"norms at most (claim 1), the others' part by {near.leakage:.1e} (claim 0) {_flag(flagged=near.flagged)}",
        highlight=False,
        soft_wrap=True,
    )
    flags = ", ".join(result.flags)
    out.print(f"\nFLAGGED: {flags}" if flags else "\nNOTHING FLAGGED", style="bold", highlight=False)
    out.print(
        f"False alarms: at most {result.false_alarm_rate:g} of audits of a correct trainer. Nothing flagged proves no "
        "epsilon: the truth lies between the bound and the claim.",
        highlight=False,
        soft_wrap=True,
    )


def show_membership(result: "MembershipResult") -> None:
    """Print how well each attack did, and what the claim permits any attack."""
    rows = [
        (each.name, _interval(each.auc, each.auc_interval), _interval(each.tpr, each.tpr_interval))
        for each in result.attacks
    ]
    table("\nmembership: exact figures about patients", ("attack", "AUC", "TPR at 1 % FPR or less"), rows)
    for note in dict.fromkeys(each.note for each in result.attacks if each.note):
        out.print(note, highlight=False, soft_wrap=True)
    most = f"AUC {result.permitted_auc:.3f}, TPR {result.permitted_tpr:.3f}"
    out.print(f"epsilon {result.epsilon:.3f} at delta {result.delta:.3g} permits {most}", highlight=False)


def show_judgement(judgement: "Judgement") -> None:
    """Print what the evidence comes to, and why."""
    out.print(f"\n{judgement.word.upper()}", style="bold", highlight=False)
    for title, reasons in (("against the site", judgement.contradictions), ("not looked at", judgement.gaps)):
        for reason in reasons:
            out.print(f"{title}: {reason}", highlight=False, markup=False, soft_wrap=True)


def show_replays(found: "list[Replayed]") -> None:
    """Print the verdict on each round."""
    rows = [
        (
            str(each.sequence),
            each.job_id,
            str(each.round),
            each.verdict.replace("_", " "),
            "" if each.difference is None else f"{each.difference:.1e}",
            ", ".join(each.reasons) + ("" if each.code_then == each.code_now else " (other code)"),
        )
        for each in found
    ]
    table(f"{len(found)} rounds", ("entry", "run", "round", "verdict", "difference", "reasons"), rows)
    missing = sum(each.verdict == "not_replayable" for each in found)
    if missing:
        text = f"{missing} of {len(found)} rounds could not be replayed: nothing is shown about them. Ask the site why."
        out.print(f"\n{text}", style="yellow", highlight=False, soft_wrap=True)


def _interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _flag(*, flagged: bool) -> str:
    return "FLAGGED" if flagged else ""
