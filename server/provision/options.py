"""Options that the coordinator's commands share, and how they speak of what a person can mend."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from multimix.errors import MultiMixError

EXIT_INPUT: Final = 2
HERE: Final = Path("federation")
FederationOption = Annotated[
    Path,
    typer.Option("--federation", "-f", envvar="MULTIMIX_FEDERATION", help="The federation's folder, made by `init`."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]

err = Console(stderr=True)
out = Console()


@contextmanager
def explained() -> Iterator[None]:
    """Turn what a person can mend into one paragraph and exit code 2."""
    try:
        yield
    except MultiMixError as error:
        _say(getattr(error, "reason", "refused"), str(error))
    except OSError as error:
        _say("folder_unusable", f"The disk says: {error.strerror}. Check the folder's owner and mode, and free space.")


@contextmanager
def at_home() -> Iterator[None]:
    """Leave the machine's proxy out: the server is on this machine."""
    before = os.environ.get("NO_PROXY")
    os.environ["NO_PROXY"] = "*"
    try:
        yield
    finally:
        os.environ.pop("NO_PROXY") if before is None else os.environ.update(NO_PROXY=before)


def say(text: str, *, style: str | None = None) -> None:
    """Write words for the person on standard error, as they are."""
    err.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def show(text: str) -> None:
    """Write a line on standard output, as it is, never cut: keys and commands are copied from here."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _say(reason: str, paragraph: str) -> None:
    err.print(f"[bold red]cannot go on[/] ({reason})\n{escape(paragraph)}", soft_wrap=True, highlight=False)
    raise typer.Exit(EXIT_INPUT) from None
