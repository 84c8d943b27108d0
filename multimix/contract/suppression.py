"""Small-cell suppression: what of an evaluation may leave a site with a minimum cohort.

Cells count images; "safe" means 0 or at least the minimum (zeros are not hidden).

* Scores: neighbouring bins are merged until every cell is safe for both classes. Of all such merges it takes
  the one that puts fewest (normal, pneumonia) pairs into a common cell: the narrowest AUROC interval.
* Confusion: kept only if all four cells are safe and the histogram is cut at 0.5. Class totals are public
  from the histogram, so one hidden cell of a row would be found by subtraction: it is all four or none. And
  beside a score cell that straddles 0.5, a kept confusion would let that cell be divided: hence the cut.
* Calibration: bins merged until correct and wrong answers are both safe in each; withheld where that is
  impossible, since its totals would give a confusion cell away. Merging can only lower the calibration error.
* A class below the minimum (0 is below it) withholds the classification table, a segmentation table below it
  is withheld, a small count of empty masks is withheld, fewer patients than the minimum withhold everything.

Not closed: several images of one patient count several times; calibration edges (1/30) and score edges
(1/64) do not coincide, so the difference of the two can concern fewer images than the minimum; and so can
the difference of two evaluations of a site that has grown by a few images in between.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from multimix.contract.statistics import (
    CALIBRATION_BINS,
    SCORE_BINS,
    THRESHOLD_BIN,
    Calibration,
    CalibrationBin,
    ClassificationStatistics,
    Confusion,
    EvaluationStatistics,
    ScoreCell,
    SegmentationStatistics,
    add_bins,
    representative_bin,
)


def hide_small_cells(cells: Mapping[str, int], minimum: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return a table of people, its total public, with small cells hidden (as 0), and the names of those hidden.

    Cells of 1 to minimum - 1 are hidden. As their sum follows from the total, the smallest of the large cells is
    hidden with them, and all that equal it: exchanging the counts of two hidden cells then changes nothing that is
    published, and nobody can tell the small one (complementary suppression). Without a large cell all is hidden.
    """
    hidden = {name for name, count in cells.items() if not _safe(count, minimum)}
    if hidden:
        smallest = min((count for count in cells.values() if count >= minimum), default=None)
        hidden |= {name for name, count in cells.items() if smallest is None or count == smallest}
    return {name: 0 if name in hidden else count for name, count in cells.items()}, tuple(sorted(hidden))


def lower_parts(parts: Mapping[str, int], total: int, minimum: int) -> dict[str, int]:
    """Return parts of a public total, lowered so that neither a part nor the rest is 1 to minimum - 1.

    A small part becomes 0; if the rest is small then, the largest part is lowered until it is not. Counts are
    only ever lowered: the site teaches no more than it says.
    """
    capped = {name: min(count, total) for name, count in parts.items()}
    shown = {name: count if _safe(count, minimum) else 0 for name, count in capped.items()}
    rest = total - sum(shown.values())
    if shown and 0 < rest < minimum:
        largest = max(shown, key=lambda name: shown[name])
        lowered = shown[largest] - (minimum - rest)
        shown[largest] = lowered if lowered >= minimum else 0
    return shown


def suppress(statistics: EvaluationStatistics, *, minimum: int) -> EvaluationStatistics:
    """Return what may leave a site whose smallest cell is `minimum`, by the rules at the top of this file.

    Totals are kept in every table that is not withheld. A `minimum` of 1 or less returns the input itself.
    """
    if minimum <= 1:
        return statistics
    withheld = set(statistics.withheld)
    if statistics.patients < minimum:
        return EvaluationStatistics(
            patients=0,
            images=0,
            withheld=tuple(sorted({*withheld, "all:patients_below_minimum"})),
        )
    return statistics.model_copy(
        update={
            "classification": _suppress_classification(statistics.classification, minimum, withheld),
            "segmentation": _suppress_tables("segmentation", statistics.segmentation, minimum, withheld),
            "mean_mask": _suppress_tables("mean_mask", statistics.mean_mask, minimum, withheld),
            "withheld": tuple(sorted(withheld)),
        }
    )


