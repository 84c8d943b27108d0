"""`multimix-sim`: simulate hospitals, from a command line; see `multimix-sim --help`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from multimix.contract.run_config import PRETRAINING_DEFAULTS, RunConfig, Scalar, read_run_config
from multimix.data.hospitals import Hospital
from multimix.errors import InputError
from server.folders import new_run_folder
from server.log import show_progress
from server.results import Results, read_results
from sim.experiments.cli import experiment
from sim.tables import markdown, results_table, score_table
from sim.terminal import err, explained

# What two cores train in about half an hour on real radiographs; phantoms use the configuration's own defaults.
REAL_DATA_DEFAULTS: dict[str, Scalar] = {
    "image-size": 96,
    "labels": "200",
    "masks": "50",
    "rounds": 12,
    "local-steps": 40,
    "images-per-group": 4,
}


app = typer.Typer(
    help="Simulate a federation of hospitals on this machine and look at what comes out. Research only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command()(experiment)

Data = Annotated[Path | None, typer.Option(help="Folder with manifest.csv; without it, synthetic phantoms are drawn.")]
Out = Annotated[str, typer.Option(help="Run folder; a new one under runs/ if not given.")]
HoldOut = Annotated[str, typer.Option(help="Hospitals never trained on, comma-separated.")]
Config = Annotated[
    list[str] | None,
    typer.Option("-c", "--config", help='Any other run configuration key, as "key=value"; see docs/configuration.md.'),
]
Workers = Annotated[int, typer.Option(min=1, help="Processes, one torch thread each.")]


Rounds = Annotated[int | None, typer.Option(min=1, help="Rounds of the federation.")]
LocalSteps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps a site takes in a round.")]
Labels = Annotated[str | None, typer.Option(help='Labels a site may use: "200", "200,jsrt=40", "" for all.')]
Masks = Annotated[str | None, typer.Option(help="Masks a site may use, written like --labels.")]
Seed = Annotated[int, typer.Option(min=0, help="Of splits, weights, views and samples.")]
CompareLocal = Annotated[bool, typer.Option(help="Also train every site alone, for as many steps.")]
Resume = Annotated[bool, typer.Option(help="Continue the run in --out after its last finished round.")]
Accept = Annotated[bool, typer.Option("--accept", help="Start though the site-level privacy claim is hollow.")]


@app.command()
def run(
    data: Data = None,
    out: Out = "",
    hold_out: HoldOut = "",
    rounds: Rounds = None,
    local_steps: LocalSteps = None,
    labels: Labels = None,
    masks: Masks = None,
    seed: Seed = 0,
    compare_local: CompareLocal = False,
    resume: Resume = False,
    accept: Accept = False,
    config: Config = None,
    workers: Workers = min(2, os.cpu_count() or 1),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON, progress to stderr.")] = False,
) -> None:
    """Train one model across hospitals in this process, with the same server and client code as Flower runs.

    One site for each source of the manifest (or each value of site-column). Exit codes: 0 finished, 2 the input
    cannot be used (a paragraph says why), 130 interrupted (run again with --resume).
    """
    with explained():
        values = _values(
            data, out, hold_out, rounds, local_steps, labels, masks, seed, compare_local, resume, config, accept=accept
        )
        run_config = read_run_config(values)
        show_progress(to_stderr=as_json)
        _decode(run_config)
        from sim.run import simulate  # noqa: PLC0415  (torch)

        results, folder = simulate(run_config, workers=workers)
    _show(results, folder, as_json=as_json)


@app.command()
def flower(
    data: Data = None,
    out: Out = "",
    hold_out: HoldOut = "",
    rounds: Rounds = None,
    local_steps: LocalSteps = None,
    labels: Labels = None,
    masks: Masks = None,
    seed: Seed = 0,
    compare_local: CompareLocal = False,
    resume: Resume = False,
    accept: Accept = False,
    config: Config = None,
) -> None:
    """Do the same by `flwr run .`: Flower's simulation engine, one Ray actor a processor, a SuperLink of its own.

    Exit codes as for run; 1 when the run inside Flower stopped early (its log says why).
    """
    with explained():
        values = _values(
            data, out, hold_out, rounds, local_steps, labels, masks, seed, compare_local, resume, config, accept=accept
        )
        values["out"] = str(Path(out or new_run_folder()).absolute())
        values["cache"] = str(Path(str(values.get("cache", RunConfig().cache))).absolute())
        run_config = read_run_config(values)
        nodes = len(_decode(run_config))
        from sim.flower import run_in_flower  # noqa: PLC0415

        flat, default = run_config.flat(), RunConfig().flat()
        changed = {key: value for key, value in flat.items() if value != default[key]}
        code = run_in_flower(run_config, nodes=nodes, changed=changed)
    folder = Path(run_config.out)
    if code == 0:
        _show(read_results(folder), folder, as_json=False)
    raise typer.Exit(code)


@app.command()
def pretrain(
    out: Out = "",
    rounds: Rounds = 10,
    local_steps: LocalSteps = 20,
    seed: Seed = 0,
    config: Config = None,
    workers: Workers = min(2, os.cpu_count() or 1),
) -> None:
    """Train on synthetic phantoms to get a model to start a private run from: -c start-from=OUT/public.safetensors.

    It has seen no patient. Give the image-size, width and preset that the private run will have; the preset is
    `private` unless given.
    """
    with explained():
        values = _values(None, out, "", rounds, local_steps, None, None, seed, False, False, config)
        run_config = read_run_config({**PRETRAINING_DEFAULTS, **values})
        show_progress()
        _decode(run_config)
        from sim.pretrain import pretrain as run_pretraining  # noqa: PLC0415  (torch)

        path = run_pretraining(run_config, workers=workers)
    typer.echo(path)


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="model.safetensors of a run folder, or public.safetensors.")],
    data: Data = None,
    hold_out: HoldOut = "",
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Score a model on every hospital's test patients, as the end of a run does. Give its image-size with -c."""
    with explained():
        run_config = read_run_config(_values(data, "", hold_out, None, None, None, None, 0, False, False, config))
        _decode(run_config)
        from sim.score import score as score_model  # noqa: PLC0415  (torch)

        figures = score_model(model, run_config)
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    else:
        Console().print(score_table(figures))


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="model.safetensors of a run folder.")],
    images: Annotated[list[Path], typer.Argument(help="PNG or JPEG radiographs, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions.csv and the overlays.")] = Path("predictions"),
    fit: Annotated[str, typer.Option(help="pad or stretch; what the model was trained with if not given.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the predictions as JSON.")] = False,
) -> None:
    """Write the probability of pneumonia, the lung mask and an overlay for each image. Research only."""
    with explained():
        from sim.predict import predict_images  # noqa: PLC0415  (torch)

        with Progress(console=err, transient=True) as progress:
            task = progress.add_task("predicting", total=None)
            rows = predict_images(
                model,
                images,
                out,
                fit=fit,
                progress=lambda n, total: progress.update(task, completed=n, total=total),
            )
    if as_json:
        typer.echo(json.dumps([row.model_dump() for row in rows], indent=1))
        return
    for row in rows:
        typer.echo(f"{row.image}  pneumonia {_percent(row.pneumonia)}  lung {_percent(row.lung_fraction)}")
    typer.echo(f"{len(rows)} predictions in {out}; research only, not for diagnosis")


