"""`multimix-audit`: for a privacy officer or an outside auditor; see `multimix-audit --help`."""

import json
from typing import Annotated

import typer

from client.audit import report_cli, site_cli
from client.audit.inputs import (
    EXIT_FOUND,
    CoordinatorOption,
    HeadsOption,
    KeyOption,
    LedgerArgument,
    OfficerOption,
    explained_audit,
    key_text,
    optional_key,
    read_heads,
    read_ledger_bytes,
)
from client.audit.tables import MOST_ROWS, show_recomputation, show_verification
from client.console import discreet
from client.intake.cli import JsonOption
from client.remedies import explained
from multimix.audit.recompute import RecomputeError, recompute
from multimix.audit.verification.verify import verify_ledger
from multimix.errors import SiteError

app = typer.Typer(
    help="Verify what a site claims of its patients' privacy, without trusting who trained there. docs/audit.md "
    "explains what each command shows, and what none of them can.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def verify(
    ledger: LedgerArgument,
    key: KeyOption,
    heads: HeadsOption = None,
    coordinator: CoordinatorOption = None,
    officer: OfficerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a ledger: every byte, place, signature and rule, and each head that the server countersigned.

    LEDGER is its folder, or a copy of ledger.jsonl.

    Without --heads nobody can tell whether the key's owner cut the ledger or wrote it anew, and the answer says so.

    Exit codes: 0 no violation, 3 violations, 2 the files cannot be read.
    """
    with discreet(), explained(), explained_audit():
        found = verify_ledger(
            read_ledger_bytes(ledger),
            key=key_text(key),
            heads=read_heads(heads),
            coordinator_key=optional_key(coordinator),
            officer_key=optional_key(officer),
        )
        typer.echo(found.model_dump_json(indent=1)) if as_json else show_verification(found)
        if found.violations:
            raise typer.Exit(EXIT_FOUND)


@app.command("recompute")
def recompute_command(
    ledger: LedgerArgument,
    delta: Annotated[
        float | None, typer.Option(min=1e-10, max=0.999, help="Of the totals; the smallest claimed unless given.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help=f"Show every entry, not the newest {MOST_ROWS}.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute epsilon again, from the events in the ledger alone, and compare it with every claim.

    LEDGER is its folder, or a copy of ledger.jsonl.

    The module behind it shares no code with the trainer's accountants and runs by itself with nothing but
    dp-accounting installed: python multimix/audit/recompute.py ledger.jsonl

    Exit codes: 0 agrees, 3 does not agree, 2 the ledger cannot be read.
    """
    with discreet(), explained(), explained_audit():
        try:
            found = recompute(read_ledger_bytes(ledger).split(b"\n")[:-1], delta=delta)
        except RecomputeError as error:
            raise SiteError(error.reason, f"The ledger cannot be recomputed: {error}. Verify it first.") from None
        if as_json:
            typer.echo(json.dumps(found.as_dict(), allow_nan=False))
        else:
            show_recomputation(found, every=every)
        if not found.agrees:
            raise typer.Exit(EXIT_FOUND)


app.command()(site_cli.empirical)
app.command()(site_cli.replay)
app.command()(report_cli.report)
app.command()(report_cli.check)
