"""How the site's commands speak: figures on standard output, words on standard error, nothing private on either."""

import errno
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from multimix.errors import InputError, ManifestError, Refused, SiteError

EXIT_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_INTERNAL: Final = 70
_OURS: Final = ("client", "multimix", "server", "sim")

err = Console(stderr=True)
out = Console()


@contextmanager
def discreet() -> Iterator[None]:
    """Turn errors into one paragraph and an exit code; text of other libraries never reaches the terminal."""
    try:
        yield
    except InputError as error:
        _say(error.reason, _paragraph(error))
        raise typer.Exit(EXIT_INPUT) from None
    except Refused as refusal:
        _say(refusal.reason, "The site's policy says no.")
        raise typer.Exit(EXIT_INPUT) from None
    except KeyboardInterrupt:
        err.print("interrupted: what was finished is kept, the next run goes on from there")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except (OSError, sqlite3.Error) as error:
        full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or "full" in str(error)
        remedy = "Free space on the disk" if full else "Check that this user may write in the site folder"
        _say("disk_full" if full else "cannot_write", f"{remedy}, and run it again ({_place(error)}).")
        raise typer.Exit(EXIT_INPUT) from None
    except Exception as error:  # noqa: BLE001  (its text may name a patient)
        _say("internal_error", f"{type(error).__name__} at {_place(error)}. Please report this line.")
        raise typer.Exit(EXIT_INTERNAL) from None


def _say(reason: str, paragraph: str) -> None:
    err.print(f"[bold red]cannot go on[/] ({reason})\n{escape(paragraph)}", soft_wrap=True, highlight=False)


def _paragraph(error: InputError) -> str:
    """Return the message if it is discreet, else only where in the manifest the mistake is."""
    if isinstance(error, SiteError):
        return str(error)
    if isinstance(error, ManifestError) and error.cell is not None:
        return f"Manifest, row {error.cell[0]}, column {error.cell[1]}. docs/data.md explains the columns."
    return "Check the files that the command names: that they are there, readable, and as docs/data.md describes."


def _place(error: BaseException) -> str:
    """Return file and line of our code where the error came through."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(Path(frame.filename))]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"


def _is_ours(file: Path) -> bool:
    return bool(set(file.parts) & set(_OURS)) and "site-packages" not in file.parts


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, str], None]]:
    """Show how many items are done; on a terminal as it goes, elsewhere not at all."""
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed} items"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, _outcome: progress.update(task, completed=done)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; numbers to the right."""
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(header):
        right = bool(rows) and all(row[index].isdigit() for row in rows)
        shown.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    out.print(shown)


def figures(values: Mapping[str, int | str]) -> None:
    """Print figures, one a line."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        out.print(f"{name:{width}}  {value}", highlight=False)
