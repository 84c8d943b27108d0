"""What the tables of the report hold: figures beside their baselines, who taught what, and where time went.

Pure functions from `Results` to small frozen values; server/report.py renders them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from server.results import Metrics, Results, SiteResult


@dataclass(frozen=True)
class Measure:
    """One column of the site table, and the metric of the baseline that it stands beside."""

    key: str
    heading: str
    baseline: str | None
    higher_is_better: bool = True
    decimals: int = 3


CLASSIFICATION = (
    Measure("auroc", "AUROC", None),
    Measure("balanced_accuracy", "Balanced accuracy", "majority_balanced_accuracy"),
    Measure("accuracy", "Accuracy", "majority_accuracy"),
    Measure("f1_normal", "F1 normal", "majority_f1_normal"),
    Measure("f1_pneumonia", "F1 pneumonia", "majority_f1_pneumonia"),
    Measure("ece", "ECE", None, higher_is_better=False),
)
SEGMENTATION = (
    Measure("dice", "Dice", "mean_mask_dice"),
    Measure("jaccard", "Jaccard", "mean_mask_jaccard"),
    Measure("hausdorff95_px", "HD95 px", "mean_mask_hausdorff95_px", higher_is_better=False, decimals=1),
    Measure("hausdorff_px", "HD px", "mean_mask_hausdorff_px", higher_is_better=False, decimals=1),
    Measure("ssim", "SSIM", "mean_mask_ssim"),
)
_COLUMNS = len(CLASSIFICATION) + len(SEGMENTATION)


@dataclass(frozen=True)
class Cell:
    """One figure: `worse` where a baseline beats the model; `spread`: a standard deviation or an interval."""

    value: float | None
    decimals: int = 3
    worse: bool = False
    spread: str = ""


@dataclass(frozen=True)
class Row:
    """One model at one site; None where the column does not apply to it."""

    kind: str
    label: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class SiteBlock:
    """The rows of one site: the model, the baselines, and the local-only model where there is one."""

    name: str
    result: SiteResult
    rows: tuple[Row, ...]
    labelled_images: int
    masked_images: int


@dataclass(frozen=True)
class Tile:
    """A key figure with one line that puts it in proportion."""

    label: str
    value: str
    context: str


@dataclass(frozen=True)
class Taught:
    """How much one site taught one module: mean share over its rounds, and patients in the latest of them."""

    share: float | None
    patients: str


def site_order(results: Results) -> list[str]:
    """Return every site that is named anywhere: training sites first, then held-out ones."""
    named = [*results.sites, *(name for r in results.rounds for name in r.sites)]
    return sorted(dict.fromkeys(named), key=lambda name: name in results.sites and _held_out(results, name))


def site_block(name: str, results: Results) -> SiteBlock:
    """Put one site's figures beside its baselines; until the final model is scored, its latest validation."""
    result = results.sites[name]
    label, metrics = _scored(name, results)
    rows = [Row("model", label, _cells(metrics) if metrics else (None,) * _COLUMNS)]
    if any(_baseline_value(measure, metrics) is not None for measure in (*CLASSIFICATION, *SEGMENTATION)):
        rows.append(Row("baseline", "majority \u00b7 mean mask", _baseline_cells(metrics)))
    if result.local_only is not None:
        rows.append(Row("local", "trained here alone", _cells(result.local_only)))
    images = [int(metrics.get(key) or 0) for key in ("labelled_images", "masked_images")]
    return SiteBlock(name, result, tuple(rows), *images)


def key_figures(results: Results) -> list[Tile]:
    """Return the figures a reader looks for first."""
    done, planned = len(results.rounds), results.rounds_planned
    spent = sum(r.seconds for r in results.rounds)
    tiles = [Tile("Rounds", f"{done} of {planned}", f"{duration(spent / done)} a round" if done else "none yet")]
    overall = results.overall.metrics
    for key, label, baseline in (
        ("dice", "Dice, all sites", "mean_mask_dice"),
        ("balanced_accuracy", "Balanced accuracy, all sites", "majority_balanced_accuracy"),
    ):
        if key in overall:
            tiles.append(_tile(label, overall, key, baseline))
    tiles += _auroc_tile(results)
    for name, site in results.sites.items():
        if site.role == "held-out" and site.metrics.get("dice") is not None:
            tiles.append(_tile(f"Dice, {name} (unseen)", site.metrics, "dice", "mean_mask_dice"))
    return tiles


def modules(results: Results) -> list[str]:
    """Return the modules of the model in the order that the rounds name them."""
    return list(dict.fromkeys(module for r in results.rounds for module in (*r.module_shares, *r.kept_modules)))


def taught_table(results: Results, names: Sequence[str]) -> list[tuple[str, list[tuple[str, Taught]], str]]:
    """Return for each module what each site taught it, and the rounds in which nobody did."""
    return [
        (
            module,
            [(name, _taught(results, module, name)) for name in names if not _held_out(results, name)],
            ranges([r.round for r in results.rounds if module in r.kept_modules]),
        )
        for module in modules(results)
    ]


