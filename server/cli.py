"""`multimix-server`: the coordinator's commands; see `multimix-server --help`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from multimix.errors import InputError, MultiMixError
from multimix.files import write_atomically
from server import run_cli
from server.heads import FILE, HeadRecord, read_history
from server.provision import cli as provision_cli
from server.units_cli import units

if TYPE_CHECKING:
    from multimix.privacy.central import SiteLevel

EXIT_INPUT: Final = 2
PAPER_PARAMETERS: Final = 1_965_173  # of the network of Haque et al. 2021
_COMPARED: Final = (3, 10, 100, 1000)  # sites

app = typer.Typer(
    help="Look at what the coordinator of a federation knows and would do. Research only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_err = Console(stderr=True)
_out = Console()

provision_cli.register(app)
run_cli.register(app)
app.command()(units)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def heads(
    site: Annotated[str, typer.Argument(help="The site's name in the federation.")],
    file: Annotated[
        Path, typer.Option(help=f"The server's record of heads; {FILE} in the current folder unless given.")
    ] = Path(FILE),
    export: Annotated[Path | None, typer.Option(help="Also write all of it to this file, as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show every head of a site's privacy ledger that this server countersigned, for the site's privacy officer.

    Exit codes: 0 shown, 2 none was countersigned, or the file is missing or damaged.
    """
    with _explained():
        records = read_history(file, site)
        if not records:
            raise InputError("heads_unknown_site", f"{file} holds no countersignature for site {site}.")
        document = json.dumps({"site": site, "countersigned": [_exported(record) for record in records]}, indent=1)
        if export:
            _write(export, document)
        typer.echo(document) if as_json else _show(site, records)


@app.command()
def noise(
    sites: Annotated[int, typer.Option(min=1, help="Sites of the plan.")],
    epsilon: Annotated[float, typer.Option(help="What the whole run shall cost each site at most.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the run.")],
    parameters: Annotated[int, typer.Option(min=1, help="Parameters that are trained.")] = PAPER_PARAMETERS,
    delta: Annotated[float | None, typer.Option(help="1 / (10 x sites) unless given.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what site-level differential privacy would cost a model, before a run is started. The unit is a site.

    Exit codes: 0 printed, 2 the numbers cannot be met.
    """
    from multimix.privacy.central import calibrate_site_level, explanation, usual_delta  # noqa: PLC0415  (numpy)

    def level(count: int) -> "SiteLevel":
        chosen = usual_delta(count) if delta is None else delta
        return calibrate_site_level(target_epsilon=epsilon, delta=chosen, rounds=rounds, sites=count, clip_norm=1.0)

    with _explained():
        text = explanation(level(sites), parameters)
        rows = [_noise_of(level(count), parameters) for count in sorted({*_COMPARED, sites})]
        if as_json:
            typer.echo(json.dumps({"explanation": text, "sites": rows}, indent=1))
            return
        _out.print(text, highlight=False, soft_wrap=True, markup=False)
        _out.print("C is the largest norm of one site's whole update (dp-clip-norm); here it is 1.", style="dim")
        header = ("sites", "epsilon", "delta", "noise multiplier", "noise / largest step", "hollow")
        _out.print(_table(header, [[_shown(cell) for cell in row.values()] for row in rows]))


def _noise_of(settings: "SiteLevel", parameters: int) -> dict[str, Any]:
    from multimix.privacy.central import hollow, noise_to_signal  # noqa: PLC0415  (numpy)

    return {
        "sites": settings.sites,
        "epsilon": settings.epsilon,
        "delta": settings.delta,
        "noise_multiplier": settings.noise_multiplier,
        "noise_to_signal": noise_to_signal(settings, parameters),
        "hollow": hollow(settings, parameters),
    }


def _shown(cell: float) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.4g}"


def _exported(record: HeadRecord) -> dict[str, Any]:
    """Return what the server has signed, with when and why; it can be verified with the server's public key."""
    return record.model_dump(mode="json", exclude={"digests"})


def _show(site: str, records: Sequence[HeadRecord]) -> None:
    newest = records[-1].countersignature
    _out.print(f"site        {site}\nledger key  {newest.public_key}", highlight=False, markup=False, soft_wrap=True)
    for record in records:
        given = record.countersignature
        round_of = f"job {record.job_id} round {record.round}"
        line = f"{record.time:%Y-%m-%d %H:%M:%S %Z}  {round_of}: {given.head.length} entries"
        _out.print(line, highlight=False, markup=False, soft_wrap=True)
        details = f"    head       {given.head.sha256}\n    signature  {given.signature}"
        _out.print(details, highlight=False, markup=False, soft_wrap=True, style="dim")


def _write(path: Path, document: str) -> None:
    try:
        write_atomically(path, (document + "\n").encode(), mode=0o644)
    except OSError as error:
        raise InputError("unwritable-file", f"Cannot write {path}: {error.strerror}. Choose another file.") from None


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for name in header:
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(*row)
    return shown


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what a person can mend into one paragraph and an exit code."""
    try:
        yield
    except MultiMixError as error:
        reason = getattr(error, "reason", "refused")
        _err.print(f"[bold red]cannot go on[/] ({reason})\n{escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(EXIT_INPUT) from None
