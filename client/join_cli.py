"""`multimix-site join`: from the coordinator's kit to a site that can be admitted."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.console import discreet, err, out
from client.intake.cli import HERE, JsonOption
from client.join import IMAGE_SIZE, Joined, check_fingerprint, join, read_kit
from client.remedies import explained
from client.site_text import Value
from multimix.contract.kit import Kit
from multimix.errors import SiteError

_MASKS = "mediastinum_excluded"  # the convention of masks that a new site.toml names


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("join")(join_command)


def join_command(
    kit: Annotated[Path, typer.Argument(help="SITE.kit.zip of the coordinator, or the folder it was unpacked to.")],
    *,
    folder: Annotated[
        Path,
        typer.Option("--folder", "--site", "-s", envvar="MULTIMIX_SITE", help="The site's folder; made if missing."),
    ] = HERE,
    fingerprint: Annotated[
        str | None, typer.Option(help="Of the coordinator's key, as the coordinator reads it out on the telephone.")
    ] = None,
    declared_patients: Annotated[
        int | None,
        typer.Option(min=2, help="About so many patients are trained on: fills in the population, begins the ledger."),
    ] = None,
    declared_normal: Annotated[int | None, typer.Option(min=0, help="About so many have the label normal.")] = None,
    declared_pneumonia: Annotated[int | None, typer.Option(min=0, help="About so many: pneumonia.")] = None,
    declared_masks: Annotated[int | None, typer.Option(min=0, help=f"About so many have a mask ({_MASKS}).")] = None,
    images_per_patient: Annotated[int | None, typer.Option(min=1, help="At most so many in one step.")] = None,
    epsilon_per_run: Annotated[float | None, typer.Option(help="The most that one run may cost each patient.")] = None,
    epsilon_lifetime: Annotated[float | None, typer.Option(help="The most that all runs together may cost.")] = None,
    delta: Annotated[float | None, typer.Option(help="declared_patients ** -1.1 unless given.")] = None,
    officer_key: Annotated[str | None, typer.Option(help="Public key of the privacy officer.")] = None,
    image_size: Annotated[
        int, typer.Option(min=16, max=1024, help="Side in pixels, a multiple of 16, of a site that is made.")
    ] = IMAGE_SIZE,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make another key: the old one was revoked.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Join a federation: check the kit, complete the site's folder, make its key, print what the coordinator needs.

    Telephone the coordinator and compare the fingerprint of the key that may order training here. With a newer kit it
    updates address and authorities. What it declares about the population is told to the federation: round numbers.

    Exit codes: 0 joined, 2 the kit is refused, or it does not fit the site that is here, 130 not confirmed.
    """
    values: dict[str, Value | None] = {
        "declared_patients": declared_patients,
        "declared_labels": _given({"normal": declared_normal, "pneumonia": declared_pneumonia}),
        "declared_masks": _given({_MASKS: declared_masks}),
        "images_per_patient": images_per_patient,
        "epsilon_per_run": epsilon_per_run,
        "epsilon_lifetime": epsilon_lifetime,
        "delta": delta,
        "officer_key": officer_key,
    }
    with discreet(), explained():
        population = _population(values)
        read = read_kit(kit)
        _compare(read.kit, fingerprint)
        joined = join(read, folder, population=population, image_size=image_size, new_key=new_key)
        _show_json(read.kit, joined) if as_json else _show(read.kit, joined)


def _given(values: dict[str, int | None]) -> dict[str, int] | None:
    return {name: value for name, value in values.items() if value is not None} or None


def _population(values: dict[str, Value | None]) -> dict[str, Value] | None:
    given = {name: value for name, value in values.items() if value is not None}
    if given and "declared_patients" not in given:
        raise SiteError("population_incomplete", "To declare the population, give --declared-patients too.")
    return given or None


def _compare(kit: Kit, given: str | None) -> None:
    """Have the fingerprint compared; nothing is written before."""
    if given is not None:
        check_fingerprint(kit, given)
        return
    if not sys.stdin.isatty():
        raise SiteError(
            "fingerprint_needed",
            f"Telephone the coordinator and have the fingerprint read out. The kit's is {kit.fingerprint}. If it is "
            "the same, give it with --fingerprint.",
        )
    err.print(f"The kit is by the key {kit.fingerprint}\nTelephone the coordinator, who reads theirs out.")
    if not typer.confirm("Is it the same?", err=True):
        raise typer.Exit(130)


def _facts(kit: Kit, joined: Joined) -> dict[str, str]:
    return {
        "federation": kit.federation,
        "site": kit.site,
        "address": kit.address,
        "coordinator": kit.fingerprint,
        "public_key": joined.public_key,
        "fingerprint": joined.fingerprint,
    }


def _show_json(kit: Kit, joined: Joined) -> None:
    facts = {**_facts(kit, joined), "ledger_begun": joined.ledger_begun, "admit": joined.admit_command}
    typer.echo(json.dumps(facts))


def _show(kit: Kit, joined: Joined) -> None:
    for name, value in _facts(kit, joined).items():
        out.print(f"{name:11}  {value}", markup=False, highlight=False, soft_wrap=True)
    if joined.ledger_begun:
        err.print("The ledger is begun: back its folder up after each round.", highlight=False)
    if joined.site.settings.population is None:
        err.print("site.toml has no [population] yet: fill it in with the privacy officer.", highlight=False)
    err.print("\nThe coordinator runs this, and reads the key's fingerprint out to you to compare:", highlight=False)
    out.print(joined.admit_command, markup=False, highlight=False, soft_wrap=True)
