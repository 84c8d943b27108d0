"""`multimix-site ledger`, `budget` and `statement`: what was spent of the patients' privacy, and what is left."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from client.console import discreet, err, figures, out, table
from client.intake.cli import HERE, JsonOption, SiteOption
from client.ledger_rows import HEADER, row_of
from client.privacy_report import Forecast, RoundKind, forecast, forecast_rounds, last_kind, ledger_of, statement_of
from client.remedies import explained, remedy_of
from client.settings import SiteFolder, open_site
from multimix.contract.signing import public_key
from multimix.errors import Refused, SiteError
from multimix.files import write_atomically
from multimix.privacy.entries import Officer, Tuning
from multimix.privacy.ledger import Ledger, create_ledger, open_ledger
from multimix.privacy.officer import signed_by_officer
from multimix.privacy.statement_records import Account, Statement
from multimix.privacy.statement_sections import upwards

EXIT_DAMAGED: Final = 3
DAMAGE: Final = frozenset({"ledger_damaged", "ledger_truncated", "ledger_of_another_site", "countersignature_invalid"})
_LONGEST_TEXT: Final = 500  # of an entry

TextOption = Annotated[
    str, typer.Option("--text", help="In a sentence; it stands in every statement, so name no patient.")
]

ledger = typer.Typer(
    help="The ledger of what was spent of the patients' privacy: begin, look, verify.", no_args_is_help=True
)


@ledger.command()
def begin(*, site: SiteOption = HERE, as_json: JsonOption = False) -> None:
    """Begin the ledger of the population in site.toml. Once, ever: it outlives runs and installations.

    Exit codes: 0 begun, 2 there is one already, or no population is declared.
    """
    with discreet(), explained():
        folder = open_site(site)
        population = folder.population
        create_ledger(folder.ledger, site=folder.settings.name, population=population.name)
        made = ledger_of(folder)
        facts: dict[str, str | int] = {
            "site": made.site,
            "population": made.population,
            "public_key": made.public_key,
            "head": made.head.sha256,
        }
        if as_json:
            typer.echo(json.dumps(facts))
            return
        _print_facts(facts)
        err.print(
            "The ledger is begun: it says that nothing was ever spent of these patients. If they trained before, "
            "restore the ledger of that time instead.\nBack its folder up after each round, key and all, and never "
            "put an old backup in the place of a newer ledger: the coordinator would see it, and refuse.",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


@ledger.command()
def show(
    *,
    last: Annotated[int, typer.Option(min=1, help="So many of the newest entries.")] = 20,
    site: SiteOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show the newest entries; epsilon is the lifetime's, as it was written then.

    Exit codes: 0 shown, 2 the ledger cannot be used.
    """
    with discreet(), explained():
        entries = ledger_of(open_site(site)).entries
        shown = entries[-last:]
        if as_json:
            typer.echo(json.dumps([entry.model_dump(mode="json") for entry in shown]))
            return
        table(f"{len(shown)} of {len(entries)} entries", HEADER, [row_of(entry) for entry in shown])


@ledger.command()
def verify(*, site: SiteOption = HERE, as_json: JsonOption = False) -> None:
    """Check every entry's place and signature, and the coordinator's countersignature; print the head.

    Compare the head with the one that the coordinator keeps (multimix-server heads SITE).

    Exit codes: 0 whole, 3 damaged, cut, swapped or not countersigned by this coordinator, 2 it cannot be read.
    """
    with discreet(), explained():
        folder = open_site(site)
        try:
            facts = _verified(folder)
        except Refused as refusal:
            if refusal.reason not in DAMAGE:
                raise
            facts = {"whole": False, "reason": refusal.reason, "remedy": remedy_of(refusal)}
        typer.echo(json.dumps(facts)) if as_json else _print_facts(facts)
        if not facts["whole"]:
            raise typer.Exit(EXIT_DAMAGED)


