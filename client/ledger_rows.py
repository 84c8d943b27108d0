"""Entries of a ledger as rows of a table, for a person at a terminal."""

from datetime import UTC
from typing import Final

from multimix.privacy.entries import (
    Commit,
    Entry,
    Evaluation,
    Genesis,
    NonPrivate,
    Officer,
    Refusal,
    Reservation,
    Tuning,
)
from multimix.privacy.statement_sections import upwards

HEADER: Final = ("entry", "time, UTC", "kind", "run", "round", "epsilon after", "what")


def row_of(entry: Entry) -> tuple[str, ...]:
    """Return number, time, kind, run, round, the lifetime's epsilon as written with it, and what it is about."""
    body = entry.body
    job, number = _order(entry)
    kind = body.kind.replace("_", " ")
    return (
        str(entry.sequence),
        f"{entry.time.astimezone(UTC):%Y-%m-%d %H:%M}",
        kind,
        job,
        number,
        _epsilon(entry),
        _printable(_what(entry)),
    )


def _order(entry: Entry) -> tuple[str, str]:
    body = entry.body
    if isinstance(body, Refusal):
        return body.job_id, str(body.round)
    if isinstance(body, Reservation | NonPrivate | Evaluation):
        return body.binding.job_id, str(body.binding.round)
    return "", ""


def _epsilon(entry: Entry) -> str:
    body = entry.body
    if isinstance(body, NonPrivate):
        return "infinity"
    if not isinstance(body, Reservation):
        return ""
    return "infinity" if body.seeded or body.epsilon_lifetime is None else upwards(body.epsilon_lifetime)


def _what(entry: Entry) -> str:
    match entry.body:
        case Genesis() as body:
            text = f"population {body.population} of {body.site}"
        case Reservation() as body:
            known = ", known noise: a simulation" if body.seeded else ""
            text = f"{body.steps} steps, noise {body.dp.noise_multiplier:g}, rate {body.dp.sampling_rate:g}{known}"
        case Commit() as body:
            text = f"answer to entry {body.reservation}"
        case NonPrivate() as body:
            text = f"{body.steps} steps without privacy"
        case Evaluation() as body:
            text = f"exact figures of {body.split} patients left"
        case Refusal() as body:
            text = body.reason
        case Officer() as body:
            text = f"{body.action.replace('_', ' ')}: {body.text}"
        case Tuning() as body:
            text = f"{body.runs} runs on {'these patients' if body.private else 'other data'}: {body.text}"
    return text


def _printable(text: str) -> str:
    return "".join(filter(str.isprintable, text))  # an entry's text may hold what steers a terminal
