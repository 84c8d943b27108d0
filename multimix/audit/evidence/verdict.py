"""What the evidence comes to: contradicted, incomplete or consistent, each with its reasons in plain words.

Contradicted: something that was looked at speaks against the claim. Incomplete: nothing does, and something was not
looked at. Consistent: neither; which proves nothing. No word of this is "safe". Flags and verdicts of measurements are
not believed but derived again from the figures beside them.
"""

from collections.abc import Iterator
from typing import Final

from multimix.audit.empirical import EmpiricalResult
from multimix.audit.evidence.figures import same_steps
from multimix.audit.evidence.flags import (
    beats_claim,
    bound_flagged,
    flag_in_words,
    flags_of,
    hidden_flags,
    is_above,
    is_lenient,
)
from multimix.audit.evidence.records import Evidence, Judgement
from multimix.audit.evidence.replays import replay_contradictions, replay_gaps
from multimix.privacy.statement_records import Epsilon, Statement

_APART: Final = 0.02  # between two upper bounds, for their meshes alone
_APART_RELATIVE: Final = 0.01
_DISAGREEMENTS: Final = {
    "understated": "reservations claim less than their entries cost",
    "undecided": "claims could not be decided: more prices are needed than an honest ledger takes",
    "claim_above_limit": "reservations claim more than the limit written beside them",
    "delta_raised": "times delta was raised, which makes epsilon look smaller",
}


def judge(evidence: Evidence) -> Judgement:
    """Return the verdict; the judgement that the evidence holds already is not read."""
    contradictions, gaps = tuple(_contradictions(evidence)), tuple(_gaps(evidence))
    word = "contradicted" if contradictions else "incomplete" if gaps else "consistent"
    return Judgement.model_validate({"word": word, "contradictions": contradictions, "gaps": gaps})


