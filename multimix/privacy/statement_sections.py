"""What stands where in a DP statement: headings, facts and tables, the same for HTML and Markdown."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Context
from typing import Final

from multimix.privacy.entries import Entry, Evaluation, Officer, Refusal, Tuning
from multimix.privacy.statement_records import Account, Epsilon, Statement, Use

_UPWARDS: Final = Context(prec=4, rounding=ROUND_CEILING)
_MOST_VALUES: Final = 3
_MOST_ROWS: Final = 30


class Code(str):
    """A hash or key, written in type of one width."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in the order of the fields."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    facts: tuple[tuple[str, tuple[str, ...]], ...] = ()  # of a term: the values that it has
    tables: tuple[Table, ...] = ()
    points: tuple[str, ...] = ()
    picture: bool = False


def subject(statement: Statement) -> str:
    """Return what the statement is about, in a few words."""
    return "lifetime" if statement.job_id is None else f"run {statement.job_id}"


def figures_of(statement: Statement) -> tuple[tuple[str, str], ...]:
    """Return the figures that are read first, with their names."""
    lifetime, run = statement.lifetime, statement.run
    of_run = [("Epsilon, this run", upwards(run.epsilon)), ("Limit, a run", f"{run.limit:g}")] if run else []
    part = [("Its part with DP", upwards(lifetime.epsilon_private))] if lifetime.epsilon == "infinity" else []
    return (
        *of_run,
        ("Epsilon, lifetime", upwards(lifetime.epsilon)),
        *part,
        ("Limit, lifetime", f"{lifetime.limit:g}"),
        ("Delta", upwards(statement.delta)),
        ("Rounds left", _forecast(statement)),
    )


def sections_of(statement: Statement) -> tuple[Section, ...]:
    """Return the whole page."""
    return (
        _guarantee(statement),
        _spent(statement),
        _data(statement),
        _mechanism(statement),
        _accounting(statement),
        Section("What is released", points=statement.released),
        Section("What is not covered", points=statement.not_covered),
        _events(statement),
        _provenance(statement),
        _ledger(statement),
    )


def upwards(value: Epsilon) -> str:
    """Write a price with four digits, never below what it is; infinity as the word."""
    if value == "infinity":
        return value
    return f"{float(_UPWARDS.create_decimal(f'{value:.12g}')):.4g}"  # twelve digits: past them is rounding


