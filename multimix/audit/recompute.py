"""Epsilon from the events of a ledger alone, beside what the trainer claimed: `recompute.py LEDGER [--json]`.

This file stands alone: it needs Python and dp-accounting, nothing of MultiMix, so that an auditor can read all of it
and run it where the trainer's software is not. It does NOT check signatures or the chain: `multimix-audit verify` does.

Every reservation counts, committed or not. A step is the Poisson-subsampled Gaussian mechanism under adding or removing
one patient; steps compose by their privacy loss distributions (connect the dots, Doroshenko et al. 2022,
arXiv:2207.04380), always rounded up: each price is an upper bound at any mesh (see `_mesh`).

Not every prefix of a long ledger is priced. Epsilon never falls as steps are added, so an entry lies between the prices
of an earlier and a later one, and is priced itself only where that does not decide its claim:

* `understated`: below the price at or before it by more than 0.02 + 1 %, also on a finer mesh. A disagreement.
* `agrees`: with 0.02 + 1 % added not below the price at or after it.
* `overstated`: above the price at or after it by more than three times that. It costs the hospital's budget and no
  patient's privacy, and the trainer prices long histories roughly. Not a disagreement.
* `undecided`: more prices would be needed than are given (`_MOST_PRICES`). Counts as a disagreement.

Exit code: 0 agrees, 3 does not, 2 could not be read. What is above epsilon 120 is not priced and stands as infinite.
"""

import argparse
import json
import math
import re
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as losses

Verdict = Literal["agrees", "overstated", "undecided", "understated"]  # from good to bad
Mechanism = tuple[float, float]  # noise multiplier, sampling rate
Steps = tuple[Mechanism, int]
Claim = tuple[int, float]  # position on a curve, epsilon

AGREE, DISAGREE, UNREADABLE = 0, 3, 2
_WORST: Final[tuple[Verdict, ...]] = ("agrees", "overstated", "undecided", "understated")
_APART, _APART_RELATIVE = 0.02, 0.01
_MOST_EPSILON: Final = 120.0  # the trainer claims 100 at most
_MOST_PRICES: Final = 1500  # of a curve; an honest one of 50,000 reservations up to epsilon 100 takes 300
_CUT: Final = 1e-4  # of delta: what a composition may cut off the tails and count as infinite loss
_MOST_LIES: Final = 20  # then many claims are wrong, and halving finds them faster
_MOST_STEPS: Final = 10_000_000
_MOST_MECHANISMS: Final = 256
_NOISE, _RATE, _DELTA = (0.1, 1e5), (1e-5, 1.0), (1e-10, 0.5)  # where the floats of an FFT are good enough
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TIME: Final = re.compile(r"[0-9T:.Z+-]{1,40}")
_KINDS: Final = frozenset(
    {"genesis", "reservation", "commit", "non_private", "evaluation", "refusal", "officer", "tuning"}
)


class RecomputeError(ValueError):
    """The ledger could not be recomputed: a reason code and the number of the entry, never its content."""

    def __init__(self, reason: str, entry: int | None = None) -> None:
        super().__init__(reason if entry is None else f"{reason} at entry {entry}")
        self.reason, self.entry = reason, entry


@dataclass(frozen=True)
class Bracket:
    """Epsilon is between these prices of an earlier and a later entry; both are the same where it was priced."""

    low: float
    high: float


@dataclass(frozen=True)
class Reservation:
    """What the ledger says: events, and the epsilons claimed with them. Infinity is `math.inf`."""

    sequence: int
    time: str
    job: str
    round: int
    noise_multiplier: float
    sampling_rate: float
    steps: int
    delta: float
    seeded: bool  # noise from a known seed: priced, but it protects nobody
    claimed_run: float
    claimed_lifetime: float
    claimed_private: float
    above_limit: bool  # a claim is beyond the limit written beside it
    exposed: bool  # the population was trained without privacy before
    run_exposed: bool

    @property
    def mechanism(self) -> Mechanism:
        """Noise multiplier and sampling rate."""
        return self.noise_multiplier, self.sampling_rate


@dataclass(frozen=True)
class Row:
    """A reservation and what its events cost: the verdict is the worst over its three claims."""

    entry: Reservation
    run: Bracket
    lifetime: Bracket
    private: Bracket
    verdict: Verdict


