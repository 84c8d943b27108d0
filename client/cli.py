"""`multimix-site`: the hospital engineer's commands; see `multimix-site --help`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from client import connect_cli, join_cli, privacy_cli
from client.agent import cli as agent_cli
from client.console import discreet, err, figures, out
from client.intake import cli as intake_cli
from client.intake.cli import HERE, JsonOption, SiteOption
from client.officer_cli import officer
from client.settings import new_site, open_site
from client.units_cli import units

app = typer.Typer(
    help="Prepare a hospital's radiographs for training. Nothing leaves this machine. Research only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The site's name in the federation: letters, digits, . _ -")],
    site: SiteOption = HERE,
    image_size: Annotated[int, typer.Option(min=16, max=1024, help="Side in pixels, a multiple of 16.")] = 256,
) -> None:
    """Make a site folder: settings to fill in, and the secret that patients' pseudonyms are made with.

    Exit codes: 0 made, 2 a site is there already or the name cannot be used.
    """
    with discreet():
        new_site(site, name, image_size=image_size)
        out.print(f"made site {name}: fill in site.toml, then run: multimix-site intake FOLDER", highlight=False)


join_cli.register(app)
app.command()(intake_cli.intake)
app.command()(intake_cli.receive)
app.add_typer(intake_cli.review, name="review")
app.command()(intake_cli.purge)
app.add_typer(privacy_cli.ledger, name="ledger")
app.command()(privacy_cli.budget)
app.command()(privacy_cli.statement)
app.add_typer(officer, name="officer")
agent_cli.register(app)
connect_cli.register(app)
app.command()(units)


@app.command()
def show(site: SiteOption = HERE, as_json: JsonOption = False) -> None:
    """Show what the store holds, in counts. Exit codes: 0 shown, 2 no usable store."""
    from client.hospital import hospital_of  # noqa: PLC0415  (imports torch)

    with discreet():
        folder = open_site(site)
        _, store = hospital_of(folder)
        splits = {name: int((store.split == name).sum()) for name in ("train", "validation", "test")}
        summary: dict[str, int | str] = {
            "site": folder.settings.name,
            "generation": store.path.name,
            "images": len(store),
            "patients": int(store.patient.max()) + 1,
            "image_size": store.image_size,
            "masks": int((store.mask_row >= 0).sum()),
            "normal": int((store.label == 0).sum()),
            "pneumonia": int((store.label == 1).sum()),
            **splits,
        }
        typer.echo(json.dumps(summary)) if as_json else figures(summary)


@app.command()
def card(
    site: SiteOption = HERE,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: the card names it.")] = "auto",
) -> None:
    """Print exactly what a federation would be told about this site, as JSON. Nothing is sent.

    Where a population is declared and policy.allow_non_private is false, it is declared numbers: no image is counted.

    Exit codes: 0 printed, 2 the policy forbids a card (fewer patients than minimum_cohort) or no usable store.
    """
    from client.hospital import card_of  # noqa: PLC0415  (imports torch)
    from multimix.training import resolve_device  # noqa: PLC0415  (imports torch)

    with discreet():
        document = card_of(open_site(site), device=str(resolve_device(device)))
        typer.echo(json.dumps(document.model_dump(mode="json"), indent=2))


@app.command()
def check(site: SiteOption = HERE, as_json: JsonOption = False) -> None:
    """Check everything before the first round: machine, packages, files, images, labels, privacy, network.

    Exit codes: 0 all PASS, 1 some WARN, 3 some FAIL, 2 no site here.
    """
    from client.preflight.lines import exit_code  # noqa: PLC0415  (loads torch to see the GPU)
    from client.preflight.site import site_lines  # noqa: PLC0415  (as above)

    with discreet():
        folder = open_site(site)
        lines = []
        for line in site_lines(folder):
            lines.append(line)
            if not as_json:
                colour = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}[line.status]
                out.print(f"[{colour}]{line.status}[/]  {line.name}: ", end="", highlight=False)
                out.print(line.finding, markup=False, highlight=False, soft_wrap=True)
                if line.fix:
                    out.print(f"      {line.fix}", markup=False, highlight=False, soft_wrap=True, style="dim")
        if as_json:
            typer.echo(json.dumps([asdict(line) for line in lines]))
        raise typer.Exit(exit_code(lines))


@app.command()
def page(
    site: SiteOption = HERE,
    images: Annotated[int, typer.Option(min=0, max=400, help="Pictures on the contact sheets.")] = 60,
) -> None:
    """Write site.html into the site's folder: contact sheets, set-aside files by reason, histograms. It stays local.

    Exit codes: 0 written, 2 no site here.
    """
    from client.intake.page import write_page  # noqa: PLC0415  (templates load slowly)

    with discreet():
        write_page(open_site(site), images=images)
        err.print("written: site.html in the site's folder. It shows patients' images: do not pass it on.")
