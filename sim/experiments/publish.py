"""An experiment's figures into the repository: the summary, the scores behind it, and tables of README and docs.

A table stands between two comments, `<!-- experiment NAME TABLE -->` and `<!-- end -->`, and is never written by hand.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from multimix.errors import InputError
from multimix.files import write_atomically
from sim.experiments import tables
from sim.experiments.archive import FOLDER, archive_cases, prune
from sim.experiments.summary import Summary

DOCUMENTS: Final = (Path("README.md"), Path("docs/experiments.md"))
_BLOCK: Final = re.compile(r"(<!-- experiment ([a-z]+) ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: Final[dict[str, Callable[[Summary], str]]] = {
    "origin": tables.origin,
    "short": lambda summary: tables.grid_table(summary, tables.README),
    "hospitals": tables.hospitals_short,
    "in-class": lambda summary: tables.grid_table(summary, tables.IN_CLASS, intervals=True),
    "in-mask": lambda summary: tables.grid_table(summary, tables.IN_MASK, intervals=True),
    "cross-class": lambda summary: tables.grid_table(summary, tables.CROSS_CLASS, intervals=True),
    "cross-mask": lambda summary: tables.grid_table(summary, tables.CROSS_MASK, intervals=True),
    "goals": tables.goal_table,
    "health": tables.health_table,
    "differences": tables.difference_table,
    "sites": tables.site_table,
    "scaling": tables.scaling_table,
    "privacy": tables.privacy_table,
    "convergence": tables.convergence_table,
}


def publish(summary: Summary, cases: Path, root: Path) -> None:
    """Write a summary, its finished cases and every table that is made of it into the checkout at `root`.

    Args:
        summary: Of an experiment.
        cases: The folder with a folder for each case.
        root: Cases that no published summary is made of are removed from it.

    Raises:
        InputError: `not_a_checkout`.
    """
    refuse_elsewhere(root)
    archive_cases({name: cases / name for name in summary.case_names}, root)
    text = summary.model_dump_json(indent=1) + "\n"
    write_atomically(root / FOLDER / f"{summary.experiment}.json", text.encode(), mode=0o644)
    prune([name for each in published_summaries(root).values() for name in each.case_names], root)
    for document in DOCUMENTS:
        old = (root / document).read_text()
        new = filled_in(old, {summary.experiment: summary})
        if new != old:
            write_atomically(root / document, new.encode(), mode=0o644)


def refuse_elsewhere(root: Path) -> None:
    """Raise InputError `not_a_checkout` where there is nothing to write into."""
    if not all((root / document).exists() for document in DOCUMENTS):
        raise InputError("not_a_checkout", f"{root} is no checkout of the repository: run this in one.")


def published_summaries(root: Path) -> dict[str, Summary]:
    """Return the summaries in a checkout, by experiment."""
    return {
        path.stem: Summary.model_validate_json(path.read_bytes()) for path in sorted((root / FOLDER).glob("*.json"))
    }


def filled_in(text: str, summaries: dict[str, Summary]) -> str:
    """Return a document with its tables made anew; those of other experiments stay as they are."""

    def table(block: re.Match[str]) -> str:
        begin, name, kind, end = block.groups()
        return f"{begin}{TABLES[kind](summaries[name])}\n{end}" if name in summaries else block[0]

    return _BLOCK.sub(table, text)
