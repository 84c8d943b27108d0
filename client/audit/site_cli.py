"""`multimix-audit empirical` and `replay`: on the machine of the site, by an auditor with a copy of the software.

Both read patients' images, and nothing they compute of them leaves: results are figures in a folder, for the report.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from client.audit.inputs import (
    EXIT_FOUND,
    RESULTS,
    CacheOption,
    CoordinatorOption,
    DataOption,
    NameOption,
    OfficerOption,
    ResultsOption,
    RunOption,
    SiteFolderOption,
    explained_audit,
)
from client.audit.tables import show_empirical, show_membership, show_replays
from client.console import discreet, err
from client.intake.cli import JsonOption
from client.remedies import explained
from multimix.audit.replay import TOLERANCE, Replayed, replayable
from multimix.errors import Refused
from multimix.privacy.entries import Entry, Genesis
from multimix.version import code_version

if TYPE_CHECKING:  # imports torch
    from client.audit.results import Results

_CPU: Final = "cpu"  # a GPU's sums depend on their order, which neighbours must not

DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")]
SeedOption = Annotated[
    int, typer.Option(min=0, help="Of the audit's coins, lots and noise: with it the audit repeats.")
]
CanariesOption = Annotated[int, typer.Option(min=64, max=100_000, help="More canaries show more.")]


def empirical(
    *,
    site: SiteFolderOption = None,
    run: RunOption = None,
    name: NameOption = "",
    data: DataOption = "",
    cache: CacheOption = "",
    coordinator: CoordinatorOption = None,
    canaries: CanariesOption = 2000,
    patients: Annotated[int, typer.Option(min=2, max=100, help="Removed one by one from a step.")] = 6,
    model: Annotated[
        Path | None, typer.Option(help="A released model.safetensors, to attack for membership too.")
    ] = None,
    shadows: Annotated[
        int, typer.Option(min=0, max=256, help="Shadow models of the likelihood-ratio attack: 0, or an even number.")
    ] = 4,
    seed: SeedOption = 0,
    device: DeviceOption = _CPU,
    folder: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Audit the training itself: one run of it with planted canaries, on the site's images, as in its newest run.

    Prints lower bounds on epsilon beside the claim, with the most that so many canaries can show, the direct tests of
    noise, clipping and sampling, and what removing a patient does. With --model two attacks on the released model:
    their figures are exact, about real patients, not differentially private, and stay here unless the officer files
    them.

    Exit codes: 0 nothing flagged, 3 something was, 2 it cannot be run.
    """
    with discreet(), explained(), explained_audit():
        from client.audit.empirical import attacked, audited, target_of  # noqa: PLC0415  (imports torch)
        from client.audit.results import as_plain  # noqa: PLC0415  (as above)
        from client.audit.subjects import audited_site  # noqa: PLC0415  (as above)
        from multimix.audit.evidence.records import canonical  # noqa: PLC0415  (as above)

        chosen = audited_site(site, run, name=name, data=data, cache=cache, coordinator=coordinator)
        results = _begun(folder, chosen.read_ledger().entries)
        target = None if model is None else target_of(chosen, model, shadows=shadows, device=device)
        with _stages() as told:
            job, result = audited(chosen, canaries=canaries, patients=patients, seed=seed, device=device, progress=told)
            results.keep(f"empirical-{job}", result)
            membership = None
            if target is not None:
                membership = attacked(chosen, target, shadows=shadows, seed=seed, device=device, progress=told)
                results.keep(f"membership-{job}", membership)
        if as_json:
            attacks = None if membership is None else as_plain(membership)
            typer.echo(canonical({"empirical": as_plain(result), "membership": attacks}))
        else:
            show_empirical(result)
            if membership is not None:
                show_membership(membership)
        if result.flags:
            raise typer.Exit(EXIT_FOUND)


def replay(
    *,
    site: SiteFolderOption = None,
    run: RunOption = None,
    name: NameOption = "",
    data: DataOption = "",
    cache: CacheOption = "",
    coordinator: CoordinatorOption = None,
    officer: OfficerOption = None,
    entry: Annotated[list[int] | None, typer.Option(help="Entry of a round; all rounds answered unless given.")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=0.1, help="Of the update; 0 on the machine that trained.")
    ] = TOLERANCE,
    again: Annotated[bool, typer.Option("--again", help="Also what --out holds a result of already.")] = False,
    device: DeviceOption = "auto",
    folder: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Execute rounds again with your own copy of the software, and compare the weights that were released.

    From the order, weights and images of each round, with the opened secret of its noise and sampling. A round whose
    secret, order or answer was purged, or one of whose patients was, is not replayable.

    Exit codes: 0 all that can be replayed is reproduced, 3 something differs, 2 it cannot be run.
    """
    with discreet(), explained(), explained_audit():
        from client.audit.replay import replay as replay_round  # noqa: PLC0415  (imports torch)
        from client.audit.results import as_plain, replay_name  # noqa: PLC0415  (as above)
        from client.audit.subjects import audited_site  # noqa: PLC0415  (as above)
        from multimix.audit.evidence.records import canonical  # noqa: PLC0415  (as above)

        chosen = audited_site(site, run, name=name, data=data, cache=cache, coordinator=coordinator, officer=officer)
        entries = chosen.read_ledger().entries
        results = _begun(folder, entries)
        found: list[Replayed] = []
        with _stages() as told:
            for sequence in entry or replayable(entries):
                made = None if again else _kept(results, sequence, tolerance)
                if made is None:
                    made = replay_round(
                        chosen, entries, sequence, tolerance=tolerance, device=device, progress=_of(told, sequence)
                    )
                    results.keep(replay_name(sequence), made)
                found.append(made)
        typer.echo(canonical([as_plain(each) for each in found])) if as_json else show_replays(found)
        if any(each.verdict == "differs" for each in found):
            raise typer.Exit(EXIT_FOUND)


def _begun(folder: Path, entries: Sequence[Entry]) -> "Results":
    """Return the folder for results about this ledger, before anything takes time."""
    from client.audit.results import Results  # noqa: PLC0415  (imports torch)

    if not isinstance(genesis := entries[0].body, Genesis):
        raise Refused("ledger_damaged")
    results = Results(folder, genesis.public_key)
    results.begin()
    return results


def _kept(results: "Results", sequence: int, tolerance: float) -> Replayed | None:
    """Return an earlier replay that answers the same question: at this tolerance, with this software."""
    made = results.replayed(sequence)
    asked = (tolerance, code_version())
    return made if made and (made.tolerance, made.code_now) == asked else None


def _of(told: Callable[[str, int, int], None], sequence: int) -> Callable[[int, int], None]:
    return lambda done, of: told(f"entry {sequence}", done, of)


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show how far each stage is: a bar at a terminal, elsewhere a line when a stage begins."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"))
    at_terminal = sys.stderr.isatty()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=err, disable=not at_terminal) as bars:
        tasks: dict[str, int] = {}

        def told(stage: str, done: int, of: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=of)
                if not at_terminal:
                    err.print(f"{stage}: {of} to do", highlight=False)
            bars.update(tasks[stage], completed=done)  # type: ignore[arg-type]

        yield told
