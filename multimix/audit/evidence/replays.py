"""Which replays are about which entries of the ledger, and what their own figures come to.

A replay is filed as a verdict beside a difference, a tolerance and reasons. The verdict is derived from them again, and
a replay counts only for an answered reservation of this ledger under the run and round that it names; each once.
"""

from collections.abc import Iterator
from typing import Final

from multimix.audit.evidence.records import Evidence
from multimix.audit.replay import Replayed, Verdict, verdict_of

MOST_TOLERANCE: Final = 1e-3  # of an update; what is told in less noise than this hides below a larger one
_IN_WORDS: Final[dict[Verdict, str]] = {
    "reproduced": "reproduced",
    "differs": "differing",
    "not_replayable": "not replayable",
}


def verdict_again(replayed: Replayed) -> Verdict:
    """Return the verdict by the reasons, the difference and the tolerance."""
    judged, difference = verdict_of(replayed.reasons), replayed.difference
    if difference is not None and not 0 <= difference <= replayed.tolerance:  # also of NaN
        return "differs"
    return "not_replayable" if judged == "reproduced" and difference is None else judged


def worst_verdict(replayed: Replayed) -> Verdict:
    """Return the worse of the verdict filed and the one derived."""
    both = {replayed.verdict, verdict_again(replayed)}
    return "differs" if "differs" in both else "not_replayable" if "not_replayable" in both else "reproduced"


def are_entered(evidence: Evidence) -> tuple[bool, ...]:
    """Return of each replay whether the ledger has what it says was executed again; no where nothing was recomputed."""
    rows = evidence.recomputation.rows if evidence.recomputation else ()
    rounds = {row.entry.sequence: (row.entry.job, row.entry.round) for row in rows}
    without_noise = {run.job_id for run in evidence.runs if run.non_private_trainings}
    left_open = set(evidence.verification.open_reservations)

    def is_entered(each: Replayed) -> bool:
        if each.sequence not in rounds:  # no secret fixes a round without noise, and a replay of it says so
            return "non_private" in each.reasons and each.job_id in without_noise
        answered = each.sequence not in left_open or each.verdict == "not_replayable"
        return answered and rounds[each.sequence] == (each.job_id, each.round)

    return tuple(is_entered(each) for each in evidence.replays)


def executed(evidence: Evidence) -> frozenset[int]:
    """Return the entries that were executed again, whatever came out."""
    return frozenset(each.sequence for each in _entered(evidence) if worst_verdict(each) != "not_replayable")


def reproduced(evidence: Evidence) -> dict[int, Replayed]:
    """Return the replays that gave the same weights, one an entry; none of an entry of which another one did not."""
    other = {each.sequence for each in _entered(evidence) if worst_verdict(each) == "differs"}
    return {
        each.sequence: each
        for each in sorted(_entered(evidence), key=lambda each: each.difference or 0.0)  # the largest stays
        if worst_verdict(each) == "reproduced" and each.sequence not in other
    }


def _entered(evidence: Evidence) -> tuple[Replayed, ...]:
    return tuple(each for each, entered in zip(evidence.replays, are_entered(evidence), strict=True) if entered)


def replay_contradictions(evidence: Evidence) -> Iterator[str]:
    """Yield what the replays say against the claim, or against themselves."""
    for each, entered in zip(evidence.replays, are_entered(evidence), strict=True):
        again = verdict_again(each)
        if each.verdict != again:
            yield (
                f"The replay of entry {each.sequence} is filed as {_IN_WORDS[each.verdict]}, and by its own figures it "
                f"is {_IN_WORDS[again]}."
            )
        elif again == "differs":
            why = ", ".join(reason.replace("_", " ") for reason in each.reasons) or "weights differ"
            yield f"Entry {each.sequence} was executed again, and what was released differs: {why}."
        if evidence.recomputation and not entered:
            yield (
                f"A replay of entry {each.sequence}, run {each.job_id}, round {each.round}: that is no answered "
                "reservation of this ledger."
            )


def replay_gaps(evidence: Evidence) -> Iterator[str]:
    """Yield what was not executed again, or says little."""
    if not evidence.replays:
        yield "No round was executed again: that the released weights come from the entered training was not checked."
        return
    if evidence.recomputation is None:
        yield "The replays could not be held against the entries of the ledger."
        return
    answered = {row.entry.sequence for row in evidence.recomputation.rows}
    answered -= set(evidence.verification.open_reservations)
    if left := len(answered - executed(evidence)):
        rounds = "round" if len(answered) == 1 else "rounds"
        yield f"{left:,} of {len(answered):,} answered {rounds} were not executed again, or could not be."
    loose = [each.tolerance for each in reproduced(evidence).values() if each.tolerance > MOST_TOLERANCE]
    if loose:
        yield (
            f"Rounds executed again were allowed to differ by up to {max(loose):g} of an update: above "
            f"{MOST_TOLERANCE:g}, less noise than claimed can pass."
        )
