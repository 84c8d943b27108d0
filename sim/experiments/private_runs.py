"""Utility against epsilon: of the private runs whose results stand in this checkout's docs/runs."""

from math import inf
from pathlib import Path
from typing import Final

from multimix.errors import InputError
from server.results import Results, read_results
from sim.experiments.figures import EpsilonPoint

_FIGURES: Final = (
    ("AUROC on kermany", "kermany", "auroc"),
    ("Dice on montgomery, never trained on", "montgomery", "dice"),
)


def privacy_points(runs: Path) -> dict[str, list[EpsilonPoint]]:
    """Return the points of each chart, by its heading; none where no run with and none without privacy is there."""
    read = (_read(folder) for folder in sorted(runs.glob("*/")))
    results = [each for each in read if each is not None and each.status == "finished"]
    private = [each for each in results if each.config.get("dp") == "patient"]
    like = [each for each in results if each.config.get("dp") == "none" and _same_task(each, private)]
    private = [each for each in private if _same_task(each, like)]
    if not private:
        return {}
    return {
        heading: [
            EpsilonPoint(_epsilon(each), value, None, None, site)
            for each in (*private, *like)
            if site in each.sites and (value := each.sites[site].metrics.get(metric)) is not None
        ]
        for heading, site, metric in _FIGURES
    }


def _read(folder: Path) -> Results | None:
    try:
        return read_results(folder)
    except InputError:
        return None


def _same_task(one: Results, others: list[Results]) -> bool:
    """Whether a run differs from one of the others in its privacy alone."""
    keys = ("data", "preset", "row", "width", "image-size", "hold-out", "labels", "masks")
    return any(all(one.config.get(key) == other.config.get(key) for key in keys) for other in others)


def _epsilon(results: Results) -> float:
    epsilon = results.config.get("dp-epsilon")
    return float(epsilon) if results.config.get("dp") == "patient" and isinstance(epsilon, int | float) else inf
