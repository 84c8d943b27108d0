"""What stands where on the evidence page: headings, facts and tables of plain text."""

import math
from collections.abc import Iterable, Sequence

from multimix.audit.evidence import measured, words
from multimix.audit.evidence.figures import Figure, figures_of
from multimix.audit.evidence.records import Evidence, RunFacts
from multimix.audit.evidence.tables import DASH, Section, bounded, priced, table
from multimix.audit.recompute import Bracket, Recomputation, Row
from multimix.privacy.entries import Entry, Evaluation, Officer, Refusal, Tuning
from multimix.privacy.statement_sections import Code, moment, upwards


def sections_of(evidence: Evidence) -> tuple[Section, ...]:
    """Return the page below the verdict and what can be relied on."""
    return (
        _epsilons(evidence),
        Section("The budget over time", picture="budget"),
        _verification(evidence),
        _recomputation(evidence),
        *measured.sections_of(evidence),
        _events(evidence),
        _configuration(evidence),
        _software(evidence),
        Section("What an audit cannot show", points=words.CANNOT_SHOW),
    )


def _epsilons(evidence: Evidence) -> Section:
    header = ("Span", "Claimed", "Recomputed", "Lower bound", "Ceiling", "Limit", "Delta", "Worst case")
    figures = figures_of(evidence)
    rows = [_epsilon_row(figure) for figure in figures]
    above = [number for number, each in enumerate(figures) if _above(each)]
    texts = (
        words.CLAIM_AND_BOUND,
        words.CEILING,
        "The lifetime is composed over all runs; it is not the sum of theirs.",
    )
    return Section(
        "Epsilon: claimed, recomputed, bounded from below", texts, "epsilon", tables=(table(header, rows, bad=above),)
    )


def _above(figure: Figure) -> bool:
    return figure.recomputed is not None and figure.recomputed > figure.claimed * 1.01 + 0.02


def _epsilon_row(figure: Figure) -> tuple[str, ...]:
    part = again = ""
    if math.isinf(figure.claimed) and figure.recomputed_private is not None:
        part, again = (f" (with noise: {priced(each)})" for each in (figure.claimed_private, figure.recomputed_private))
    return (
        figure.name,
        priced(figure.claimed) + part,
        priced(figure.recomputed) + again,
        bounded(max(figure.bounds)) if figure.bounds else DASH,
        bounded(max(figure.ceilings)) if figure.ceilings else DASH,
        f"{figure.limit:g}" if figure.limit is not None else DASH,
        upwards(figure.delta) if figure.delta is not None else DASH,
        "infinity: known noise" if figure.seeded else priced(figure.worst),
    )


def _verification(evidence: Evidence) -> Section:
    seen = evidence.verification
    counts = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in sorted(seen.counts.items()))
    facts = (
        ("Site, patient population", (f"{seen.site or 'not named'}, {seen.population or 'not named'}",)),
        ("Ledger's public key, Ed25519", (Code(seen.public_key),)),
        ("Ledger head", (f"{seen.entries:,} entries", Code(seen.head.sha256 if seen.head else "not readable"))),
        ("Ledger file, SHA-256", (Code(evidence.ledger_sha256),)),
        ("Entries", (counts or "none",)),
        ("Cut or written anew", (seen.truncation,)),
        ("Coordinator's key", (Code(evidence.keys.coordinator or "not given"),)),
        ("Officer's key", (Code(evidence.keys.officer or "not given"),)),
    )
    findings = (*seen.violations, *seen.notices)
    rows = [
        (finding.severity, finding.reason.replace("_", " "),
         "the ledger" if finding.entry is None else f"{finding.entry:,}", finding.detail) for finding in findings
    ]  # fmt: skip
    found = table(("Kind", "Finding", "Entry", "Detail"), rows, bad=range(len(seen.violations)))
    text = "Every hash, every signature and the rules by which the trainer writes were checked, entry by entry."
    return Section("The ledger, verified", (text,), facts=facts, tables=(found,))


def _recomputation(evidence: Evidence) -> Section:
    found = evidence.recomputation
    if found is None:
        error = (evidence.recomputation_error or "").replace("_", " ")
        return Section("Epsilon, recomputed entry by entry", (f"It could not be computed: {error}.",))
    texts = (
        words.EACH_CLAIM,
        _total(found),
        *([f"Notes: {'; '.join(note.replace('_', ' ') for note in found.notes)}."] if found.notes else []),
    )
    header = (
        "Entry",
        "When",
        "Run, round",
        "Noise",
        "Rate",
        "Steps",
        "Run: claim",
        "is",
        "Life: claim",
        "is",
        "Verdict",
    )
    bad = [
        n for n, row in enumerate(found.rows) if row.verdict in ("understated", "undecided") or row.entry.above_limit
    ]
    rows = table(header, [_entry_row(row) for row in found.rows], bad=bad, title="Reservations")
    return Section("Epsilon, recomputed entry by entry", texts, tables=(rows,))


