"""What a site says about itself before the first round: what it declared, or counts with small cells suppressed.

A site that trains with differential privacy only says what the hospital declared by hand, so that no card tells
anything of a patient that the ledger does not know of. Another counts its images, in coarse histograms.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import numpy as np
import numpy.typing as npt

from client.policy import SitePolicy
from client.population import PopulationSettings
from multimix.contract.messages import ClassCounts, MeanMask, SiteCard
from multimix.contract.suppression import hide_small_cells, lower_parts
from multimix.data.hospitals import Hospital
from multimix.data.pseudonyms import Pseudonyms
from multimix.data.sampling import Pools, mask_rows, patients
from multimix.data.store import Store
from multimix.errors import Refused
from multimix.evaluation import reduce_mean_mask
from multimix.network import CLASSES

SIDES: Final = (512, 1024, 2048)  # pixels of the longer side: edges of its histogram
BRIGHTNESS_BINS: Final = 8
VIEWS: Final = frozenset({"PA", "AP", "frontal", "unknown"})
IMAGES_EDGES: Final = (2, 4, 10)  # images of a patient: edges of their histogram


@dataclass(frozen=True)
class Declared:
    """What a hospital declared of its patients, and the secret under which the card's fingerprint is made."""

    population: PopulationSettings
    pseudonyms: Pseudonyms
    non_private_signed: Callable[[], bool] = lambda: False  # whether the officer allows training without privacy


def card_for(
    hospital: Hospital, store: Store, policy: SitePolicy, *, declared: Declared | None, device: str, synthetic: bool
) -> SiteCard:
    """Return the card that policy lets leave: declared numbers only, unless policy and officer allow more.

    Raises:
        Refused: as `site_card`, which a site that declared nothing gets.
    """
    if declared is None or (policy.allow_non_private and declared.non_private_signed()):
        return site_card(hospital, store, policy, device=device, synthetic=synthetic)
    return declared_card(hospital, store, declared, device=device, synthetic=synthetic)


def declared_card(hospital: Hospital, store: Store, declared: Declared, *, device: str, synthetic: bool) -> SiteCard:
    """Say what the hospital declared; nothing is counted, averaged or otherwise computed from the images.

    The one thing that depends on them is the fingerprint, which shows a server that data changed within a job. It is
    an HMAC under the site's secret: nobody without it can tell whether a given image is in the store.
    """
    population = declared.population
    patients_declared = population.declared_patients
    return SiteCard(
        site=hospital.name,
        role=hospital.role,
        synthetic=synthetic,
        device=device,
        image_size=store.image_size,
        images=patients_declared,
        patients=patients_declared,
        training_patients=patients_declared,
        labelled_patients=population.declared_labels,
        masked_patients=population.declared_masks,
        conventions=tuple(sorted(population.declared_masks)),
        data_fingerprint=declared.pseudonyms.of("card fingerprint", store.fingerprint),
        software=_software(),
    )


def site_card(hospital: Hospital, store: Store, policy: SitePolicy, *, device: str, synthetic: bool) -> SiteCard:
    """Count patients; hide cells below the policy's smallest cohort, and others where those would follow.

    Raises:
        Refused: `cohort_too_small` if the whole site has fewer patients than the smallest cohort.
    """
    minimum = policy.minimum_cohort
    everyone = patients(store, hospital.rows)
    if everyone < minimum:
        raise Refused("cohort_too_small")
    pools = hospital.pools(store, None)
    true = patients(store, np.union1d(pools.labelled_classification, pools.unlabelled_classification))
    training = lower_parts({"training": true}, everyone, minimum)["training"]
    labelled = lower_parts(_labelled(store, pools), training, minimum)
    masked = _masked(hospital, store, training, minimum)
    histograms, withheld = _histograms(hospital, store, minimum)
    return SiteCard(
        site=hospital.name,
        role=hospital.role,
        synthetic=synthetic,
        device=device,
        image_size=store.image_size,
        images=_images(
            len(hospital.rows), everyone, minimum, hidden=any(name.startswith("images.") for name in withheld)
        ),
        patients=everyone,
        training_patients=training,
        labelled_patients=ClassCounts(**labelled),
        masked_patients=masked,
        conventions=_conventions(hospital, store, masked, minimum),
        mean_masks=_mean_masks(hospital, store, masked, policy),
        histograms=histograms,
        withheld=withheld,
        data_fingerprint=store.fingerprint,
        software=_software(),
    )


