"""`multimix-sim experiment`: run an experiment, or go on with it, and write its figures and tables."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.experiments.scales import ScaleName
from sim.experiments.suites import ExperimentName
from sim.terminal import err, explained

if TYPE_CHECKING:
    from sim.experiments.engine import Done
    from sim.experiments.record import CaseRecord

EXIT_UNFINISHED = 3

Name = Annotated[
    ExperimentName,
    typer.Argument(
        help="paper: the paper's table. ablation: `modern` with one thing changed. federated: the hospitals' table. "
        "scale: what a round of up to 1,000 sites takes.",
    ),
]
Data = Annotated[Path, typer.Option(envvar="MULTIMIX_DATA", help="Folder with chex224/ and cxr/.")]
ScaleOption = Annotated[
    ScaleName, typer.Option(help="cpu: what two cores do in hours. full: for a GPU. smoke: minutes.")
]
Out = Annotated[Path, typer.Option(help="Where results are kept: in a folder of the scale and the experiment.")]
Cache = Annotated[Path, typer.Option(help="Where decoded images are kept.")]
Workers = Annotated[int, typer.Option(min=1, help="Cases side by side, one torch thread each.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="Begin no further case after so long; run again to go on.")]
Only = Annotated[list[str] | None, typer.Option(help="Do this case alone; again for more. --list names them.")]
Replicates = Annotated[int, typer.Option(min=10, help="Draws of patients for every interval and test.")]
Publish = Annotated[bool, typer.Option(help="Write figures and tables into README and docs of this checkout.")]
Published = Annotated[
    bool, typer.Option("--published", help="Begin with the cases behind the published figures; train what is missing.")
]

_NOTED = "Central cases only, and their manifests say so."
Bfloat16 = Annotated[bool, typer.Option("--bfloat16", help=f"On a GPU: train in bfloat16. {_NOTED}")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help=f"On a GPU: train in that layout. {_NOTED}")]
Compiled = Annotated[bool, typer.Option("--compiled", help=f"Train compiled; begins minutes later. {_NOTED}")]


def experiment(
    name: Name,
    data: Data,
    scale: ScaleOption = "cpu",
    out: Out = Path("runs/experiments"),
    cache: Cache = Path(".multimix"),
    workers: Workers = min(2, os.cpu_count() or 1),
    minutes: Minutes = None,
    only: Only = None,
    replicates: Replicates = 1000,
    publish: Publish = False,
    published: Published = False,
    bfloat16: Bfloat16 = False,
    channels_last: ChannelsLast = False,
    compiled: Compiled = False,
    list_cases: Annotated[bool, typer.Option("--list", help="Name the cases; do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, progress to stderr.")] = False,
) -> None:
    """Train and score every row of an experiment, with intervals and paired tests, and write its tables.

    Finished cases are kept: an experiment that was interrupted, or ran out of --minutes, goes on when run again.
    Exit codes: 0 finished, 2 the input cannot be used, 3 some cases are left, 130 interrupted.
    """
    with explained(interrupted="finished cases are kept; run the same command again"):
        from multimix.acceleration import Acceleration  # noqa: PLC0415
        from server.runs import APP_ROOT  # noqa: PLC0415
        from sim.experiments.archive import take_over  # noqa: PLC0415
        from sim.experiments.case import case_name  # noqa: PLC0415
        from sim.experiments.publish import publish as write_into  # noqa: PLC0415
        from sim.experiments.publish import refuse_elsewhere  # noqa: PLC0415
        from sim.experiments.runner import Order, run_experiment  # noqa: PLC0415  (torch)

        order = Order(
            name=name,
            scale=scale,
            data=data.absolute(),
            out=out,
            cache=cache.absolute(),
            workers=workers,
            minutes=minutes,
            only=tuple(only or ()),
            replicates=replicates,
            acceleration=Acceleration(
                precision="bfloat16" if bfloat16 else "float32", channels_last=channels_last, compiled=compiled
            ),
        )
        if publish:
            refuse_elsewhere(Path.cwd())
        if list_cases:
            typer.echo("\n".join(case_name(case) for case in order.cases()))
            return
        if published:
            taken = take_over(order.cases(), order.place, APP_ROOT)
            err.print(f"{len(taken)} published cases taken over", highlight=False)
        done, summary = run_experiment(order, told=_tell)
        if publish:
            write_into(summary, order.place.out, Path.cwd())
    for case, why in done.failed.items():
        err.print(f"{case} failed: {why}", soft_wrap=True, markup=False)
    if as_json:
        typer.echo(json.dumps(summary.model_dump(mode="json"), indent=1))
    else:
        typer.echo(
            f"{summary.cases} of {summary.cases + len(summary.missing)} cases finished: {order.folder / 'report.html'}"
        )
    if done.failed or done.left or (summary.missing and not only):
        raise typer.Exit(EXIT_UNFINISHED)


def _tell(record: "CaseRecord", done: "Done") -> None:
    from sim.experiments.case import case_name  # noqa: PLC0415

    err.print(
        f"{record.finished.astimezone():%H:%M:%S}  {case_name(record.case)}  trained {record.train_s:.0f} s, "
        f"scored {record.score_s:.0f} s; {len(done.records)} done",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
