"""`multimix-audit report` and `check`: the evidence bundle that a data-protection officer files, and checks again."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.audit.inputs import (
    EXIT_FOUND,
    RESULTS,
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
from client.audit.tables import show_judgement
from client.console import discreet, err, out
from client.intake.cli import JsonOption
from client.officer_key import read_key
from client.remedies import explained
from client.settings import open_site
from multimix.contract.signing import public_text

if TYPE_CHECKING:
    from pydantic import JsonValue


def report(
    ledger: LedgerArgument,
    *,
    key: KeyOption,
    sign: Annotated[
        Path,
        typer.Option(help="The auditor's private key, which signs; `multimix-site officer key` makes one."),
    ],
    folder: Annotated[Path, typer.Option("--out", help="New folder for the bundle.")],
    heads: HeadsOption = None,
    coordinator: CoordinatorOption = None,
    officer: OfficerOption = None,
    results: Annotated[Path, typer.Option(help="Folder with results of `empirical` and `replay`.")] = RESULTS,
    membership: Annotated[
        bool, typer.Option(help="File the figures of the attacks too: exact, about patients, released by the officer.")
    ] = False,
    site: Annotated[Path | None, typer.Option(help="The site folder: its policy is filed too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the signed evidence bundle: one page to read, the same as JSON, and a copy of the ledger.

    LEDGER is its folder, or a copy of ledger.jsonl. It is verified and recomputed; what `empirical` and `replay` left
    in --results is taken with it.

    Exit codes: 0 written and nothing contradicts the site, 3 written and something does, 2 it cannot be written.
    """
    with discreet(), explained(), explained_audit():
        from client.audit.evidence import evidence_of, statement_of_ledger  # noqa: PLC0415  (imports torch)
        from client.audit.results import Results  # noqa: PLC0415  (as above)
        from multimix.audit.evidence.bundle import write_bundle  # noqa: PLC0415  (as above)
        from multimix.audit.evidence.records import Keys  # noqa: PLC0415  (as above)

        signer, raw, records = read_key(sign), read_ledger_bytes(ledger), read_heads(heads)
        keys = Keys(
            ledger=key_text(key),
            auditor=public_text(signer),
            coordinator=optional_key(coordinator),
            officer=optional_key(officer),
        )
        policy: dict[str, JsonValue] | None = None
        if site is not None:
            policy = open_site(site).settings.policy.model_dump(mode="json")
        evidence = evidence_of(
            raw,
            keys=keys,
            heads=records,
            statement=statement_of_ledger(raw, records, coordinator=keys.coordinator),
            made=datetime.now(UTC),
            found=Results(results, keys.ledger),
            membership=membership,
            policy=policy,
        )
        manifest = write_bundle(folder, evidence, raw, heads=records, key=signer)
        if as_json:
            typer.echo(json.dumps({"judgement": evidence.judgement.model_dump(mode="json"), "files": manifest.files}))
        else:
            show_judgement(evidence.judgement)
            err.print(f"written: {', '.join(sorted(manifest.files))}, manifest.json", highlight=False, soft_wrap=True)
        if evidence.judgement.word == "contradicted":
            raise typer.Exit(EXIT_FOUND)


def check(
    bundle: Annotated[Path, typer.Argument(help="The folder of a bundle.")],
    *,
    signer: Annotated[
        str | None, typer.Option(help="Public key of the auditor who signed it, or a file; got by other means.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle: its signature, each file, and that the ledger in it gives what the evidence says.

    Measurements at the site (empirical, replay) are signed by the auditor; they cannot be derived again from a bundle.

    Exit codes: 0 it holds, 3 it does not, 2 it cannot be read.
    """
    with discreet(), explained(), explained_audit():
        from multimix.audit.evidence.bundle import check_bundle  # noqa: PLC0415  (imports torch)
        from multimix.privacy.accountant import price  # noqa: PLC0415  (as above)

        found = check_bundle(bundle, optional_key(signer), price=price)
        if as_json:
            judgement = found.evidence.judgement.model_dump(mode="json") if found.evidence else None
            facts = found.model_dump(mode="json", exclude={"evidence"})
            typer.echo(json.dumps({"holds": found.holds, "judgement": judgement, **facts}))
        else:
            out.print(f"signed by {found.signer}", highlight=False, soft_wrap=True)
            for reason in (*found.reasons, *(f"note: {note}" for note in found.notes)):
                out.print(reason, highlight=False, markup=False, soft_wrap=True)
            if found.evidence:
                keys = found.evidence.keys
                out.print(f"about the ledger of key {keys.ledger}", highlight=False, soft_wrap=True)
                show_judgement(found.evidence.judgement)
            out.print("\nHOLDS" if found.holds else "\nDOES NOT HOLD", style="bold", highlight=False)
        if not found.holds:
            raise typer.Exit(EXIT_FOUND)
