"""What the runs in a ledger have cost, priced anew, and what a reader of the statement must be told first.

The prices written in the ledger are compared with these, not used.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from multimix.errors import Refused
from multimix.privacy.accountant import Mechanism, Price
from multimix.privacy.entries import Commit, Entry, Evaluation, NonPrivate, Refusal, Reservation
from multimix.privacy.history import history_of, job_of
from multimix.privacy.statement_records import Account, Epsilon, Notice, NoticeKind, RunAccount


class Pricing(Protocol):
    """`multimix.privacy.accountant.price`, or what prices as it does."""

    def __call__(self, history: Mapping[Mechanism, int], /, *, delta: float) -> Price:
        """Return the larger of both accountants for steps by mechanism."""


_ABSOLUTE: Final = 0.02  # between the written epsilon and the computed one
_RELATIVE: Final = 0.01  # both as between the two accountants


class Prices:
    """Prices by history and delta, each computed once."""

    def __init__(self, price: Pricing, delta: float) -> None:
        self.delta = delta
        self._price = price
        self._known: dict[tuple[frozenset[tuple[Mechanism, int]], float], Price] = {}

    def of(self, entries: Iterable[Entry], delta: float | None = None) -> Price | None:
        """Return the price of all reservations; None where there are none."""
        history, at = history_of(entries), delta or self.delta
        key = (frozenset(history.items()), at)
        if history and key not in self._known:
            self._known[key] = self._computed(history, at)
        return self._known.get(key)

    def _computed(self, history: Mapping[Mechanism, int], delta: float) -> Price:
        try:
            return self._price(history, delta=delta)
        except Refused as refusal:
            if refusal.reason != "epsilon_too_large":
                raise
        # Past what the accountants are trusted for; a statement has to be had all the same, and this is no lie.
        return Price(epsilon=math.inf, prv=math.inf, pld=math.inf, delta=delta)


def by_run(entries: Iterable[Entry]) -> dict[str, tuple[Entry, ...]]:
    """Return the entries of each run that the ledger mentions, with the commits of its reservations."""
    runs: dict[str, list[Entry]] = {}
    owners: dict[int, str] = {}  # of the entries so far, by number
    for entry in entries:
        job = owners.get(entry.body.reservation) if isinstance(entry.body, Commit) else _job(entry)
        if job is not None:
            owners[entry.sequence] = job
            runs.setdefault(job, []).append(entry)
    return {job: tuple(mine) for job, mine in runs.items()}


def _job(entry: Entry) -> str | None:
    body = entry.body
    return job_of(body) if isinstance(body, Reservation | NonPrivate | Evaluation | Refusal) else None


def account_of(entries: Sequence[Entry], prices: Prices, limit: float) -> Account:
    """Add up what these entries, of a run or of the whole ledger, have cost."""
    reserved = {entry.sequence: entry.body for entry in entries if isinstance(entry.body, Reservation)}
    plain = [entry.body for entry in entries if isinstance(entry.body, NonPrivate)]
    committed = {entry.body.reservation for entry in entries if isinstance(entry.body, Commit)}
    seeded = sum(body.seeded for body in reserved.values())
    price = prices.of(entries)
    epsilon, prv, pld = (price.epsilon, price.prv, price.pld) if price else (0.0, 0.0, 0.0)
    return Account(
        epsilon="infinity" if plain or seeded else _epsilon(epsilon),
        epsilon_private=_epsilon(epsilon),
        prv=_epsilon(prv),
        pld=_epsilon(pld),
        difference=abs(prv - pld) if math.isfinite(epsilon) else 0.0,
        delta=prices.delta,
        limit=limit,
        reservations=len(reserved),
        uncommitted=len(reserved.keys() - committed),
        seeded=seeded,
        steps=sum(body.steps for body in reserved.values()),
        non_private_trainings=len(plain),
        non_private_steps=sum(body.steps for body in plain),
    )


def run_account(job_id: str, mine: Sequence[Entry], prices: Prices, limit: float) -> RunAccount:
    """Add up what a run that spent something has cost."""
    spent = [(entry, entry.body) for entry in mine if isinstance(entry.body, Reservation | NonPrivate)]
    return RunAccount(
        job_id=job_id,
        first=spent[0][0].time,
        last=spent[-1][0].time,
        rounds=len({body.binding.round for _, body in spent}),
        account=account_of(mine, prices, limit),
    )


def _epsilon(value: float) -> Epsilon:
    return "infinity" if value == math.inf else value


def notices_of(
    entries: Sequence[Entry], lifetime: Account, runs: Sequence[RunAccount], prices: Prices, declared_patients: int
) -> tuple[Notice, ...]:
    """Return what stands at the top of the statement, the gravest first; `runs` are those that it shows."""
    notices = [*_infinite(lifetime), *_disagreements(entries, runs, prices)]
    for name, account in [("the lifetime", lifetime), *((f"run {run.job_id}", run.account) for run in runs)]:
        if account.epsilon_private == "infinity" or account.epsilon_private > account.limit:
            notices.append(_notice("over_limit", f"Epsilon of {name} is above its limit {account.limit:g}."))
    if prices.delta * declared_patients >= 1:
        notices.append(_notice("delta_too_large", "Delta is not below 1/N: the guarantee is hollow."))
    if lifetime.uncommitted:
        text = f"Reservations without a committed answer: {lifetime.uncommitted} of {lifetime.reservations}"
        notices.append(_notice("uncommitted", f"{text}; counted as spent all the same."))
    if shown := sum(isinstance(entry.body, Evaluation) for entry in entries):
        text = f"Evaluations that released exact figures over held-back patients: {shown}."
        notices.append(_notice("evaluations", text))
    return tuple(notices)


def _infinite(lifetime: Account) -> list[Notice]:
    notices = []
    if lifetime.seeded:
        text = f"{lifetime.seeded} of {lifetime.reservations} reservations drew their noise from a known seed"
        notices.append(_notice("simulation", f"NOT PRIVATE: simulation with known noise. {text}; epsilon is infinity."))
    if trainings := lifetime.non_private_trainings:
        text = f"Trainings without differential privacy: {trainings} ({lifetime.non_private_steps} steps)"
        part = "The part with differential privacy is stated beside it."
        notices.append(_notice("non_private", f"{text}; epsilon of the lifetime is infinity. {part}"))
    return notices


def _notice(kind: NoticeKind, text: str) -> Notice:
    return Notice(kind=kind, text=text)


def _disagreements(entries: Sequence[Entry], runs: Sequence[RunAccount], prices: Prices) -> list[Notice]:
    """Return sentences on prices in the ledger that differ from those computed anew."""
    texts: list[str] = []
    entries_of = by_run(entries)
    for run in runs:
        mine = entries_of[run.job_id]
        if last := _last_reservation(mine):
            texts += _compared(f"run {run.job_id}", last.epsilon_run, prices.of(mine, last.delta))
    if last := _last_reservation(entries):
        again = prices.of(entries, last.delta)
        texts += _compared("the lifetime with differential privacy", last.epsilon_private, again)
        if last.epsilon_lifetime is not None:
            texts += _compared("the lifetime", last.epsilon_lifetime, again)
            place = next(number for number, entry in enumerate(entries) if entry.body is last)
            if any(isinstance(entry.body, NonPrivate) for entry in entries[:place]):
                texts.append("The ledger says a finite epsilon of the lifetime after training without privacy.")
    return [_notice("disagreement", text) for text in texts]


def _last_reservation(entries: Iterable[Entry]) -> Reservation | None:
    last = None
    for entry in entries:
        last = entry.body if isinstance(entry.body, Reservation) else last
    return last


def _compared(name: str, written: float, price: Price | None) -> list[str]:
    computed = price.epsilon if price else 0.0
    if abs(written - computed) <= _ABSOLUTE + _RELATIVE * computed:
        return []
    said = f"The ledger says epsilon {written:.4g} of {name}, computed anew it is {computed:.4g}"
    return [f"{said}: do not rely on the smaller one."]
