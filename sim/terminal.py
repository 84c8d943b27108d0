"""What the commands of the laboratory have in common: how mistakes are told, and exit codes."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from multimix.errors import InputError, MultiMixError

EXIT_INPUT, EXIT_INTERRUPTED = 2, 130
err = Console(stderr=True)


@contextmanager
def explained(
    *, interrupted: str = "finished rounds are kept; run again with --resume and the same --out"
) -> Iterator[None]:
    """Turn what a person can mend into one paragraph and an exit code."""
    try:
        yield
    except InputError as error:
        _explain(f"[bold red]cannot go on[/] ({error.reason})", error)
        raise typer.Exit(EXIT_INPUT) from None
    except MultiMixError as error:
        _explain("[bold red]refused[/]", error)
        raise typer.Exit(EXIT_INPUT) from None
    except KeyboardInterrupt:
        err.print(f"interrupted: {interrupted}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _explain(title: str, error: MultiMixError) -> None:
    """Print the paragraph; brackets in it (names, paths) are text, not styles."""
    err.print(f"{title}\n{escape(str(error))}", soft_wrap=True, highlight=False)
