"""`multimix-site officer`: the privacy officer's key and decisions, entered in the ledger and signed."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.console import EXIT_INTERRUPTED, discreet, err
from client.intake.cli import HERE, JsonOption, SiteOption
from client.officer_key import new_key, read_key
from client.privacy_cli import TextOption, checked_text, show_entered, writing
from client.privacy_report import ledger_of
from client.remedies import explained
from client.settings import SiteFolder, open_site
from multimix.contract.signing import public_text
from multimix.errors import Refused, SiteError
from multimix.privacy.entries import OfficerAction
from multimix.privacy.history import non_private
from multimix.privacy.ledger import Ledger
from multimix.privacy.officer import decide
from multimix.privacy.reservations import Reservations

KeyOption = Annotated[Path, typer.Option("--key", help="The officer's private key, made by `officer key`.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

officer = typer.Typer(
    help="The privacy officer's key, and the decisions that the ledger keeps for good.", no_args_is_help=True
)


class Permission(StrEnum):
    """What the officer may allow beyond the rule."""

    NON_PRIVATE = "non-private"
    PRIVATE_AFTER_NON_PRIVATE = "private-after-non-private"


_ACTIONS: Final[dict[Permission, OfficerAction]] = {
    Permission.NON_PRIVATE: "allow_non_private",
    Permission.PRIVATE_AFTER_NON_PRIVATE: "private_after_non_private",
}
_WARNINGS: Final = {
    Permission.NON_PRIVATE: (
        "WARNING: training without differential privacy. The weights that leave can reveal images and who was "
        "trained on. From the first such round on these patients' epsilon is infinity, for good. It is allowed for "
        "every later run; policy.allow_non_private = false in site.toml ends it."
    ),
    Permission.PRIVATE_AFTER_NON_PRIVATE: (
        "WARNING: these patients trained without differential privacy. Noise in later rounds does not undo that: "
        "their epsilon stays infinity, and statements show the private part beside it. This holds until they are "
        "trained without privacy again."
    ),
}
_PURGE_WARNING: Final = (
    "WARNING: without its secret the noise of a round can no longer be audited, and without its stored answer that "
    "round cannot be answered again. What was spent stays spent. Backups of the ledger's folder still hold them."
)


@officer.command()
def key(*, file: Annotated[Path, typer.Option("--out", help="New file for the private key (mode 0600).")]) -> None:
    """Make the officer's key pair; print the line that names it in site.toml.

    Keep the private key away from this site's machine and engineers, on a medium of the officer's own, and back it up.

    Exit codes: 0 made, 2 the file is there already or cannot be written.
    """
    with discreet():
        made = new_key(file)
        typer.echo(f'officer_key = "{public_text(made)}"')
        err.print(
            "The line above belongs in [population] of site.toml. Whoever has the private key decides for the "
            "officer: keep it on a medium of the officer's own.",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


@officer.command()
def allow(
    *,
    what: Annotated[Permission, typer.Argument(help="Training without privacy, or with it after such training.")],
    key_file: KeyOption,
    text: TextOption,
    yes: YesOption = False,
    site: SiteOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Allow what needs the officer's signature. The ledger and every statement show it.

    Exit codes: 0 entered, 2 it could not be, 130 not confirmed.
    """
    with discreet(), explained():
        folder = open_site(site)
        signer, words = _key_of(folder, key_file), checked_text(text)
        if what is Permission.PRIVATE_AFTER_NON_PRIVATE and not non_private(ledger_of(folder).entries):
            raise SiteError("nothing_to_allow", "These patients never trained without privacy: nothing to sign.")
        _confirmed(_WARNINGS[what], yes=yes)
        with writing(folder) as opened:
            _enter(folder, opened, _ACTIONS[what], words, signer)
            show_entered(opened, as_json=as_json)
        if what is Permission.NON_PRIVATE and not folder.settings.policy.allow_non_private:
            err.print("site.toml still says policy.allow_non_private = false: both are needed.", highlight=False)


@officer.command()
def note(*, key_file: KeyOption, text: TextOption, site: SiteOption = HERE, as_json: JsonOption = False) -> None:
    """Enter a note: an approval, an incident, a review. Exit codes: 0 entered, 2 it could not be."""
    with discreet(), explained():
        folder = open_site(site)
        signer, words = _key_of(folder, key_file), checked_text(text)
        with writing(folder) as opened:
            _enter(folder, opened, "note", words, signer)
            show_entered(opened, as_json=as_json)


@officer.command()
def purge_secrets(
    *,
    key_file: KeyOption,
    before: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only of rounds before this day (UTC).")
    ] = None,
    yes: YesOption = False,
    site: SiteOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Remove the secrets behind the noise, and the stored answers, of rounds that were answered.

    The decision is entered first; a purge that was interrupted is run again.

    Exit codes: 0 removed, 2 it could not be done, 130 not confirmed.
    """
    with discreet(), explained():
        folder = open_site(site)
        signer = _key_of(folder, key_file)
        day = None if before is None else before.replace(tzinfo=UTC)
        _confirmed(_PURGE_WARNING, yes=yes)
        with writing(folder) as opened:
            words = "of all answered rounds" if day is None else f"of answered rounds before {day:%Y-%m-%d}"
            _enter(folder, opened, "secrets_purged", words, signer)
            removed = Reservations(folder.ledger).purge(opened, day)
            show_entered(opened, as_json=as_json, rounds_purged=removed)


def _enter(folder: SiteFolder, opened: Ledger, action: OfficerAction, words: str, signer: Ed25519PrivateKey) -> None:
    decide(opened, action, words, signer, officer_key=folder.population.officer_key)


def _confirmed(warning: str, *, yes: bool) -> None:
    err.print(warning, style="bold yellow", markup=False, highlight=False, soft_wrap=True)
    try:
        sure = yes or typer.confirm("Enter this decision, for good?", err=True)
    except typer.Abort:  # nobody to ask
        sure = False
    if not sure:
        raise typer.Exit(EXIT_INTERRUPTED)


def _key_of(folder: SiteFolder, file: Path) -> Ed25519PrivateKey:
    """Read the officer's private key, before anything is asked.

    Raises:
        SiteError: `officer_missing` where the site names none, `officer_key_unusable`, `officer_key_not_private`.
        Refused: `officer_unknown`.
    """
    named = folder.population.officer_key
    if named is None:
        raise SiteError(
            "officer_missing",
            "site.toml names no officer. Make a key (multimix-site officer key --out FILE) and have the hospital enter "
            "its public half as officer_key in [population].",
        )
    signer = read_key(file)
    if public_text(signer) != named:
        raise Refused("officer_unknown")
    return signer