@app.command()
def table(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Print a run's table of test figures in Markdown: model, local only, majority and mean mask, by site."""
    with explained():
        typer.echo(markdown(read_results(run)))


@app.command()
def phantoms(
    out: Annotated[Path, typer.Argument(help="New folder for the images and manifest.csv.")],
    hospitals: Annotated[int, typer.Option(min=1, max=26, help="How many hospitals.")] = 4,
    patients: Annotated[int, typer.Option(min=1, help="Patients of each hospital.")] = 60,
    image_size: Annotated[int, typer.Option(min=32, max=1024, help="Longer side in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_dicom: Annotated[
        bool, typer.Option("--dicom", help="DICOM files with labels.csv, one folder a hospital, for multimix-site.")
    ] = False,
) -> None:
    """Draw synthetic chest radiographs with lung masks, as a folder that --data takes, or as DICOM files."""
    with explained():
        from multimix.data.phantom import default_hospitals, write_phantoms  # noqa: PLC0415  (scipy)

        if as_dicom:
            from multimix.data.phantom_dicom import write_phantom_dicoms  # noqa: PLC0415  (pydicom)

            for index, hospital in enumerate(default_hospitals(hospitals, seed)):
                write_phantom_dicoms(
                    out / hospital.name,
                    patients=patients,
                    image_size=image_size,
                    seed=seed + index,
                    hospital=hospital,
                    with_masks=True,
                )
            typer.echo(f"{hospitals * patients} synthetic phantoms, a folder and a labels.csv for each hospital: {out}")
            return
        manifest = write_phantoms(out, hospitals=hospitals, patients=patients, image_size=image_size, seed=seed)
    typer.echo(f"{hospitals * patients} synthetic phantoms: {manifest}")


def _assignments(texts: list[str]) -> dict[str, Scalar]:
    """Read "key=value" texts; numbers and true/false are recognised by the configuration."""
    values: dict[str, Scalar] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError("run_config", f'-c {text!r} is no assignment: write -c "key=value".')
        values[key.strip()] = value.strip().strip("\"'")
    return values


def _values(
    data: Path | None,
    out: str,
    hold_out: str,
    rounds: int | None,
    local_steps: int | None,
    labels: str | None,
    masks: str | None,
    seed: int,
    compare_local: bool,
    resume: bool,
    config: list[str] | None,
    *,
    accept: bool = False,
) -> dict[str, Scalar]:
    """Gather the run configuration: defaults for real data, then options, then -c."""
    values: dict[str, Scalar] = {**REAL_DATA_DEFAULTS, "data": str(data.absolute())} if data else {}
    given = {"rounds": rounds, "local-steps": local_steps, "labels": labels, "masks": masks}
    values.update({key: value for key, value in given.items() if value is not None})
    values.update({"hold-out": hold_out, "seed": seed, "compare-local": compare_local, "resume": resume, "out": out})
    return values | _assignments(config or []) | ({"dp-accept": True} if accept else {})


def _decode(config: RunConfig) -> tuple[Hospital, ...]:
    """Decode the images before the run, with a bar."""
    from sim.run import hospitals_of  # noqa: PLC0415

    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("decoding images", total=None)
        return hospitals_of(config, progress=lambda n, total: progress.update(task, completed=n, total=total))


def _show(results: Results, folder: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(results.model_dump_json(indent=1))
        return
    console = Console()
    console.print(results_table(results))
    console.print(results.privacy)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
