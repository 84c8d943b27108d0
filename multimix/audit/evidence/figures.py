"""Epsilon as claimed, as recomputed and as bounded from below by audits: of each run, and of the lifetime.

The claim is what the trainer wrote with its reservations, the recomputed figure what the same entries cost. Both are
from above. An audit's bound is from below, and counts for a run only where the audit took no more of the same steps and
the bound is at no smaller delta: epsilon at a smaller one is larger.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from multimix.audit.empirical import EmpiricalResult
from multimix.audit.evidence.records import Evidence, RunFacts
from multimix.audit.recompute import Recomputation, Row


@dataclass(frozen=True)
class Figure:
    """One run, or the lifetime. What has infinite epsilon keeps the figures of its part with noise beside it."""

    name: str
    claimed: float
    claimed_private: float
    recomputed: float | None  # None: it could not be recomputed
    recomputed_private: float | None
    seeded: bool  # the noise of some steps is known: nothing stands behind the figures
    limit: float | None
    delta: float | None
    bounds: tuple[float, ...] = ()
    ceilings: tuple[float, ...] = ()  # what the audits with these bounds could have shown at most

    @property
    def worst(self) -> float:
        """The upper bound that counts: infinity where anything was without noise, or with known noise."""
        if self.seeded or self.recomputed is None:
            return math.inf
        return max(self.claimed, self.recomputed)


def figures_of(evidence: Evidence) -> tuple[Figure, ...]:
    """Return the runs in the order of their first spending, then the lifetime; none where nothing was trained."""
    if not evidence.runs:
        return ()
    found = evidence.recomputation
    rows = found.rows if found else ()
    of_run: dict[str, list[Row]] = {}
    for row in rows:
        of_run.setdefault(row.entry.job, []).append(row)
    runs = tuple(_run(run, of_run.get(run.job_id, []), found, evidence.empirical) for run in evidence.runs)
    return (*runs, _lifetime(evidence, rows, runs))


def lifetime_of(evidence: Evidence) -> Figure | None:
    """Return the lifetime; None where nothing was trained."""
    figures = figures_of(evidence)
    return figures[-1] if figures else None


def relied_on(evidence: Evidence) -> tuple[float, float] | None:
    """Return the (epsilon, delta) of the lifetime that may be relied on, the worst of all sources at one delta.

    None where no training with differential privacy is entered, or nothing could be recomputed.
    """
    lifetime, statement, found = lifetime_of(evidence), evidence.statement, evidence.recomputation
    if lifetime is None or lifetime.delta is None or found is None:
        return None
    if statement is None or math.isinf(lifetime.worst):
        return lifetime.worst, lifetime.delta
    stated = math.inf if statement.lifetime.epsilon == "infinity" else statement.lifetime.epsilon
    claimed = lifetime.claimed if statement.delta == lifetime.delta else 0.0
    return max(stated, claimed, found.lifetime), statement.delta


def same_steps(result: EmpiricalResult, run: RunFacts) -> bool:
    """Whether an audit took steps as this run did, and no more of them."""
    audited = (result.noise_multiplier, result.sampling_rate, result.clip_norm)
    used = {(dp.noise_multiplier, dp.sampling_rate, dp.clip_norm) for dp in run.dp}
    return used == {audited} and result.steps <= run.steps


def _run(
    run: RunFacts, rows: Sequence[Row], found: Recomputation | None, empirical: Sequence[EmpiricalResult]
) -> Figure:
    delta = rows[-1].entry.delta if rows else None
    claimed = max((row.entry.claimed_run for row in rows), default=0.0)
    recomputed = _price(rows, rows[-1].run.high, found, found.runs[run.job_id]) if found and rows else None
    plain = run.non_private_trainings > 0
    audited = [bound for each in empirical if same_steps(each, run) for bound in each.bounds]
    fits = [bound for bound in audited if delta is not None and bound.delta >= delta]
    return Figure(
        name=run.job_id,
        claimed=math.inf if plain else claimed,
        claimed_private=claimed,
        recomputed=math.inf if plain and found else recomputed,
        recomputed_private=None if recomputed == math.inf else recomputed,
        seeded=run.seeded > 0,
        limit=run.limit_run[-1] if run.limit_run else None,
        delta=delta,
        bounds=tuple(bound.epsilon for bound in fits),
        ceilings=tuple(bound.ceiling for bound in fits),
    )


def _lifetime(evidence: Evidence, rows: Sequence[Row], runs: Sequence[Figure]) -> Figure:
    delta = rows[-1].entry.delta if rows else None
    private = max((row.entry.claimed_private for row in rows), default=0.0)
    claimed = max((row.entry.claimed_lifetime for row in rows), default=0.0)
    found = evidence.recomputation
    recomputed = _price(rows, rows[-1].private.high, found, found.private) if found and rows else None
    plain = evidence.non_private > 0
    limits = [run.limit_lifetime[-1] for run in sorted(evidence.runs, key=lambda run: run.last) if run.limit_lifetime]
    fits = [run for run in runs if run.delta is not None and delta is not None and run.delta >= delta]
    return Figure(
        name="Lifetime",
        claimed=math.inf if plain else claimed,
        claimed_private=private,
        recomputed=math.inf if plain and found else recomputed,
        recomputed_private=recomputed,
        seeded=evidence.seeded > 0,
        limit=limits[-1] if limits else None,
        delta=delta,
        bounds=tuple(bound for run in fits for bound in run.bounds),
        ceilings=tuple(ceiling for run in fits for ceiling in run.ceilings),
    )


def _price(rows: Sequence[Row], high: float, found: Recomputation, total: float) -> float:
    """Return the price at the claims' own delta: the total where it is at that, else the newest row's upper bound."""
    return min(high, total) if found.delta == rows[-1].entry.delta else high