@dataclass(frozen=True)
class Recomputation:
    """A ledger's epsilon by its events, in total and beside each claim.

    `delta` is the one asked for, else the smallest that was claimed; totals are at it, each row at its own.
    """

    site: str
    population: str
    delta: float | None
    rows: tuple[Row, ...]
    runs: dict[str, float]
    lifetime: float
    private: float
    agrees: bool
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON; infinity is None, as in a ledger."""
        fields: dict[str, Any] = _without_infinity(asdict(self))
        return fields


@dataclass(frozen=True)
class _Events:
    site: str
    population: str
    reservations: tuple[Reservation, ...]
    non_private: frozenset[str]  # runs


def price(steps: Mapping[Mechanism, int], *, delta: float) -> float:
    """Return the epsilon of so many steps of each (noise multiplier, sampling rate) at delta; infinity above 120.

    Raises:
        RecomputeError: `accountant_failed`.
    """
    return _Accountant().epsilon(tuple(sorted(steps.items())), delta)


def recompute(lines: Iterable[bytes], *, delta: float | None = None) -> Recomputation:
    """Price every run and the population's lifetime, and compare with what each reservation claimed at the time.

    Args:
        lines: of `ledger.jsonl`, from the genesis on, with or without their ends of line.
        delta: for the totals; claims are always compared at their own.

    Raises:
        RecomputeError: `ledger_empty`, `line_unreadable`, `entry_invalid`, `entry_out_of_order`, `entry_unknown`,
            `mechanism_unknown`, `mechanism_out_of_range`, `delta_out_of_range`, `steps_too_many`,
            `mechanisms_too_many`, `accountant_failed`.
    """
    events = _read(lines)
    deltas = [each.delta for each in events.reservations]
    if any(not _within(each, _DELTA) for each in (*deltas, *([] if delta is None else [delta]))):
        raise RecomputeError("delta_out_of_range")
    return _compared(events, min(deltas, default=None) if delta is None else delta)


def _compared(events: _Events, delta: float | None) -> Recomputation:
    population, runs = _Scope(), defaultdict[str, _Scope](_Scope)
    for each in events.reservations:
        population.add(each)
        runs[each.job].add(each)
    accountant, curves = _Accountant(), dict[tuple[Any, ...], _Curve]()

    def of(scope: _Scope, at: float) -> _Curve:
        """Return the scope's curve: whatever takes steps of one and the same mechanism shares one."""
        key = (scope.only or id(scope), at)
        if key not in curves:
            curves[key] = _Curve(accountant, scope, at)
        return curves[key]

    asked = [
        (each, _Place(of(population, each.delta), population, each), _Place(of(run, each.delta), run, each))
        for each, run in ((each, runs[each.job]) for each in events.reservations)
    ]
    for each, in_life, in_run in asked:
        in_life.claim(each.claimed_private)
        in_life.claim(each.claimed_lifetime)
        in_run.claim(each.claimed_run)
    for curve in curves.values():
        curve.settle()
    rows = tuple(_row(*each) for each in asked)
    totals = {name: 0.0 if delta is None else of(scope, delta).last(scope) for name, scope in runs.items()}
    private = 0.0 if delta is None or not rows else of(population, delta).last(population)
    faults, notes = _findings(rows)
    return Recomputation(
        site=events.site,
        population=events.population,
        delta=delta,
        rows=rows,
        runs=totals | dict.fromkeys(sorted(events.non_private), math.inf),
        lifetime=math.inf if events.non_private else private,
        private=private,
        agrees=not faults,
        notes=(*faults, *notes, *(f"non_private_run: {name}" for name in sorted(events.non_private))),
    )


def _row(each: Reservation, in_life: "_Place", in_run: "_Place") -> Row:
    infinite = Bracket(math.inf, math.inf)
    verdicts: list[Verdict] = [
        in_life.verdict(each.claimed_private),
        "understated" if each.run_exposed else in_run.verdict(each.claimed_run),
        _of_infinite(each.claimed_lifetime) if each.exposed else in_life.verdict(each.claimed_lifetime),
    ]
    return Row(
        entry=each,
        run=infinite if each.run_exposed else in_run.bracket(),
        lifetime=infinite if each.exposed else in_life.bracket(),
        private=in_life.bracket(),
        verdict=max(verdicts, key=_WORST.index),
    )