def _suppress_classification(
    table: ClassificationStatistics | None, minimum: int, withheld: set[str]
) -> ClassificationStatistics | None:
    if table is None:
        return None
    if min(table.class_counts) < minimum:
        withheld.add("classification:class_below_minimum")
        return None
    confusion = table.confusion
    if confusion is not None and not _may_publish(confusion, table, minimum):
        withheld.add("classification.confusion:cell_below_minimum")
        confusion = None
    calibration = _merge_calibration(table.calibration, minimum) if table.calibration is not None else None
    if calibration is None and table.calibration is not None:
        withheld.add("classification.calibration:cell_below_minimum")
    cells = _merge_scores(table, minimum, cut=confusion is not None)
    counts = [[0] * SCORE_BINS, [0] * SCORE_BINS]
    for cell in cells:
        counts[0][cell.representative] = cell.normal
        counts[1][cell.representative] = cell.pneumonia
    return ClassificationStatistics(
        confusion=confusion,
        score_counts=(tuple(counts[0]), tuple(counts[1])),
        merged_cells=tuple(cell for cell in cells if cell.high - cell.low > 1),
        calibration=calibration,
        score_sum=table.score_sum,
        score_square_sum=table.score_square_sum,
    )


def _safe(count: int, minimum: int) -> bool:
    return count == 0 or count >= minimum


def _may_publish(confusion: Confusion, table: ClassificationStatistics, minimum: int) -> bool:
    """Whether all four cells are safe and are those of the histogram cut at 0.5."""
    halves = tuple((sum(row[:THRESHOLD_BIN]), sum(row[THRESHOLD_BIN:])) for row in table.score_counts)
    straddled = any(cell.low < THRESHOLD_BIN < cell.high for cell in table.merged_cells)
    return not straddled and halves == confusion and all(_safe(n, minimum) for row in confusion for n in row)


def _merge_scores(table: ClassificationStatistics, minimum: int, *, cut: bool) -> list[ScoreCell]:
    """Return the non-empty cells after merging; with `cut`, none straddles 0.5."""
    normal, pneumonia = table.score_counts
    inside = {edge for cell in table.merged_cells for edge in range(cell.low + 1, cell.high)}
    edges = [edge for edge in range(SCORE_BINS + 1) if edge not in inside]
    halves = [edges]
    if cut:
        halves = [[e for e in edges if e <= THRESHOLD_BIN], [e for e in edges if e >= THRESHOLD_BIN]]
    kept = [_merge(normal, pneumonia, edges=half, minimum=minimum) or [] for half in halves]
    cells = (
        ScoreCell(low=low, high=high, normal=sum(normal[low:high]), pneumonia=sum(pneumonia[low:high]))
        for half in kept
        for low, high in pairwise(half)
    )
    return [cell for cell in cells if cell.normal or cell.pneumonia]


def _merge_calibration(bins: Calibration, minimum: int) -> Calibration | None:
    correct = [part.correct for part in bins]
    wrong = [part.count - part.correct for part in bins]
    edges = _merge(correct, wrong, edges=range(CALIBRATION_BINS + 1), minimum=minimum)
    if edges is None:
        return None
    merged = [CalibrationBin(count=0, correct=0, confidence_sum=0.0)] * CALIBRATION_BINS
    for low, high in pairwise(edges):
        merged[representative_bin(low, high)] = add_bins(bins[low:high])
    return tuple(merged)


def _merge(first: Sequence[int], second: Sequence[int], *, edges: Sequence[int], minimum: int) -> list[int] | None:
    """Return the edges of safe cells of two histograms that put fewest (first, second) pairs into one cell.

    Among equals there are most cells. `edges` are those allowed, the first and last always taken; None where
    no choice is safe. Dynamic programme over the position of the last cut.
    """
    below = [list(accumulate(counts, initial=0)) for counts in (first, second)]
    best: dict[int, tuple[int, int, list[int]]] = {edges[0]: (0, 0, [edges[0]])}
    for high in edges[1:]:
        ways = []
        for low, (pairs, cells, cuts) in best.items():
            a, b = (counts[high] - counts[low] for counts in below)
            if _safe(a, minimum) and _safe(b, minimum):
                ways.append((pairs + a * b, cells - 1, [*cuts, high]))
        if ways:
            best[high] = min(ways)
    return best[edges[-1]][2] if edges[-1] in best else None


def _suppress_tables(
    name: str, tables: dict[str, SegmentationStatistics], minimum: int, withheld: set[str]
) -> dict[str, SegmentationStatistics]:
    kept = {}
    for convention, table in tables.items():
        if table.images < minimum:
            withheld.add(f"{name}.{convention}:images_below_minimum")
            continue
        kept[convention] = table.model_copy(
            update={key: None for key in ("empty_truth", "empty_prediction") if not _empty_safe(table, key, minimum)}
        )
        if kept[convention] != table:
            withheld.add(f"{name}.{convention}.empty:cell_below_minimum")
    return kept


def _empty_safe(table: SegmentationStatistics, key: str, minimum: int) -> bool:
    """Whether the images with an empty mask, and those without, may be counted."""
    empty: int | None = getattr(table, key)
    return empty is None or (_safe(empty, minimum) and _safe(table.images - empty, minimum))
