"""The books of a site: what its patients' privacy has cost, and the budget that no plan gets past.

Every answer that carries something of the patients is entered before it is made: private training is priced on top of
all that the ledger holds, over all runs, and refused beyond the budget before a pixel is read.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.population import PopulationSettings
from multimix.contract.messages import RoundPlan, canonical_json, sha256_text
from multimix.contract.privacy import Countersignature, Extension, LedgerHead, PatientPrivacy, Sha256
from multimix.errors import Refused
from multimix.privacy.accountant import Mechanism, Price, affordable_steps, merged, price
from multimix.privacy.entries import (
    Binding,
    Entry,
    Evaluation,
    NonPrivate,
    Officer,
    OfficerAction,
    Refusal,
    Reservation,
)
from multimix.privacy.history import history_of, job_of, non_private
from multimix.privacy.history import reservations as reservations_of
from multimix.privacy.ledger import Ledger, open_ledger, read_ledger, utcnow
from multimix.privacy.officer import signed_by_officer
from multimix.privacy.reservations import Reservations, Stage
from multimix.version import code_version

_MOST_FORECAST_STEPS: Final = 1_000_000  # the accountants price up to twice as many
_MOST_PROVED_ENTRIES: Final = 99_990  # of the 100,000 of an extension; an order enters a few more
_MOST_PRICED_EPSILON: Final = 100.0  # they refuse what costs more, whatever the budget


@dataclass(frozen=True)
class Order:
    """A plan that has been admitted, and what its answer is bound to."""

    plan: RoundPlan
    binding: Binding
    packed: bytes = b""  # all that was received, kept so that a private round can be replayed


@dataclass(frozen=True)
class Books:
    """Ledger, budget and reservations of one patient population."""

    folder: Path
    site: str
    population: PopulationSettings
    seed: str | None = None  # of a simulation: who knows it can subtract the noise
    now: Callable[[], datetime] = utcnow

    @contextmanager
    def opened(self, known: Countersignature | None, coordinator: Ed25519PublicKey) -> Iterator[Ledger]:
        """Open the ledger, alone, for an answer, and hold it against the head that the server last countersigned.

        Raises:
            Refused: `countersignature_missing` where the server withholds what it gave before,
                `ledger_extension_too_long` before anything is entered that could not be proved, and those of
                `open_ledger` and `Ledger.keep_countersignature`.
        """
        with self.opened_to_refuse() as ledger:
            if known is not None:
                ledger.keep_countersignature(known, coordinator)
            elif ledger.countersigned() is not None:
                raise Refused("countersignature_missing", "the order brings no countersignature")
            check_provable(self.extension(ledger, known))
            yield ledger

    def opened_to_refuse(self) -> AbstractContextManager[Ledger]:
        """Open the ledger, alone, for nothing but the entry of a refusal; Refused as `open_ledger`."""
        return open_ledger(self.folder, site=self.site, population=self.population.name, now=self.now)

    def answer(self, ledger: Ledger, order: Order, train: Callable[[bytes], bytes]) -> bytes:
        """Return the one reply to a private order: the stored one, or that of `train`, given the secret.

        The order itself is kept for audits, before training begins.

        Raises:
            Refused: `plan_replayed`, `plan_changed`, those of `reserve`, and whatever `train` refuses.
        """
        reservations, plan = Reservations(self.folder), order.plan
        dp, steps = _private(plan)
        found = reservations.find(ledger, order.binding, dp=dp, steps=steps)
        if found.sequence is not None and found.stage in (Stage.COMMITTED, Stage.REPLIED):
            return reservations.stored_reply(ledger, found.sequence)
        check_order(ledger.entries, plan, order.binding.plan_sha256)
        if found.sequence is None or found.reservation is None:
            entry, secret = reservations.reserve(
                ledger, lambda hashed: self._reservation(ledger.entries, order, hashed), self._seeded_secret(order)
            )
            sequence = entry.sequence
        else:
            sequence, secret = found.sequence, reservations.secret_of(found.reservation)
        reservations.keep_order(ledger, order.binding, order.packed)
        return reservations.keep_reply(ledger, sequence, train(secret))

    def _seeded_secret(self, order: Order) -> bytes | None:
        if self.seed is None:
            return None
        return hashlib.sha256(f"{self.seed}|{self.site}|{order.plan.round}".encode()).digest()

    def _reservation(self, entries: tuple[Entry, ...], order: Order, hashed: str) -> Reservation:
        """Price the order and return what is to be reserved; Refused beyond the budget."""
        plan = order.plan
        dp, steps = _private(plan)
        mixed = non_private(entries, plan.job_id)
        if mixed or any((each.dp, each.steps) != (dp, steps) for each in reservations_of(entries, plan.job_id)):
            raise Refused("dp_changed", "a run's privacy is fixed with its first round")
        run, lifetime = self.priced(entries, plan.job_id, mechanism_of(dp), steps)
        limits = self.population
        before = min((each.delta for each in reservations_of(entries)), default=math.inf)
        if limits.failure_probability > before:
            raise Refused("dp_delta_raised", f"{limits.failure_probability:.3g} now, {before:.3g} before")
        if run.epsilon > limits.epsilon_per_run:
            raise Refused("dp_budget_run", f"{run.epsilon:.3f} is above {limits.epsilon_per_run:g}")
        planned = price(merged(history_of(entries, plan.job_id), {mechanism_of(dp): steps}), delta=dp.delta)
        if planned.epsilon > dp.epsilon:  # the coordinator's own word for the run
            raise Refused("dp_budget_run", f"{planned.epsilon:.3f} is above {dp.epsilon:g} of the plan")
        if lifetime.epsilon > limits.epsilon_lifetime:
            raise Refused("dp_budget_lifetime", f"{lifetime.epsilon:.3f} is above {limits.epsilon_lifetime:g}")
        exposed = non_private(entries)
        if exposed and not self.officer_allows(entries, "private_after_non_private"):
            raise Refused("population_exposed", "trained without privacy before; the officer has to sign")
        return Reservation(
            binding=order.binding,
            commitment=hashed,
            seeded=self.seed is not None,
            dp=dp,
            steps=steps,
            total_steps=steps * dp.rounds,
            epsilon_run=run.epsilon,
            epsilon_lifetime=None if exposed else lifetime.epsilon,
            epsilon_private=lifetime.epsilon,
            prv=lifetime.prv,
            pld=lifetime.pld,
            limit_run=limits.epsilon_per_run,
            limit_lifetime=limits.epsilon_lifetime,
            delta=limits.failure_probability,
            code=code_version(),
            method_sha256=sha256_text(canonical_json(plan.method)),
        )

    def priced(self, entries: tuple[Entry, ...], job_id: str, mechanism: Mechanism, steps: int) -> tuple[Price, Price]:
        """Return what the job, and the population's whole life, cost with these further steps."""
        delta, further = self.population.failure_probability, {mechanism: steps}
        run = price(merged(history_of(entries, job_id), further), delta=delta)
        return run, price(merged(history_of(entries), further), delta=delta)

    def rounds_left(self, entries: tuple[Entry, ...], job_id: str, mechanism: Mechanism, steps: int) -> int:
        """Return how many more such rounds the budget of the job, and of the lifetime, allows (up to 10,000)."""
        limits, most = self.population, min(10_000 * steps, _MOST_FORECAST_STEPS)
        delta = limits.failure_probability
        run = affordable_steps(
            mechanism=mechanism,
            delta=delta,
            limit_epsilon=min(limits.epsilon_per_run, _MOST_PRICED_EPSILON),
            spent=history_of(entries, job_id),
            at_most=most,
        )
        lifetime = affordable_steps(
            mechanism=mechanism,
            delta=delta,
            limit_epsilon=min(limits.epsilon_lifetime, _MOST_PRICED_EPSILON),
            spent=history_of(entries),
            at_most=most,
        )
        return min(run, lifetime) // steps

    def enter_non_private(self, ledger: Ledger, order: Order) -> None:
        """Enter training without privacy before it begins.

        Raises:
            Refused: `dp_changed` in a run that began with privacy; `non_private_not_signed` without the officer.
        """
        check_order(ledger.entries, order.plan, order.binding.plan_sha256)
        if reservations_of(ledger.entries, order.plan.job_id):
            raise Refused("dp_changed", "a run's privacy is fixed with its first round")
        if not self.officer_allows(ledger.entries, "allow_non_private", since_exposure=False):
            raise Refused("non_private_not_signed", "updates can reveal images; the officer has to sign")
        steps = order.plan.work.steps if order.plan.work else 1
        ledger.append(NonPrivate(binding=order.binding, steps=steps))

    def enter_evaluation(self, ledger: Ledger, order: Order, minimum_cohort: int) -> None:
        """Enter that exact figures leave, once for each order; Refused as `check_evaluation`."""
        split = order.plan.evaluate_on
        if split == "none":
            raise Refused("plan_incomplete")
        check_evaluation(ledger.entries, order)
        entry = Evaluation(binding=order.binding, split=split, minimum_cohort=minimum_cohort)
        if not any(each.body == entry for each in ledger.entries):
            ledger.append(entry)

    def enter_refusal(self, ledger: Ledger, plan: RoundPlan, plan_sha256: Sha256, reason: str) -> None:
        """Enter a refusal of a signed plan, once."""
        entry = Refusal(job_id=plan.job_id, round=plan.round, plan_sha256=plan_sha256, reason=reason)
        if not any(each.body == entry for each in ledger.entries):
            ledger.append(entry)

    def officer_allows(self, entries: tuple[Entry, ...], action: OfficerAction, *, since_exposure: bool = True) -> bool:
        """Whether the officer signed this, after the last non-private training where that matters."""
        exposed = [entry.sequence for entry in entries if isinstance(entry.body, NonPrivate)]
        first = exposed[-1] if exposed and since_exposure else -1
        return any(
            isinstance(entry.body, Officer)
            and entry.body.action == action
            and entry.sequence > first
            and signed_by_officer(entry, self.site, self.population.name, self.population.officer_key)
            for entry in entries
        )

    def non_private_signed(self) -> bool:
        """Whether the officer allows training without privacy; not where the ledger cannot be read."""
        try:
            ledger = read_ledger(self.folder, site=self.site, population=self.population.name)
        except Refused:
            return False
        return self.officer_allows(ledger.entries, "allow_non_private", since_exposure=False)

    def extension(self, ledger: Ledger, known: Countersignature | None) -> Extension:
        """Return the proof that the ledger has grown from what the server knows."""
        return ledger.extension(known.head if known else LedgerHead())