def many(number: int, one: str, more: str | None = None) -> str:
    """Return "1 thing" or "2 things"."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _contradictions(evidence: Evidence) -> Iterator[str]:
    if violations := evidence.verification.violations:
        placed = [finding for finding in violations if finding.entry is not None]
        where = f", the first at entry {min(finding.entry or 0 for finding in placed)}" if placed else ""
        yield f"The ledger has {many(len(violations), 'fault')} that no honest ledger shows{where}."
    yield from _disagreements(evidence)
    if evidence.statement:
        yield from _of_the_statement(evidence, evidence.statement)
    for number, result in enumerate(evidence.empirical, 1):
        if flags := flags_of(result):
            yield f"Empirical audit {number} flags the trainer: {_listed(flags)}."
        if hidden := hidden_flags(result):
            yield f"Empirical audit {number} is filed as if this spoke for the trainer: {_listed(hidden)}."
    yield from replay_contradictions(evidence)
    yield from _of_attacks(evidence)


def _disagreements(evidence: Evidence) -> Iterator[str]:
    found = evidence.recomputation
    if found is None or found.agrees:
        return
    notes = [note.partition(": ") for note in found.notes]
    told = [f"{count} {_DISAGREEMENTS[name]}" for name, _, count in notes if name in _DISAGREEMENTS]
    for text in told or ["the totals"]:
        yield f"Epsilon computed again from the entries does not agree with what was claimed: {text}."


def _of_the_statement(evidence: Evidence, statement: Statement) -> Iterator[str]:
    seen = evidence.verification
    of_this = (statement.site, statement.population, statement.ledger.head) == (seen.site, seen.population, seen.head)
    if not of_this or statement.ledger.public_key != seen.public_key:
        yield "The site's statement is about another ledger, or another state of this one."
    if any(notice.kind == "over_limit" for notice in statement.notices):
        yield "The site's statement has an epsilon above the limit that the site states."
    if found := evidence.recomputation:
        pairs = [(statement.lifetime.epsilon, found.lifetime), (statement.lifetime.epsilon_private, found.private)]
        pairs += [(run.account.epsilon, found.runs.get(run.job_id, 0.0)) for run in statement.runs]
        if any(_understated(claim, price) for claim, price in pairs):
            yield "The site's statement says less than the entries cost, computed again at its delta."


def _understated(claim: Epsilon, price: float) -> bool:
    return claim != "infinity" and price > claim + _APART + _APART_RELATIVE * claim


def _of_attacks(evidence: Evidence) -> Iterator[str]:
    for result in evidence.membership:
        for attack in result.attacks:
            if beats_claim(result, attack):
                yield (
                    f"The membership attack by {attack.name} does better than epsilon {result.epsilon:.4g} permits: "
                    "the claim is wrong, or the patients held back differ from the others in other ways."
                )


def _gaps(evidence: Evidence) -> Iterator[str]:
    yield from _about_heads(evidence)
    if any(finding.reason == "officer_not_checked" for finding in evidence.verification.notices):
        yield "The officer's key was not given: whose decisions the ledger holds was not checked."
    if evidence.statement is None:
        yield "The site's statement was not given."
    if evidence.recomputation is None:
        yield f"Epsilon could not be computed again ({evidence.recomputation_error}): no claim was checked."
    if not any(run.reservations for run in evidence.runs):
        yield "The ledger holds no training with differential privacy: there was no claim to check."
    if left := len(evidence.verification.open_reservations):
        yield (
            f"{many(left, 'reservation was', 'reservations were')} never answered: what was done under them cannot be "
            "executed again. They are counted as spent."
        )
    yield from _about_audits(evidence)
    yield from replay_gaps(evidence)


def _about_heads(evidence: Evidence) -> Iterator[str]:
    seen = evidence.verification
    if seen.truncation == "not checkable":
        yield (
            "Truncation not checkable: there was no head of this ledger from the coordinator to hold it against. "
            "Entries cut off at the end do not show, and the site can have written all of it anew."
        )
    elif seen.truncation != "checked":
        yield "The coordinator's key was not given: its heads may be anybody's."
    if seen.covered is not None and seen.covered < seen.entries:
        newer = many(seen.entries - seen.covered, "entry is", "entries are")
        yield f"{newer} newer than the coordinator's last head: their loss would not show."


def _about_audits(evidence: Evidence) -> Iterator[str]:
    if not evidence.empirical:
        yield "No empirical audit was made: whether the training software adds the noise it claims was not measured."
        return
    for number, result in enumerate(evidence.empirical, 1):
        yield from _of_an_audit(number, result)
    private = [run for run in evidence.runs if run.reservations]
    for run in private:
        fitting = [each for each in evidence.empirical if same_steps(each, run)]
        if not fitting:
            yield f"No empirical audit took the steps of run {run.job_id} (noise, sampling rate and clip norm)."
        elif not {each.code for each in fitting} >= set(run.code):
            yield f"The empirical audit ran other software than the one that the ledger names for run {run.job_id}."
        price = evidence.recomputation.runs.get(run.job_id, 0.0) if evidence.recomputation else 0.0
        claims = [each.claimed_epsilon for each in fitting if run.delta and each.delta >= run.delta[-1]]
        claims += [bound.claimed_epsilon for each in fitting for bound in each.bounds if bound.delta >= run.delta[-1]]
        if any(_understated(price, claim) for claim in claims):
            yield f"An empirical audit was held against a larger epsilon than all steps of run {run.job_id} cost."


def _of_an_audit(number: int, result: EmpiricalResult) -> Iterator[str]:
    if above := tuple(
        f"bound_{bound.method}" for bound in result.bounds if is_above(bound) and not bound_flagged(result, bound)
    ):
        yield (
            f"Empirical audit {number} has a lower bound above its claim, and was not sure enough to flag the trainer: "
            f"{_listed(above)}. Audit again with another seed."
        )
    if is_lenient(result):
        yield f"Empirical audit {number} was told to flag less than this software does unless told."


def _listed(flags: tuple[str, ...]) -> str:
    return "; ".join(flag_in_words(flag) for flag in flags)