def _of_infinite(claim: float) -> Verdict:
    return "agrees" if claim == math.inf else "understated"


def _findings(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return what is a disagreement, and what is worth a note."""
    verdicts = Counter(row.verdict for row in rows)
    changes = [after.entry.delta - row.entry.delta for row, after in pairwise(rows)]
    faults = {
        "understated": verdicts["understated"],
        "undecided": verdicts["undecided"],
        "claim_above_limit": sum(row.entry.above_limit for row in rows),
        "delta_raised": sum(change > 0 for change in changes),
    }
    notes = {
        "overstated": verdicts["overstated"],
        "seeded": sum(row.entry.seeded for row in rows),
        "delta_lowered": sum(change < 0 for change in changes),
    }
    return _counted(faults), _counted(notes)


def _counted(findings: dict[str, int]) -> list[str]:
    return [f"{name}: {many}" for name, many in findings.items() if many]


class _Scope:
    """The reservations of a run or of the whole population, in order."""

    def __init__(self) -> None:
        self._uses: dict[Mechanism, tuple[list[int], list[int]]] = {}  # entries, and steps up to them

    def add(self, each: Reservation) -> None:
        """Take the next reservation."""
        entries, steps = self._uses.setdefault(each.mechanism, ([], []))
        entries.append(each.sequence)
        steps.append(each.steps + (steps[-1] if steps else 0))

    @property
    def only(self) -> Mechanism | None:
        """The mechanism, if there is but one: epsilon is then a matter of how many steps."""
        return next(iter(self._uses)) if len(self._uses) == 1 else None

    @property
    def end(self) -> int:
        """The last position."""
        return self.position(max(entries[-1] for entries, _ in self._uses.values()))

    def position(self, entry: int) -> int:
        """Return where an entry is on the curve: by its steps if there is one mechanism, else by its number."""
        if self.only is None:
            return entry
        entries, steps = self._uses[self.only]
        return steps[bisect_left(entries, entry)]

    def history(self, position: int) -> tuple[Steps, ...]:
        """Return the steps up to there, the mechanism used last at the end: the others' composition can be reused."""
        if self.only is not None:
            return ((self.only, position),)
        used = []
        for mechanism, (entries, steps) in self._uses.items():
            last = bisect_right(entries, position) - 1
            if last >= 0:
                used.append((entries[last], mechanism, steps[last]))
        return tuple((mechanism, steps) for _, mechanism, steps in sorted(used))


class _Curve:
    """Epsilon along a scope at one delta, priced where its claims need it."""

    def __init__(self, accountant: "_Accountant", scope: _Scope, delta: float) -> None:
        self.claims: set[Claim] = set()
        self.verdicts: dict[Claim, Verdict] = {}
        self._accountant, self._scope, self._delta = accountant, scope, delta
        self._known: list[int] = []  # positions, sorted
        self._epsilon: dict[int, float] = {}
        self._refined: set[int] = set()

    def last(self, scope: _Scope) -> float:
        """Return epsilon of a whole scope that this curve is of."""
        return self._priced(scope.end)

    def bracket(self, position: int) -> Bracket:
        """Return what is known of a position."""
        low, high = self._around(position)
        return Bracket(min(self._epsilon[low], self._epsilon[high]), self._epsilon[high])

    def settle(self) -> None:
        """Price until every claim is decided or no more prices are given."""
        pending = sorted(self.claims)
        self._walk(pending)
        while pending:
            groups: defaultdict[tuple[int, int], list[Claim]] = defaultdict(list)
            for claim in pending:
                verdict = self._verdict(*claim)
                if verdict is None:
                    groups[self._around(claim[0])].append(claim)
                else:
                    self.verdicts[claim] = verdict
            pending = [claim for group in groups.values() for claim in group]
            if self._is_worn():
                break
            for group in groups.values():
                self._priced(group[len(group) // 2][0])
        self.verdicts |= dict.fromkeys(pending, "undecided")

    def _walk(self, claims: list[Claim]) -> None:
        """Price as few positions as honest claims take: from the end, each time the next that the last leaves open."""
        if not claims:
            return
        self._priced(claims[0][0])
        price, lies = self._priced(claims[-1][0]), 0
        for position, claim in reversed(claims):
            if claim + _apart(claim) < price:
                price = self._priced(position)
                lies += claim + _apart(claim) < price
            if lies > _MOST_LIES or self._is_worn():
                return

    def _is_worn(self) -> bool:
        return len(self._known) + len(self._refined) > _MOST_PRICES

    def _verdict(self, position: int, claim: float) -> Verdict | None:
        low, high = self._around(position)
        ceiling = claim + _apart(claim)
        if ceiling < self._epsilon[low] and ceiling < self._finer(low):
            return "understated"
        if ceiling < self._epsilon[high]:
            return None
        if claim == math.inf:  # of a population that was never trained without privacy
            return "overstated" if math.isfinite(self._epsilon[high]) else "agrees"
        floor = claim - 3 * _apart(claim)
        if floor <= self._epsilon[low]:
            return "agrees"
        return "overstated" if floor > self._epsilon[high] else None

    def _around(self, position: int) -> tuple[int, int]:
        index = bisect_left(self._known, position)
        high = self._known[index]
        return (high, high) if high == position else (self._known[index - 1], high)

    def _priced(self, position: int) -> float:
        if position not in self._epsilon:
            self._epsilon[position] = self._accountant.epsilon(self._scope.history(position), self._delta)
            self._known.insert(bisect_left(self._known, position), position)
        return self._epsilon[position]

    def _finer(self, position: int) -> float:
        """Price again on finer meshes, until it changes little: nobody is accused because of a coarse one."""
        if position not in self._refined:
            self._refined.add(position)
            for halvings in (1, 2, 3):
                coarse, history = self._epsilon[position], self._scope.history(position)
                fine = self._accountant.epsilon(history, self._delta, halvings)
                self._epsilon[position] = min(coarse, fine)
                if not coarse - fine > _apart(fine) / 5:  # also where both are infinite
                    break
        return self._epsilon[position]


class _Place:
    """Where a reservation is on a curve."""

    def __init__(self, curve: _Curve, scope: _Scope, each: Reservation) -> None:
        self._curve, self._position = curve, scope.position(each.sequence)

    def claim(self, epsilon: float) -> None:
        """Have the curve decide on a claim."""
        self._curve.claims.add((self._position, epsilon))

    def verdict(self, epsilon: float) -> Verdict:
        """Return what was decided."""
        return self._curve.verdicts[self._position, epsilon]

    def bracket(self) -> Bracket:
        """Return what the curve knows of epsilon here."""
        return self._curve.bracket(self._position)


class _Accountant:
    """Upper bounds on epsilon by privacy loss distributions of dp-accounting."""

    def __init__(self) -> None:
        self._above: dict[tuple[Mechanism, float], int] = {}  # fewest steps known to be above epsilon 120
        self._below: Counter[tuple[Mechanism, float]] = Counter()  # most steps known not to be
        self._single = lru_cache(maxsize=512)(_single)
        self._repeated = lru_cache(maxsize=32)(self._repeated_uncached)
        self._composed = lru_cache(maxsize=64)(self._composed_uncached)

    def epsilon(self, history: tuple[Steps, ...], delta: float, halvings: int = 0) -> float:
        """Return the bound; infinity above 120."""
        try:
            composed = self._composed(history, _mesh(history, delta) / 2**halvings, delta)
            epsilon = math.inf if composed is None else float(composed.get_epsilon_for_delta(delta))
        except Exception:  # noqa: BLE001  (whatever went wrong with theirs, nothing of it is shown)
            epsilon = math.nan
        if math.isnan(epsilon):
            raise RecomputeError("accountant_failed")
        return epsilon if epsilon <= _MOST_EPSILON else math.inf

    def _composed_uncached(self, history: tuple[Steps, ...], mesh: float, delta: float) -> Any:
        """Return the privacy losses of all steps; None above epsilon 120, where they would take gigabytes."""
        last = self._repeated(*history[-1], mesh, delta)
        if last is None or len(history) == 1:
            return last
        before = self._composed(history[:-1], mesh, delta)
        if before is None:
            return None
        both = before.compose(last, _CUT * delta)
        return None if _is_above(both, delta) else both

    def _repeated_uncached(self, mechanism: Mechanism, steps: int, mesh: float, delta: float) -> Any:
        """Return the privacy losses of many steps; None if so many, or even fewer, are above epsilon 120."""
        key, single = (mechanism, delta), self._single(mechanism, mesh, delta)
        if _spread(((mechanism, steps),)) ** 2 > _MOST_EPSILON:
            tried = max(1, self._below[key])
            while tried < min(steps, self._above.get(key, steps)):
                if _is_above(single.self_compose(tried, _CUT * delta), delta):
                    self._above[key] = tried
                    break
                self._below[key] = tried
                tried *= 2
        if steps >= self._above.get(key, math.inf):
            return None
        return single.self_compose(steps, _CUT * delta)


def _single(mechanism: Mechanism, mesh: float, delta: float) -> Any:
    noise_multiplier, sampling_rate = mechanism
    return losses.from_gaussian_mechanism(
        noise_multiplier,
        pessimistic_estimate=True,
        value_discretization_interval=mesh,
        log_mass_truncation_bound=math.log(_CUT * delta / _MOST_STEPS),
        sampling_prob=sampling_rate,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def _is_above(composed: Any, delta: float) -> bool:
    return bool(composed.get_delta_for_epsilon(_MOST_EPSILON) > delta)


def _mesh(history: tuple[Steps, ...], delta: float) -> float:
    """Return a mesh for the losses, a power of two: bounds on it are about 0.003 + 0.3 % too high, never too low.

    Rounding to a mesh h adds h^2/6 to the variance of each step's loss. Were the losses normal with spread S, epsilon
    would be about z S + S^2/2, where z^2 = 2 log(1/delta). The estimate only decides how near the bound is.
    """
    spread, z = _spread(history), math.sqrt(-2 * math.log(delta))
    allowed = 0.003 * (1 + z * spread + spread**2 / 2)
    variance = allowed / (z / (2 * spread) + 0.5)
    wanted = math.sqrt(6 * variance / sum(steps for _, steps in history))
    return float(2.0 ** math.floor(math.log2(min(wanted, 2**-9))))


def _spread(history: Iterable[Steps]) -> float:
    """Return the standard deviation of the loss, about (Bu et al. 2020, arXiv:1911.11607, corollary 5.4)."""
    each = (steps * min(rate**2 * math.expm1(noise**-2), noise**-2) for (noise, rate), steps in history)
    return math.sqrt(sum(each))


def _apart(epsilon: float) -> float:
    return _APART + _APART_RELATIVE * epsilon


def _read(lines: Iterable[bytes]) -> _Events:
    """Read the entries that cost privacy; anything not understood raises."""
    bodies = (_body(line, number) for number, line in enumerate(lines))
    genesis, _ = next(bodies, ({}, ""))
    if not genesis:
        raise RecomputeError("ledger_empty")
    if genesis["kind"] != "genesis":
        raise RecomputeError("entry_out_of_order", 0)
    found: list[Reservation] = []
    non_private: set[str] = set()
    for number, (body, time) in enumerate(bodies, start=1):
        try:
            if body["kind"] == "reservation":
                found.append(_reservation(body, number, time, non_private))
            elif body["kind"] == "non_private":
                non_private.add(_matching(_NAME, body["binding"]["job_id"]))
        except (KeyError, TypeError, OverflowError):
            raise RecomputeError("entry_invalid", number) from None
    if sum(each.steps for each in found) > _MOST_STEPS:
        raise RecomputeError("steps_too_many")
    if len({each.mechanism for each in found}) > _MOST_MECHANISMS:
        raise RecomputeError("mechanisms_too_many")
    return _Events(genesis["site"], genesis["population"], tuple(found), frozenset(non_private))


def _body(line: bytes, number: int) -> tuple[dict[str, Any], str]:
    """Return an entry's body and time, its place and kind checked."""
    try:
        entry = json.loads(json.loads(line)["document"])
        body, kind, place = entry["body"], entry["body"]["kind"], entry["sequence"]
        if kind == "genesis":
            body = {name: _matching(_NAME, body[name]) for name in ("kind", "site", "population")}
        time, known = _matching(_TIME, entry["time"]), kind in _KINDS
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RecomputeError("line_unreadable", number) from None
    if not known:
        raise RecomputeError("entry_unknown", number)
    if type(place) is not int or place != number or (kind == "genesis" and number > 0):
        raise RecomputeError("entry_out_of_order", number)
    return body, time


def _reservation(body: dict[str, Any], number: int, time: str, non_private: set[str]) -> Reservation:
    dp, binding = body["dp"], body["binding"]
    if dp["mechanism"] != "poisson_subsampled_gaussian":
        raise RecomputeError("mechanism_unknown", number)
    noise_multiplier, sampling_rate = _finite(dp["noise_multiplier"]), _finite(dp["sampling_rate"])
    if not (_within(noise_multiplier, _NOISE) and _within(sampling_rate, _RATE)):
        raise RecomputeError("mechanism_out_of_range", number)
    steps, job, lifetime = _whole(body["steps"]), _matching(_NAME, binding["job_id"]), body["epsilon_lifetime"]
    run, private = _finite(body["epsilon_run"]), _finite(body["epsilon_private"])
    if steps < 1 or type(body["seeded"]) is not bool:
        raise TypeError
    return Reservation(
        sequence=number,
        time=time,
        job=job,
        round=_whole(binding["round"]),
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        steps=steps,
        delta=_finite(body["delta"]),
        seeded=body["seeded"],
        claimed_run=run,
        claimed_lifetime=math.inf if lifetime is None else _finite(lifetime),
        claimed_private=private,
        above_limit=run > _finite(body["limit_run"]) or private > _finite(body["limit_lifetime"]),
        exposed=bool(non_private),
        run_exposed=job in non_private,
    )


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _matching(pattern: re.Pattern[str], text: Any) -> str:
    if not pattern.fullmatch(text):
        raise TypeError
    return str(text)


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_infinity(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(each) for each in value]
    return None if value == math.inf else value


def as_text(found: Recomputation) -> str:
    """Return the table of entries and the totals, for people."""
    head = f"{'entry':>6} {'time':<20} {'run':<16} {'round':>5} {'noise':>7} {'rate':>8} {'steps':>6}"
    lines = [f"{head}  {'run: claim, events':<26} {'lifetime':<26} {'private':<26} verdict"]
    for row in found.rows:
        each = row.entry
        place = f"{each.sequence:>6} {each.time[:19]:<20} {each.job[:16]:<16} {each.round:>5}"
        step = f"{each.noise_multiplier:>7.4g} {each.sampling_rate:>8.4g} {each.steps:>6}"
        claims = (each.claimed_run, each.claimed_lifetime, each.claimed_private)
        pairs = zip(claims, (row.run, row.lifetime, row.private), strict=True)
        told = " ".join(f"{f'{claim:.3f}, {of.low:.3f} to {of.high:.3f}':<26}" for claim, of in pairs)
        marks = " seeded" * each.seeded + " above-limit" * each.above_limit
        lines.append(f"{place} {step}  {told} {row.verdict}{marks}")
    lines += [f"run {job}: epsilon {epsilon:.3f}" for job, epsilon in found.runs.items()]
    lines.append(f"site {found.site}, population {found.population}, delta {found.delta or math.nan:.3g}")
    lines.append(f"lifetime: epsilon {found.lifetime:.3f}; private training alone: {found.private:.3f}")
    lines += [f"note: {note}" for note in found.notes]
    lines.append("signatures were not checked here")
    lines.append("AGREES" if found.agrees else "DOES NOT AGREE")
    return "\n".join(lines)


def read_lines(path: Path) -> list[bytes]:
    """Return the whole lines of a ledger; a last one without its end was cut by a crash and never counted.

    Raises:
        RecomputeError: `ledger_unreadable`.
    """
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except OSError:
        raise RecomputeError("ledger_unreadable") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    parser = argparse.ArgumentParser(description="Recompute the epsilon of a MultiMix ledger from its events.")
    parser.add_argument("ledger", type=Path, help="ledger.jsonl; its signatures are not checked here")
    parser.add_argument("--delta", type=float, help="of the totals; the smallest claimed if not given")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        found = recompute(read_lines(options.ledger), delta=options.delta)
    except RecomputeError as error:
        sys.stderr.write(f"could not recompute: {error}\n")
        return UNREADABLE
    sys.stdout.write((json.dumps(found.as_dict(), allow_nan=False) if options.json else as_text(found)) + "\n")
    return AGREE if found.agrees else DISAGREE


if __name__ == "__main__":
    sys.exit(main())