def mechanism_of(dp: PatientPrivacy) -> Mechanism:
    """Return what one step of a plan costs."""
    return Mechanism(noise_multiplier=dp.noise_multiplier, sampling_rate=dp.sampling_rate)


def _private(plan: RoundPlan) -> tuple[PatientPrivacy, int]:
    if plan.dp is None or plan.work is None:
        raise Refused("plan_incomplete")
    return plan.dp, plan.work.steps


def check_provable(extension: Extension) -> None:
    """Refuse `ledger_extension_too_long` where the entries of one more order might not fit into a proof."""
    if len(extension.digests) > _MOST_PROVED_ENTRIES:
        raise Refused("ledger_extension_too_long", f"{len(extension.digests)} entries, at most {_MOST_PROVED_ENTRIES}")


def check_order(entries: tuple[Entry, ...], plan: RoundPlan, plan_sha256: Sha256) -> None:
    """Refuse an older round (`plan_replayed`) or another plan for the same round (`plan_changed`), for good."""
    trained = [
        e.body for e in entries if isinstance(e.body, Reservation | NonPrivate) and job_of(e.body) == plan.job_id
    ]
    if not trained:
        return
    last = max(trained, key=lambda body: body.binding.round).binding
    if plan.round < last.round:
        raise Refused("plan_replayed", f"round {plan.round} after round {last.round}")
    if plan.round == last.round and plan_sha256 != last.plan_sha256:
        raise Refused("plan_changed", f"another plan for round {plan.round}")