def _software() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": version("torch"), "flwr": version("flwr")}


def _images(images: int, everyone: int, minimum: int, *, hidden: bool) -> int:
    """Return the images, or the patients if the difference would count the few who have several images.

    `hidden` says that a cell of the histogram of images is: it would follow from the number of images.
    """
    return everyone if hidden or images - everyone < minimum else images


def _labelled(store: Store, pools: Pools) -> dict[str, int]:
    rows = pools.labelled_classification
    return {name: patients(store, rows[store.label[rows] == i]) for i, name in enumerate(CLASSES)}


def _conventions(hospital: Hospital, store: Store, masked: Mapping[str, int], minimum: int) -> tuple[str, ...]:
    """Return the conventions of all masks, test patients' too, that enough patients have."""
    rows = hospital.rows[store.mask_row[hospital.rows] >= 0]
    of_each = {
        name: patients(store, rows[store.convention[rows] == name]) for name in set(store.convention[rows].tolist())
    }
    return tuple(sorted(masked.keys() | {name for name, count in of_each.items() if count >= minimum}))


def _masked(hospital: Hospital, store: Store, training: int, minimum: int) -> dict[str, int]:
    """Return the training patients with a mask, by convention; a convention of too few is not named."""
    rows = mask_rows(store, hospital.evaluation_rows(store, "train"), None)
    conventions = sorted(set(store.convention[rows].tolist()))
    counts = {name: patients(store, hospital.pools(store, name).labelled_segmentation) for name in conventions}
    return {name: count for name, count in lower_parts(counts, training, minimum).items() if count}


def _mean_masks(hospital: Hospital, store: Store, masked: Mapping[str, int], policy: SitePolicy) -> dict[str, MeanMask]:
    if not policy.release_mean_mask:
        return {}
    enough = [name for name, count in masked.items() if count >= policy.minimum_cohort]
    rows = {name: hospital.pools(store, name).labelled_segmentation for name in enough}
    return {
        name: tuple(int(value) for value in np.rint(reduce_mean_mask(store, each).ravel() * 255))
        for name, each in rows.items()
    }


def _histograms(hospital: Hospital, store: Store, minimum: int) -> tuple[dict[str, dict[str, int]], tuple[str, ...]]:
    """Return tables of patients, each in one cell of each table, and the names of the cells that are hidden."""
    rows = hospital.rows
    people, first, group, counts = np.unique(
        store.patient[rows], return_index=True, return_inverse=True, return_counts=True
    )
    tables = {
        "view": _views(store.view[rows], group, len(people)),
        "images": _binned(counts, IMAGES_EDGES),
        "longest_side": _binned(store.longest_side[rows[first]], SIDES),
        "brightness": _binned(store.brightness[rows[first]], range(32, 256, 256 // BRIGHTNESS_BINS)),
    }
    result: dict[str, dict[str, int]] = {}
    withheld: list[str] = []
    for table, cells in tables.items():
        shown, hidden = hide_small_cells(cells, minimum)
        result[table] = {name: count for name, count in shown.items() if name not in hidden}
        withheld += [f"{table}.{name}" for name in hidden]
    return result, tuple(sorted(withheld))


def _views(views: npt.NDArray[np.str_], group: npt.NDArray[np.int64], count: int) -> dict[str, int]:
    """Return the patients of each view; with several views a patient is `mixed`. `group` numbers the patients."""
    # A manifest may say anything here, and this leaves the site.
    first = [(view.split() or ["unknown"])[0] for view in views.tolist()]
    known = [view if view in VIEWS else "other" for view in first]
    names, codes = np.unique(known, return_inverse=True)
    lowest, highest = np.full(count, len(names)), np.full(count, -1)
    np.minimum.at(lowest, group, codes)
    np.maximum.at(highest, group, codes)
    cells = {name: int(((lowest == i) & (highest == i)).sum()) for i, name in enumerate(names.tolist())}
    return {**cells, "mixed": int((lowest != highest).sum())}


def _binned(values: npt.NDArray[np.generic], edges: Sequence[int]) -> dict[str, int]:
    """Return counts by half-open bin, named by its bounds."""
    edges = list(edges)
    bins = np.searchsorted(np.array(edges), values, side="right")
    lows, highs = ["0", *map(str, edges)], [*(str(edge - 1) for edge in edges), ""]
    return {f"{low}-{high}": int((bins == i).sum()) for i, (low, high) in enumerate(zip(lows, highs, strict=True))}
