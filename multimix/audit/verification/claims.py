"""The numbers beside each reservation: within the limits, agreeing with each other, and never falling.

Nothing is priced here (`multimix.audit.recompute` does that). This holds a ledger against itself and against what the
trainer refuses.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from multimix.audit.verification.findings import Finding, notice, violation
from multimix.contract.privacy import MECHANISM
from multimix.privacy.entries import Entry, NonPrivate, Reservation

# How far two prices by the trainer's accountants may be apart for their meshes alone (`multimix.privacy.accountant`).
_MESH: Final = 0.02
_MESH_RELATIVE: Final = 0.01
_PRICED_EXACTLY: Final = 10  # mechanisms; more are merged before pricing, and a claim can fall


def claim_findings(entries: Iterable[Entry]) -> Iterator[Finding]:
    """Yield what is wrong with the parameters and the claimed epsilons of the reservations."""
    claims, exposed = _Claims(), []
    for entry in entries:
        if isinstance(entry.body, NonPrivate):
            exposed.append(entry.sequence)
        elif isinstance(entry.body, Reservation):
            for reason, text in _alone(entry.body):
                yield violation(reason, entry.sequence, text)
            yield from _lifetime(entry.sequence, entry.body, exposed=bool(exposed))
            yield from claims.further(entry.sequence, entry.body)
    if exposed:
        text = f"{len(exposed)} trainings without privacy: epsilon is infinity from here on"
        yield notice("non_private", exposed[0], text)


def _alone(body: Reservation) -> Iterator[tuple[str, str]]:
    """Yield the faults that show in one reservation."""
    dp = body.dp
    if dp.mechanism != MECHANISM:
        yield "dp_mechanism_unknown", "no price is known for it"
    sensible = dp.noise_multiplier > 0 and dp.clip_norm > 0 and 0 < dp.sampling_rate <= 1
    if not (sensible and 0 < dp.delta < 1 and 0 < body.delta < 1 and dp.declared_patients > 0):
        yield "dp_parameters", "a value outside its range"
    if not 1 <= body.binding.round <= dp.rounds:
        yield "round_beyond", f"round {body.binding.round} of a run of {dp.rounds}"
    if body.total_steps != body.steps * dp.rounds:
        yield "total_steps_wrong", f"{body.total_steps}, not {body.steps} x {dp.rounds}"
    if dp.epsilon > body.limit_run or dp.delta > body.delta:
        yield "plan_beyond_limits", "the plan asks for more than the limits beside it"
    yield from _over(body)
    yield from _inconsistent(body)


def _over(body: Reservation) -> Iterator[tuple[str, str]]:
    lifetime = max(body.epsilon_private, body.epsilon_lifetime or 0.0)
    if body.epsilon_run > body.limit_run:
        yield "limit_run_exceeded", f"claims {body.epsilon_run:.4g}, limit {body.limit_run:.4g}"
    if lifetime > body.limit_lifetime:
        yield "limit_lifetime_exceeded", f"claims {lifetime:.4g}, limit {body.limit_lifetime:.4g}"
    same_delta = body.delta == body.dp.delta  # a larger delta of the population costs less, but for the meshes
    if body.epsilon_run > body.dp.epsilon + (0.0 if same_delta else _mesh(body.dp.epsilon)):
        yield "plan_epsilon_exceeded", f"claims {body.epsilon_run:.4g}, the plan promised {body.dp.epsilon:.4g}"


def _inconsistent(body: Reservation) -> Iterator[tuple[str, str]]:
    larger = max(body.prv, body.pld)
    if abs(body.prv - body.pld) > _mesh(larger):
        yield "accountants_disagree", f"PRV {body.prv:.4g}, PLD {body.pld:.4g}"
    if body.epsilon_private != larger:
        yield "claim_inconsistent", f"claims {body.epsilon_private:.6g}, the larger accountant says {larger:.6g}"
    if body.epsilon_lifetime not in (None, body.epsilon_private):
        yield "claim_inconsistent", f"claims {body.epsilon_lifetime:.6g} and {body.epsilon_private:.6g} of one life"
    if body.epsilon_run > body.epsilon_private + _mesh(body.epsilon_private):
        yield "claim_inconsistent", f"the run {body.epsilon_run:.4g}, the whole life {body.epsilon_private:.4g}"
    if min(body.epsilon_run, body.prv, body.pld) < 0:
        yield "claim_inconsistent", "an epsilon below 0"


def _lifetime(number: int, body: Reservation, *, exposed: bool) -> Iterator[Finding]:
    if exposed and body.epsilon_lifetime is not None:
        text = "a finite epsilon of the lifetime after training without privacy"
        yield violation("finite_after_non_private", number, text)
    if not exposed and body.epsilon_lifetime is None:
        text = "the lifetime is infinite, and no entry before says why"
        yield violation("non_private_missing", number, text)


@dataclass
class _Run:
    """What the first reservation of a job fixed."""

    first: Reservation
    reservations: int = 0


@dataclass
class _Claims:
    """The reservations so far."""

    runs: dict[str, _Run] = field(default_factory=dict)
    highest: dict[tuple[str | None, float], float] = field(default_factory=dict)  # of job (None: lifetime) and delta
    mechanisms: set[tuple[float, float]] = field(default_factory=set)
    last: Reservation | None = None

    def further(self, number: int, body: Reservation) -> Iterator[Finding]:
        """Yield what is wrong with a reservation after these."""
        yield from self._in_run(number, body)
        yield from self._settings(number, body)
        self.mechanisms.add((body.dp.noise_multiplier, body.dp.sampling_rate))
        yield from self._falls(number, "the run", (body.binding.job_id, body.delta), body.epsilon_run)
        lifetime = body.epsilon_private if body.epsilon_lifetime is None else body.epsilon_lifetime
        yield from self._falls(number, "the lifetime", (None, body.delta), min(body.epsilon_private, lifetime))
        self.last = body

    def _in_run(self, number: int, body: Reservation) -> Iterator[Finding]:
        run = self.runs.setdefault(body.binding.job_id, _Run(body))
        run.reservations += 1
        if (body.dp, body.steps) != (run.first.dp, run.first.steps):
            yield violation("dp_changed", number, "a run's privacy is fixed with its first round")
        if run.reservations == body.dp.rounds + 1:
            text = f"more reservations than the {body.dp.rounds} rounds of the run: rounds were reserved anew"
            yield notice("more_than_rounds", number, text)

    def _settings(self, number: int, body: Reservation) -> Iterator[Finding]:
        last = self.last or body
        if body.delta != last.delta:
            yield notice("delta_changed", number, f"from {last.delta:.4g} to {body.delta:.4g}")
        for name, before, now in (
            ("run", last.limit_run, body.limit_run),
            ("lifetime", last.limit_lifetime, body.limit_lifetime),
        ):
            if before != now:
                yield notice("limit_changed", number, f"of the {name}, from {before:.4g} to {now:.4g}")

    def _falls(self, number: int, what: str, of: tuple[str | None, float], claim: float) -> Iterator[Finding]:
        highest = self.highest.setdefault(of, claim)
        self.highest[of] = max(highest, claim)
        if claim >= highest:
            return
        text = f"of {what}: {claim:.6g} after {highest:.6g}"
        if len(self.mechanisms) > _PRICED_EXACTLY or claim >= highest - _mesh(highest):
            yield notice("epsilon_falls", number, f"{text}; within what the accountants' meshes and merging can do")
        else:
            yield violation("epsilon_falls", number, text)


def _mesh(epsilon: float) -> float:
    return _MESH + _MESH_RELATIVE * max(epsilon, 0.0)