@ledger.command()
def tuning(
    *,
    runs: Annotated[int, typer.Option(min=1, max=1_000_000, help="Runs of the search.")],
    text: TextOption,
    on_these_patients: Annotated[
        bool, typer.Option("--on-these-patients/--on-other-data", help="What the search trained on.")
    ] = True,
    site: SiteOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Declare a search for hyper-parameters: choosing among runs tells of patients too, and statements name it.

    Exit codes: 0 entered, 2 it could not be.
    """
    with discreet(), explained():
        body = Tuning(runs=runs, private=on_these_patients, text=checked_text(text))
        with writing(open_site(site)) as opened:
            opened.append(body)
            show_entered(opened, as_json=as_json)


def budget(
    *,
    noise: Annotated[
        float | None, typer.Option(min=0.1, max=1e5, help="Noise multiplier of the rounds to forecast.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1e-5, max=1.0, help="Sampling rate of the rounds to forecast.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=100_000, help="Steps of each round to forecast.")] = None,
    site: SiteOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show what was spent of the patients' privacy, of what, and how many more rounds fit.

    The forecast is for rounds like the last one, or as --noise, --rate and --steps say (give all three before the
    first run).

    Exit codes: 0 shown, 2 the ledger cannot be used or the numbers cannot be priced.
    """
    with discreet(), explained():
        folder = open_site(site)
        opened = ledger_of(folder)
        spent = statement_of(folder, opened, job_id=None, forecast_rounds=None)
        kind = _kind(last_kind(opened.entries), noise, rate, steps)
        with err.status("pricing rounds to come"):
            ahead = None if kind is None else forecast(opened.entries, folder.population, kind)
        if as_json:
            typer.echo(json.dumps(_budget_document(spent, ahead), indent=1))
            return
        _show_budget(spent, ahead)


def statement(
    *,
    job: Annotated[str | None, typer.Option(help="Of this run; of the population's lifetime unless given.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; statement/ in the site's folder unless given.")
    ] = None,
    site: SiteOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write the DP statement: statement.html, .json and .md (statement-RUN.* of a run). They name no patient.

    Exit codes: 0 written, 2 the ledger cannot be used, no such run, or the folder cannot be written.
    """
    from multimix.privacy import statement_page  # noqa: PLC0415  (templates load slowly)

    with discreet(), explained():
        here = open_site(site)
        opened = ledger_of(here)
        rounds = forecast_rounds(opened.entries, here.population)
        made = statement_of(here, opened, job_id=job, forecast_rounds=rounds)
        stem = "statement" if made.job_id is None else f"statement-{made.job_id}"
        pages = {
            f"{stem}.html": statement_page.as_html(made),
            f"{stem}.json": statement_page.as_json(made),
            f"{stem}.md": statement_page.as_markdown(made),
        }
        _write_pages(folder or here.path / "statement", pages)
        if as_json:
            typer.echo(statement_page.as_json(made), nl=False)
            return
        _show_notices(made)
        where = "the folder given" if folder else "statement/ of the site's folder"
        err.print(f"written: {', '.join(pages)} in {where}", highlight=False, soft_wrap=True)


@contextmanager
def writing(site: SiteFolder) -> Iterator[Ledger]:
    """Open the ledger of the site's population to write; SiteError `population_missing`, Refused as `open_ledger`."""
    population = site.population
    with open_ledger(site.ledger, site=site.settings.name, population=population.name) as opened:
        yield opened


def checked_text(text: str) -> str:
    """Return a text that an entry takes; SiteError `text_unusable`."""
    words = text.strip()
    if not words or len(words) > _LONGEST_TEXT or not words.isprintable():
        raise SiteError("text_unusable", f"--text is one line of 1 to {_LONGEST_TEXT} characters.")
    return words


def show_entered(opened: Ledger, *, as_json: bool, **more: int) -> None:
    """Print where the newest entry stands, the head after it, and whatever else came of it."""
    facts = {"entry": opened.head.length - 1, "head": opened.head.sha256, **more}
    typer.echo(json.dumps(facts)) if as_json else _print_facts(facts)


def _verified(site: SiteFolder) -> dict[str, object]:
    opened = ledger_of(site, every_signature=True)
    given, server, population = opened.countersigned(), site.settings.server, site.population
    coordinator = server.coordinator_key if server else None
    if given is not None and coordinator is not None and not given.by(public_key(coordinator)):
        raise Refused("countersignature_invalid")
    decisions = [entry for entry in opened.entries if isinstance(entry.body, Officer)]
    signed = [signed_by_officer(entry, opened.site, opened.population, population.officer_key) for entry in decisions]
    checked = "with the coordinator's key" if coordinator else "not: site.toml has no server.coordinator_key"
    return {
        "whole": True,
        "entries": opened.head.length,
        "head": opened.head.sha256,
        "public_key": opened.public_key,
        "countersigned_entries": given.head.length if given else 0,
        "countersigned_head": given.head.sha256 if given else "never",
        "countersignature_checked": checked if given else "none to check",
        "officer_decisions": len(decisions),
        "decisions_by_another_key": len(decisions) - sum(signed),
    }


def _print_facts(facts: Mapping[str, object]) -> None:
    """Print one a line, never cut: keys and heads are copied from here."""
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        out.print(f"{name:{width}}  {shown}", markup=False, highlight=False, soft_wrap=True)


def _kind(last: RoundKind | None, noise: float | None, rate: float | None, steps: int | None) -> RoundKind | None:
    """Return the round to forecast: the last one, with what was given in its place."""
    if last is not None:
        return RoundKind(noise or last.noise_multiplier, rate or last.sampling_rate, steps or last.steps)
    if noise is not None and rate is not None and steps is not None:
        return RoundKind(noise, rate, steps)
    if (noise, rate, steps) == (None, None, None):
        return None
    raise SiteError("forecast_incomplete", "No round was reserved yet: give --noise, --rate and --steps together.")


def _budget_document(spent: Statement, ahead: Forecast | None) -> dict[str, object]:
    return {
        "site": spent.site,
        "population": spent.population,
        "declared_patients": spent.declared_patients,
        "delta": spent.delta,
        "delta_reason": spent.delta_reason,
        "lifetime": spent.lifetime.model_dump(mode="json"),
        "runs": {run.job_id: run.account.model_dump(mode="json") for run in spent.runs},
        "accountant_versions": spent.accountant_versions,
        "notices": [notice.text for notice in spent.notices],
        "forecast": None if ahead is None else asdict(ahead),
    }


def _show_budget(spent: Statement, ahead: Forecast | None) -> None:
    _show_notices(spent)
    delta = f"delta {upwards(spent.delta)} ({spent.delta_reason})"
    out.print(f"{spent.population} of {spent.site}: {spent.declared_patients} declared, {delta}", highlight=False)
    rows = [_row("lifetime", spent.lifetime), *(_row(f"run {run.job_id}", run.account) for run in spent.runs)]
    table("\nspent of each patient", ("span", "epsilon", "limit", "Opacus PRV", "Google PLD", "steps"), rows)
    if ahead is None:
        out.print("\nforecast: no round yet; give --noise, --rate and --steps of the rounds to come")
        return
    kind = ahead.kind
    settings = f"noise {kind.noise_multiplier:g}, rate {kind.sampling_rate:g}, {kind.steps} steps"
    out.print(f"\nrounds that still fit ({settings})", highlight=False)
    fits: dict[str, str | int] = {"in a new run": ahead.rounds_in_a_new_run}
    if ahead.last_run is not None and ahead.rounds_in_last_run is not None:
        fits[f"in run {ahead.last_run}"] = ahead.rounds_in_last_run
    fits["in the lifetime"] = ahead.rounds_in_the_lifetime
    figures(fits)


def _row(name: str, account: Account) -> tuple[str, ...]:
    limit, steps = f"{account.limit:g}", str(account.steps + account.non_private_steps)
    return name, upwards(account.epsilon), limit, upwards(account.prv), upwards(account.pld), steps


def _show_notices(made: Statement) -> None:
    for notice in made.notices:
        out.print(notice.text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _write_pages(folder: Path, pages: dict[str, str]) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in pages.items():
            write_atomically(folder / name, text.encode())
    except OSError:
        raise SiteError(
            "statement_unwritable", "The statement cannot be written there. Give another folder with --out."
        ) from None
