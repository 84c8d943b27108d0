"""The DP statement for people and machines: HTML, Markdown and JSON of the same record.

multimix/privacy/statement_sections.py says what stands where, statement.html.md and statement.md lay it out. The
HTML fetches nothing (a content security policy forbids it), runs no script and prints on white paper; whatever the
ledger's texts contain is escaped in both.
"""

import re
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from multimix.privacy.statement_chart import chart_of
from multimix.privacy.statement_records import Statement
from multimix.privacy.statement_sections import Code, figures_of, moment, sections_of, subject

_MARKDOWN: Final = re.compile(r"([\\`*_\[\]<>|#&~])")


def as_json(statement: Statement) -> str:
    """Return the record itself; `Statement.model_validate_json` reads it back."""
    return statement.model_dump_json(indent=2) + "\n"


def as_markdown(statement: Statement) -> str:
    """Return the page as Markdown, without the picture."""
    return _MARKDOWN_PAGE.render(_content(statement))


def as_html(statement: Statement) -> str:
    """Return the page as one self-contained HTML file."""
    return _HTML_PAGE.render(_content(statement), chart=chart_of(statement))


def _content(statement: Statement) -> dict[str, object]:
    return {
        "statement": statement,
        "subject": subject(statement),
        "figures": figures_of(statement),
        "sections": sections_of(statement),
    }


def _in_html(value: str) -> Markup:
    return Markup("<code>{}</code>").format(value) if isinstance(value, Code) else escape(value)


def _in_markdown(value: object) -> str:
    """Escape what Markdown or a table in it would take for its own; hashes and keys stand in code spans."""
    if isinstance(value, Code):
        return f"`{value}`"
    return _MARKDOWN.sub(r"\\\1", " ".join(str(value).split()))


def _environment(*, markdown: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=not markdown,  # noqa: S701  (`finalize` escapes for Markdown)
        finalize=_in_markdown if markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": moment, "value": _in_html}
    return environment


_HTML_PAGE = _environment(markdown=False).get_template("statement.html.md")
_MARKDOWN_PAGE = _environment(markdown=True).get_template("statement.md")