def moment(when: datetime) -> str:
    """Write a time in UTC."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _day(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d}"


def _forecast(statement: Statement) -> str:
    return "not known" if statement.forecast_rounds is None else str(statement.forecast_rounds)


def _guarantee(statement: Statement) -> Section:
    account = statement.run or statement.lifetime
    span = "All training of this population at this site" if statement.run is None else "This run at this site"
    if account.epsilon == "infinity":
        claim = (
            f"{span} has epsilon = infinity: it is not differentially private. "
            f"Its part with noise alone would be ({upwards(account.epsilon_private)}, {upwards(account.delta)})-"
            "differentially private, were all of that noise secret."
        )
    else:
        claim = (
            f"{span} is (epsilon = {upwards(account.epsilon)}, delta = {upwards(account.delta)})-"
            "differentially private for each patient."
        )
    facts = (
        ("Setting", statement.terms.setting),
        ("Unit of privacy", statement.terms.unit),
        ("Adjacency", statement.terms.adjacency),
        ("Trust model", statement.terms.trust_model),
        ("Delta", f"{upwards(statement.delta)}. {statement.delta_reason}"),
        ("Data accesses covered", statement.terms.accesses),
        ("Output covered", statement.terms.output),
    )
    return Section("The guarantee", (claim,), _single(facts))


def _spent(statement: Statement) -> Section:
    spans = [(f"Run {statement.job_id}", statement.run)] if statement.run else []
    totals = [_account_row(name, account) for name, account in [*spans, ("Lifetime", statement.lifetime)]]
    header = ("Span", "Epsilon", "Part with DP", "Limit", "Delta", "Steps", "Reservations", "Without DP")
    of_runs = [
        (
            run.job_id,
            upwards(run.account.epsilon),
            upwards(run.account.epsilon_private),
            f"{run.account.limit:g}",
            str(run.rounds),
            str(run.account.steps + run.account.non_private_steps),
            f"{_day(run.first)} to {_day(run.last)}",
        )
        for run in statement.runs
    ]
    runs = Table(("Run", "Epsilon", "Part with DP", "Limit", "Rounds", "Steps", "When"), _newest(of_runs))
    forecast = f"{_forecast(statement)}; of the kind used last, before the lifetime's limit is reached"
    return Section(
        "What was spent, and what is left",
        (
            statement.terms.reservations,
            "The epsilon of the lifetime is composed over all runs; it is not the sum of theirs.",
        ),
        _single([("Forecast: rounds that still fit", forecast)]),
        (Table(header, tuple(totals)), runs),
        picture=True,
    )


def _account_row(name: str, account: Account) -> tuple[str, ...]:
    uncommitted = f" ({account.uncommitted} uncommitted, counted as spent)" if account.uncommitted else ""
    seeded = f" ({account.seeded} with known noise)" if account.seeded else ""
    return (
        name,
        upwards(account.epsilon),
        upwards(account.epsilon_private),
        f"{account.limit:g}",
        upwards(account.delta),
        str(account.steps),
        f"{account.reservations}{uncommitted}{seeded}",
        f"{account.non_private_trainings} ({account.non_private_steps} steps)",
    )


def _data(statement: Statement) -> Section:
    facts = (
        ("Site", (statement.site,)),
        ("Patient population", (statement.population,)),
        ("Data fingerprint", _first(statement.provenance.data_fingerprints)),
        ("Declared patients, N", (str(statement.declared_patients),)),
        ("Most images of a patient in a step", (str(statement.images_per_patient),)),
    )
    return Section("The data", facts=facts)


def _mechanism(statement: Statement) -> Section:
    header = ("Noise multiplier, sigma", "Clip norm, C", "Sampling rate, q", "N", "Patients a step, q N",
              "Images a patient", "Steps", "Modules")  # fmt: skip
    table = Table(header, _newest([_use_row(use) for use in statement.uses]))
    facts = (
        ("Mechanism", statement.terms.mechanism),
        ("Sampler", statement.terms.sampler),
        ("Source of randomness", "; ".join(statement.provenance.random_generators) or "not used"),
    )
    return Section("The mechanism", facts=_single(facts), tables=(table,))


def _use_row(use: Use) -> tuple[str, ...]:
    return (
        f"{use.noise_multiplier:.6g}",
        f"{use.clip_norm:.6g}",
        f"{use.sampling_rate:.6g}",
        str(use.declared_patients),
        f"{use.sampling_rate * use.declared_patients:.4g}",
        str(use.images_per_patient),
        str(use.steps),
        f"{', '.join(use.modules)} ({_PARAMETERS[use.parameters]})",
    )


_PARAMETERS: Final = {"all": "all parameters", "affine": "normalisation and output layers only"}


def _accounting(statement: Statement) -> Section:
    spans = [(f"Run {statement.job_id}", statement.run)] if statement.run else []
    rows = [
        (name, upwards(account.prv), upwards(account.pld), f"{account.difference:.2g}")
        for name, account in [*spans, ("Lifetime", statement.lifetime)]
    ]
    versions = tuple(f"{name} {version}" for name, version in statement.accountant_versions.items())
    table = Table(("Part with DP", "Epsilon by Opacus PRV", "Epsilon by Google PLD", "Difference"), tuple(rows))
    return Section("Accounting", (statement.terms.accounting,), (("Accountants", versions),), (table,))


def _events(statement: Statement) -> Section:
    refusals, evaluations = Counter(_refusals(statement.refusals)), Counter(_evaluations(statement.evaluations))
    tuning = [
        (moment(entry.time), str(entry.body.runs), "these patients, with DP" if entry.body.private else "other data",
         entry.body.text) for entry in statement.tuning if isinstance(entry.body, Tuning)
    ]  # fmt: skip
    officer = [
        (moment(entry.time), entry.body.action.replace("_", " "), entry.body.text, Code(entry.body.officer_key))
        for entry in statement.officer
        if isinstance(entry.body, Officer)
    ]
    return Section(
        "Refusals, evaluations, tuning, decisions",
        tables=(
            Table(("Refused run", "Reason", "Times"), _counted(refusals)),
            Table(("Evaluated in run", "Held-back patients", "Smallest cohort", "Releases"), _counted(evaluations)),
            Table(("Tuning declared", "Runs", "On", "Text"), _newest(tuning)),
            Table(("Officer's entry", "Decision", "Text", "Officer's key"), _newest(officer)),
        ),
    )


def _refusals(entries: Iterable[Entry]) -> Iterable[tuple[str, ...]]:
    return ((entry.body.job_id, entry.body.reason) for entry in entries if isinstance(entry.body, Refusal))


def _evaluations(entries: Iterable[Entry]) -> Iterable[tuple[str, ...]]:
    bodies = (entry.body for entry in entries if isinstance(entry.body, Evaluation))
    return ((body.binding.job_id, body.split, str(body.minimum_cohort)) for body in bodies)


def _provenance(statement: Statement) -> Section:
    source = statement.provenance
    facts = (
        ("Code", _first(source.code)),
        ("Method configuration, SHA-256", _first(source.method_sha256, code=True)),
        ("Round plans, SHA-256", _first(source.plan_sha256, code=True)),
    )
    return Section("Code and configuration", facts=facts)


def _ledger(statement: Statement) -> Section:
    ledger = statement.ledger
    countersignature = ledger.countersignature
    seen: tuple[str, ...] = ("none: the coordinator has not seen this ledger",)
    if countersignature is not None:
        checked = "checked" if ledger.coordinator_key else "not checked, the coordinator's key was not given"
        since = f"; {ledger.entries_since} entries were written since" if ledger.entries_since else ""
        seen = (
            f"of {countersignature.head.length} entries{since}; {checked}",
            Code(countersignature.head.sha256),
            Code(countersignature.signature),
        )
    facts = (
        ("Ledger's public key, Ed25519", (Code(ledger.public_key),)),
        ("Ledger head", (f"{ledger.head.length} entries", Code(ledger.head.sha256))),
        ("Countersignature by the coordinator", seen),
        (
            "Coordinator's public key, Ed25519",
            (Code(ledger.coordinator_key) if ledger.coordinator_key else "not given",),
        ),
    )
    return Section("The ledger", facts=facts)


def _single(facts: Iterable[tuple[str, str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((term, (value,)) for term, value in facts)


def _first(values: Sequence[str], *, code: bool = False) -> tuple[str, ...]:
    shown = tuple(Code(value) if code else value for value in values[-_MOST_VALUES:])
    left = len(values) - len(shown)
    return (*shown, *([f"and {left} earlier ones, in the JSON"] if left else [])) or ("none",)


def _newest(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Return the last rows, below a word on those left out."""
    left = len(rows) - _MOST_ROWS
    return tuple(rows) if left <= 0 else ((f"{left} earlier, in the JSON", *[""] * (len(rows[0]) - 1)), *rows[left:])


def _counted(counts: Counter[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    return _newest([(*row, str(count)) for row, count in counts.items()])