def _total(found: Recomputation) -> str:
    delta = f" at delta {found.delta:.3g}" if found.delta is not None else ""
    verdict = "It agrees with the claims." if found.agrees else "It does NOT agree with the claims."
    return f"In total{delta}: lifetime {priced(found.lifetime)}, its part with noise {priced(found.private)}. {verdict}"


def _entry_row(row: Row) -> tuple[str, ...]:
    entry = row.entry
    marks = ", above its limit" * entry.above_limit + ", known noise" * entry.seeded
    return (
        f"{entry.sequence:,}", entry.time[:16].replace("T", " "), f"{entry.job}, {entry.round}",
        f"{entry.noise_multiplier:.4g}", f"{entry.sampling_rate:.4g}", f"{entry.steps:,}", priced(entry.claimed_run),
        _between(row.run), priced(entry.claimed_lifetime), _between(row.lifetime), row.verdict + marks,
    )  # fmt: skip


def _between(bracket: Bracket) -> str:
    low, high = priced(bracket.low), priced(bracket.high)
    return high if low == high else f"{low} to {high}"


def _events(evidence: Evidence) -> Section:
    refused = [
        (moment(entry.time), entry.body.job_id, str(entry.body.round), entry.body.reason)
        for entry in evidence.refusals if isinstance(entry.body, Refusal)
    ]  # fmt: skip
    shown = [
        (moment(entry.time), entry.body.binding.job_id, str(entry.body.binding.round), entry.body.split,
         str(entry.body.minimum_cohort)) for entry in evidence.evaluations if isinstance(entry.body, Evaluation)
    ]  # fmt: skip
    return Section(
        "Refusals, decisions, evaluations",
        tables=(
            table(("When", "Run", "Round", "Reason"), refused, title="Refused by the site"),
            table(("When", "Decision", "Text", "Officer's key"), _decisions(evidence.officer), title="By the officer"),
            table(("When", "Run", "Round", "Held back for", "Smallest group"), shown, title="Exact figures released"),
            table(("When", "Runs", "On", "Text"), _searches(evidence.tuning), title="Tuning declared"),
        ),
    )


def _decisions(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    bodies = [(moment(entry.time), entry.body) for entry in entries]
    return [
        (when, body.action.replace("_", " "), body.text, Code(body.officer_key))
        for when, body in bodies
        if isinstance(body, Officer)
    ]


def _searches(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    bodies = [(moment(entry.time), entry.body) for entry in entries]
    return [
        (when, str(body.runs), "these patients, with noise" if body.private else "other data", body.text)
        for when, body in bodies
        if isinstance(body, Tuning)
    ]


def _configuration(evidence: Evidence) -> Section:
    header = (
        "Run",
        "Rounds",
        "Steps",
        "Noise",
        "Clip norm",
        "Rate",
        "N",
        "Images a patient",
        "Delta",
        "Limits",
        "Trains",
    )
    rows = [row for run in evidence.runs for row in _run_rows(run)]
    hashes = [(run.job_id, *(Code(_listed(values)) for values in (run.method_sha256, run.data_fingerprints, run.code)))
              for run in evidence.runs]  # fmt: skip
    columns = ("Run", "Method, SHA-256", "Images, generation", "Software of the trainer")
    policy = [(name.replace("_", " "), _value(value)) for name, value in sorted((evidence.policy or {}).items())]
    hashed = (("Policy, SHA-256", (Code(evidence.policy_sha256 or "the policy was not given"),)),)
    tables = (table(header, rows), table(columns, hashes), table(("Policy of the site", "Value"), policy))
    return Section("Configuration", facts=hashed, tables=tables)


def _run_rows(run: RunFacts) -> Iterable[tuple[str, ...]]:
    limits = f"{_listed(run.limit_run)} / {_listed(run.limit_lifetime)}"
    for dp in run.dp:
        yield (
            run.job_id, f"{run.rounds} of {dp.rounds}", f"{run.steps:,}", f"{dp.noise_multiplier:.6g}",
            f"{dp.clip_norm:.6g}", f"{dp.sampling_rate:.6g}", f"{dp.declared_patients:,}", str(dp.images_per_patient),
            _listed(run.delta), limits, ", ".join(dp.modules),
        )  # fmt: skip
    if run.non_private_trainings:
        yield (run.job_id, str(run.rounds), f"{run.non_private_steps:,}", "none", *[DASH] * 6, "without noise")


def _software(evidence: Evidence) -> Section:
    named = dict.fromkeys(code for run in evidence.runs for code in run.code)
    facts = (
        ("Software of the auditor", tuple(f"{name} {version}" for name, version in sorted(evidence.software.items()))),
        ("Software that the ledger names", tuple(Code(code) for code in named) or ("none",)),
        ("Auditor's public key, Ed25519", (Code(evidence.keys.auditor),)),
    )
    return Section("Software and keys", facts=facts)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values) or DASH


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "any" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