def check_evaluation(entries: tuple[Entry, ...], order: Order) -> None:
    """Refuse figures that were not to be had before, for good: nobody gets two answers to tell one patient by.

    Raises:
        Refused: `plan_replayed` for an older round of the job than the last one evaluated, `plan_changed` for another
            plan for that round, `data_changed` for a plan that was answered on other images: the difference of two
            exact figures is that of the patients who came or went between them.
    """
    plan, asked = order.plan, order.binding
    trained = {e.body.binding.plan_sha256 for e in entries if isinstance(e.body, NonPrivate)}
    evaluated = [e.body.binding for e in entries if isinstance(e.body, Evaluation) and job_of(e.body) == asked.job_id]
    alone = [each for each in evaluated if each.plan_sha256 not in trained]  # others rode on a training reply
    if plan.kind == "evaluate" and alone:
        last = max(alone, key=lambda each: each.round)
        if plan.round < last.round:
            raise Refused("plan_replayed", f"round {plan.round} after round {last.round}")
        if plan.round == last.round and asked.plan_sha256 != last.plan_sha256:
            raise Refused("plan_changed", f"another plan for round {plan.round}")
    same = (each for each in evaluated if each.plan_sha256 == asked.plan_sha256)
    if any(each.data_fingerprint != asked.data_fingerprint for each in same):
        raise Refused("data_changed")
