"""The evidence for a data-protection officer: one self-contained HTML page that fetches nothing and runs no script.

sections.py and measured.py say what stands where, words.py in which words, chart.py draws, evidence.html.md lays out.
Whatever the ledger's texts contain is escaped.
"""

from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from multimix.audit.evidence.chart import budget_chart, epsilon_chart
from multimix.audit.evidence.figures import figures_of
from multimix.audit.evidence.records import Evidence
from multimix.audit.evidence.replays import executed, reproduced
from multimix.audit.evidence.sections import sections_of
from multimix.audit.evidence.verdict import many
from multimix.audit.evidence.words import VERDICTS, can_rely, cannot_rely, infinite
from multimix.privacy.statement_sections import Code, moment

_UNNAMED: Final = "not named"


def as_html(evidence: Evidence) -> str:
    """Return the page; the same evidence makes the same bytes."""
    word, meaning = VERDICTS[evidence.judgement.word]
    return _PAGE.render(
        evidence=evidence,
        site=evidence.verification.site or _UNNAMED,
        population=evidence.verification.population or _UNNAMED,
        word=word,
        meaning=meaning,
        infinite=infinite(evidence),
        looked_at=_looked_at(evidence),
        rely=can_rely(evidence),
        not_rely=cannot_rely(evidence),
        notices=evidence.statement.notices if evidence.statement else (),
        sections=sections_of(evidence),
        pictures={"epsilon": epsilon_chart(figures_of(evidence)), "budget": budget_chart(evidence)},
    )


def _looked_at(evidence: Evidence) -> tuple[str, ...]:
    seen, found = evidence.verification, evidence.recomputation
    told = [f"{many(seen.entries, 'entry', 'entries')} of the ledger: hashes, signatures, order, bookkeeping."]
    if found:
        told.append(f"Epsilon of {many(len(found.rows), 'reservation')}, computed again from the entries.")
    if seen.covered is not None:
        told.append(f"The coordinator's heads, which cover the first {many(seen.covered, 'entry', 'entries')}.")
    if evidence.empirical:
        told.append(f"The training software, in {many(len(evidence.empirical), 'audit')} with planted canaries.")
    if evidence.membership:
        told.append(f"The released model, in {many(len(evidence.membership), 'membership test')}.")
    if evidence.replays:
        rounds, same = len(executed(evidence)), len(reproduced(evidence))
        told.append(f"{many(rounds, 'round')}, executed again; {same} came out the same, within the tolerance.")
    return tuple(told)


def _cell(value: str) -> Markup:
    return Markup("<code>{}</code>").format(value) if isinstance(value, Code) and value else escape(value)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": moment, "cell": _cell}
    return environment


_PAGE: Final = _environment().get_template("evidence.html.md")