def part_names(results: Results) -> list[str]:
    """Return the parts of the work that were timed, in the order that the run names them."""
    return list(dict.fromkeys([*results.timing, *(part for r in results.rounds for part in r.parts)]))


def site_seconds(results: Results, names: Sequence[str]) -> list[tuple[str, int, dict[str, float]]]:
    """Return each site's steps and seconds per part, summed over rounds."""
    rows = []
    for name in names:
        rounds = [r.sites[name] for r in results.rounds if name in r.sites]
        parts = dict.fromkeys(part for site in rounds for part in site.seconds)
        totals = {part: sum(site.seconds.get(part, 0.0) for site in rounds) for part in parts}
        if totals:
            rows.append((name, sum(site.steps for site in rounds), totals))
    return rows


def duration(seconds: float) -> str:
    """Return a length of time as a person says it: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if round(seconds) < 60:  # noqa: PLR2004  (a minute)
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004  (two digits)
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"  # noqa: PLR2004


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers with runs joined: 1, 3, 4, 5 becomes `1, 3-5` (with an en dash)."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}\u2013{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _held_out(results: Results, name: str) -> bool:
    return name in results.sites and results.sites[name].role == "held-out"


def _scored(name: str, results: Results) -> tuple[str, Metrics]:
    """Return which model the site has scored last, in words, and its figures."""
    if results.sites[name].metrics:
        return "federated model", results.sites[name].metrics
    for past in reversed(results.rounds):
        if name in past.sites and past.sites[name].metrics:
            return f"validation, round {past.round}", past.sites[name].metrics
    return ("gave no figures" if results.status == "finished" else "not scored yet"), {}


def _cells(metrics: Metrics) -> tuple[Cell, ...]:
    return tuple(
        Cell(metrics.get(m.key), m.decimals, _beaten(m, metrics), _spread(m, metrics))
        for m in (*CLASSIFICATION, *SEGMENTATION)
    )


def _baseline_cells(metrics: Metrics) -> tuple[Cell | None, ...]:
    """Return the baselines' figures; a constant score has AUROC one half wherever AUROC is defined."""
    return tuple(_baseline_cell(m, metrics) for m in (*CLASSIFICATION, *SEGMENTATION))


def _baseline_cell(measure: Measure, metrics: Metrics) -> Cell | None:
    if measure.baseline or measure.key == "auroc":
        return Cell(_baseline_value(measure, metrics), measure.decimals)
    return None


def _baseline_value(measure: Measure, metrics: Metrics) -> float | None:
    if measure.key == "auroc":
        return None if metrics.get("auroc") is None else 0.5
    return metrics.get(measure.baseline) if measure.baseline else None


def _beaten(measure: Measure, metrics: Metrics) -> bool:
    mine, other = metrics.get(measure.key), _baseline_value(measure, metrics)
    if mine is None or other is None:
        return False
    return mine < other if measure.higher_is_better else mine > other


def _spread(measure: Measure, metrics: Metrics) -> str:
    deviation, low, high = (metrics.get(key) for key in ("dice_std", "auroc_low", "auroc_high"))
    if measure.key == "dice" and deviation is not None:
        return f"\u00b1 {deviation:.3f}"
    if measure.key == "auroc" and low is not None and high is not None:
        return f"{low:.3f}\u2013{high:.3f}"
    return ""


def _tile(label: str, metrics: Metrics, key: str, baseline: str) -> Tile:
    value, other = metrics.get(key), metrics.get(baseline)
    name = "mean mask" if baseline.startswith("mean_mask") else "majority class"
    context = f"{name} {other:.3f}" if other is not None else "no baseline"
    return Tile(label, "\u2013" if value is None else f"{value:.3f}", context)


def _auroc_tile(results: Results) -> list[Tile]:
    """Return the range over sites; pooled scores would measure the site, not the disease."""
    values = sorted(v for v in (site.metrics.get("auroc") for site in results.sites.values()) if v is not None)
    if not values:
        return []
    text = f"{values[0]:.3f}" if len(values) == 1 else f"{values[0]:.3f}\u2013{values[-1]:.3f}"
    return [Tile("AUROC, site by site", text, f"{len(values)} of {len(results.sites)} sites have both classes")]


def _taught(results: Results, module: str, site: str) -> Taught:
    shares = [r.module_shares[module].get(site, 0.0) for r in results.rounds if module in r.module_shares]
    taking_part = [r.sites[site] for r in results.rounds if site in r.sites]
    seen = [state.teachers[module] for state in taking_part if module in state.teachers]
    patients = f"{seen[-1].labelled_patients} + {seen[-1].unlabelled_patients}" if seen else ""
    return Taught(fmean(shares) if shares else None, patients)
