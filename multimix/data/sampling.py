"""Which images a step trains on: budgets of labels and masks, pools, and draws by position.

Nothing is consumed in order. A draw is a pure function of (key, position), so a resumed run, another number
of workers or another batch size reads the same images at the same positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from multimix.errors import ManifestError, RunConfigError
from multimix.randomness import Key, derive_seed, stream

if TYPE_CHECKING:
    from multimix.data.store import Store

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Budget:
    """How many labelled images and masks a site may use; None is all, `exact` refuses to give fewer."""

    labels: int | None = None
    masks: int | None = None
    exact: bool = False


@dataclass(frozen=True, eq=False)
class Pools:
    """Ascending store rows of the train split: each task cuts them into labelled and unlabelled."""

    labelled_classification: Rows
    unlabelled_classification: Rows
    labelled_segmentation: Rows
    unlabelled_segmentation: Rows


def patients(store: "Store", rows: Rows) -> int:
    """Return the number of distinct patients among the rows."""
    return len(np.unique(store.patient[rows]))


def label_rows(store: "Store", rows: Rows) -> Rows:
    """Return the train rows labelled normal or pneumonia."""
    chosen: Rows = rows[(store.split[rows] == "train") & np.isin(store.label[rows], (0, 1))]
    return chosen


def mask_rows(store: "Store", rows: Rows, conventions: frozenset[str] | None) -> Rows:
    """Return the train rows with a mask of an accepted convention; None accepts all."""
    accepted = (store.split[rows] == "train") & (store.mask_row[rows] >= 0)
    if conventions is not None:
        accepted &= np.isin(store.convention[rows], sorted(conventions))
    chosen: Rows = rows[accepted]
    return chosen


def make_pools(
    store: "Store",
    rows: Rows,
    *,
    budget: Budget,
    conventions: frozenset[str] | None,
    seed: int,
    site: str,
) -> Pools:
    """Split a site's train rows by task; what exceeds the budget is unlabelled.

    A budget takes whole patients in an order hashed from (seed, site, patient) and cuts the last one, labels
    by turns from both classes while they last. So a smaller budget is a subset of a larger one.

    Raises:
        ManifestError: `budget_too_large` if the budget is exact and the site has less.
    """
    train = np.unique(rows[store.split[rows] == "train"])
    labelled, masked = label_rows(store, train), mask_rows(store, train, conventions)
    if budget.exact:
        check_budget(site, "labels", asked=budget.labels, available=len(labelled))
        check_budget(site, "masks", asked=budget.masks, available=len(masked))
    labelled = _balanced(store, _ranked(store, labelled, (seed, "labels", site)), budget.labels)
    masked = np.sort(_ranked(store, masked, (seed, "masks", site))[: budget.masks])
    return Pools(
        labelled_classification=labelled,
        unlabelled_classification=np.setdiff1d(train, labelled),
        labelled_segmentation=masked,
        unlabelled_segmentation=np.setdiff1d(train, masked),
    )


def union(parts: Sequence[Pools]) -> Pools:
    """Return the pools of several sites together; what one of them has a label for is labelled."""

    def together(name: str) -> Rows:
        return np.unique(np.concatenate([getattr(part, name) for part in parts]))

    labelled, masked = together("labelled_classification"), together("labelled_segmentation")
    return Pools(
        labelled_classification=labelled,
        unlabelled_classification=np.setdiff1d(together("unlabelled_classification"), labelled),
        labelled_segmentation=masked,
        unlabelled_segmentation=np.setdiff1d(together("unlabelled_segmentation"), masked),
    )


def check_budget(site: str, kind: str, *, asked: int | None, available: int) -> None:
    """Refuse a budget above what there is.

    Raises:
        ManifestError: `budget_too_large`.
    """
    if asked is not None and asked > available:
        raise ManifestError(
            "budget_too_large",
            f"{site} is asked for {asked} {kind} but its training images have {available}. Ask for fewer.",
        )


def parse_budget(text: str) -> tuple[int | None, dict[str, int]]:
    """Return (at most this many per site or None, exact number by site) of "200,jsrt=40"; empty is no bound.

    Raises:
        RunConfigError: `budget_syntax`.
    """
    general: int | None = None
    exact: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        site, equals, number = (word.strip() for word in part.rpartition("="))
        repeated = site in exact if equals else general is not None
        if not (number.isascii() and number.isdigit()) or (equals and not site) or repeated:
            raise RunConfigError(
                "budget_syntax",
                f"Budget {text!r}: {part!r} is not understood. Write a number for every site, site=number "
                "for one, each at most once, commas between, as in '200,jsrt=40'; empty uses everything.",
            )
        if equals:
            exact[site] = int(number)
        else:
            general = int(number)
    return general, exact


def site_budgets(kind: str, text: str, available: Mapping[str, int]) -> dict[str, int | None]:
    """Return each site's budget from its syntax and what the sites have of the kind, labels or masks.

    Raises:
        ManifestError: `budget_too_large` where an exact number is short, or a general one at every site.
        RunConfigError: `budget_syntax`; `hospital_unknown` for a site not among the available.
    """
    general, exact = parse_budget(text)
    for site, asked in exact.items():
        if site not in available:
            known = ", ".join(sorted(available))
            raise RunConfigError("hospital_unknown", f"{kind}: no training hospital {site!r}. Choose from: {known}.")
        check_budget(site, kind, asked=asked, available=available[site])
    others = {site: count for site, count in available.items() if site not in exact}
    if general is not None and others and general > max(others.values()):
        counts = ", ".join(f"{site} {count}" for site, count in sorted(others.items()))
        message = f"{kind} = {text!r}: no training hospital has {general}. They have: {counts}. Ask for fewer."
        raise ManifestError("budget_too_large", message)
    return {site: exact.get(site, general) for site in available}


def _ranked(store: "Store", rows: Rows, key: tuple[Key, ...]) -> Rows:
    """Return the rows patient by patient, patients in an order hashed from the key."""
    groups, index = np.unique(store.patient[rows], return_inverse=True)
    ranks = np.array([derive_seed(*key, int(group)) for group in groups], np.int64)
    return rows[np.lexsort((rows, index, ranks[index]))]


def _balanced(store: "Store", ranked: Rows, count: int | None) -> Rows:
    """Return `count` rows, half of each class where there are enough, ascending."""
    if count is None:
        return np.sort(ranked)
    normal, pneumonia = (ranked[store.label[ranked] == label] for label in (0, 1))
    normals = min(len(normal), max((count + 1) // 2, count - len(pneumonia)))
    return np.sort(np.concatenate([normal[:normals], pneumonia[: count - normals]]))


def draw(pool: Rows, *, key: Sequence[Key], start: int, count: int) -> Rows:
    """Return the rows at positions start to start + count - 1 of an endless sequence of reshuffled epochs.

    Every epoch visits every row once. An empty pool gives an empty array.
    """
    if not len(pool):
        return np.empty(0, np.int64)
    epochs, places = np.divmod(np.arange(start, start + count), len(pool))
    drawn = np.empty(count, np.int64)
    for epoch in np.unique(epochs).tolist():
        inside = epochs == epoch
        drawn[inside] = pool[_permutation(tuple(key), epoch, len(pool))[places[inside]]]
    return drawn


@lru_cache(maxsize=32)
def _permutation(key: tuple[Key, ...], epoch: int, length: int) -> Rows:
    """Return the order of one epoch; cached because consecutive steps share it."""
    order = stream(*key, "epoch", epoch).permutation(length)
    order.setflags(write=False)
    return order
