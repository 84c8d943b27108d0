"""Who owns which images: real sources, simulated sites or phantoms, as the hospitals of a federation.

The images are decoded once into a shared store below a cache folder; a hospital is a name, its rows of that
store and its budget of labels and masks. A held-out hospital trains nobody: all its images are test images.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from multimix.data.cache import Progress, cached_store, locked_cache
from multimix.data.decode import Preprocessing
from multimix.data.manifest import read_manifest, split_ranked
from multimix.data.sampling import (
    Budget,
    Pools,
    Rows,
    label_rows,
    make_pools,
    mask_rows,
    parse_budget,
    site_budgets,
    union,
)
from multimix.data.store import CURRENT, Store, open_store
from multimix.errors import ManifestError, RunConfigError
from multimix.randomness import derive_seed, stream

SITE_COLUMNS: Final = ("source", "site")
SMALLEST_SITE: Final = 10  # patients; smaller sites of the site column are taken together
_LONGEST_NAME: Final = 56
POOLED: Final = "pooled"  # the name of the site that has everything


def _checked_budget(text: str) -> str:
    parse_budget(text)
    return text


BudgetText = Annotated[str, AfterValidator(_checked_budget)]


class FederationData(BaseModel):
    """Which images take part and how they are dealt to hospitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path | None = Field(default=None, description="Manifest, its folder, or a folder of site folders.")
    phantom_hospitals: int = Field(default=3, ge=1)
    phantom_patients: int = Field(default=60, ge=1)
    site_column: str = Field(default="source", description="The column that names the hospital: source or site.")
    hold_out: tuple[str, ...] = Field(default=(), description="Hospitals that only test.")
    labels: BudgetText = Field(default="", description='Labelled images: "" all, "200" per site, "200,jsrt=40".')
    masks: BudgetText = Field(default="", description="Masks, in the same syntax.")
    pooled: bool = Field(default=False, description="One site has all that the training hospitals have.")
    dirichlet_sites: int = Field(default=0, ge=0, description="Deal the training patients to this many sites.")
    dirichlet_alpha: float = Field(default=0.5, gt=0, description="Small is skewed: sites of nearly one label.")
    image_size: int = Field(default=128, ge=16, le=1024)
    fit: Literal["pad", "stretch"] = "pad"
    seed: int = 0
    split_seed: int | None = Field(default=None, description="Of who trains and who tests; None is the seed.")
    mask_convention: str = Field(default="auto", description="auto, all, or the name of a convention.")


@dataclass(frozen=True, eq=False)
class Hospital:
    """A hospital's share of a store."""

    name: str
    role: Literal["train", "held-out"]
    store_path: Path
    rows: Rows
    budget: Budget
    conventions: frozenset[str] | None  # of the masks it may train on; None is all
    seed: int
    resplit: npt.NDArray[np.str_] | None = None  # of each row, where a simulated site splits anew
    members: tuple["Hospital", ...] = ()  # of a pooled site: the hospitals whose images, labels and masks it has

    def store(self) -> Store:
        """Open the store that the rows count in."""
        return open_store(self.store_path)

    def evaluation_rows(self, store: Store, split: str) -> Rows:
        """Return the rows of a split; of a held-out hospital all are test."""
        if self.role == "held-out":
            return self.rows if split == "test" else self.rows[:0]
        splits = store.split[self.rows] if self.resplit is None else self.resplit
        chosen: Rows = self.rows[splits == split]
        return chosen

    def pools(self, store: Store, convention: str | None) -> Pools:
        """Return what the hospital trains on, with masks of one convention (None is all).

        Of a held-out hospital all pools are empty; a pooled site has those of its members together.
        """
        if self.members:
            return union([member.pools(store, convention) for member in self.members])
        return make_pools(
            store,
            self.evaluation_rows(store, "train"),
            budget=self.budget,
            conventions=None if convention is None else frozenset((convention,)),
            seed=self.seed,
            site=self.name,
        )


def hospitals(config: FederationData, *, cache: Path, progress: Progress | None = None) -> tuple[Hospital, ...]:
    """Build or reopen the store and return the hospitals sorted by name.

    Raises:
        ManifestError, StoreError: the images cannot be used.
        RunConfigError: a name or number in the configuration does not fit them; the message lists what does.
    """
    if config.site_column not in SITE_COLUMNS:
        raise _unknown("site_column_unknown", "site_column", config.site_column, SITE_COLUMNS)
    everyone = _site_folders(config) or _by_name(config, _cached_store(config, cache, progress))
    for name in config.hold_out:
        if name not in everyone:
            raise _unknown("hospital_unknown", "hold_out", name, everyone)
    held_out = [everyone[name] for name in sorted(set(config.hold_out))]
    trainers = [hospital for name, hospital in everyone.items() if name not in config.hold_out]
    if not trainers:
        raise RunConfigError("no_hospital_trains", "hold_out names every hospital. Leave at least one to train.")
    conventions = _conventions(config, trainers, held_out)
    if config.dirichlet_sites:
        trainers = _dirichlet(config, trainers)
    trainers = _with_budgets(config, [replace(each, conventions=conventions) for each in trainers])
    if config.pooled:
        trainers = [_pooled(trainers)]
    tests = [replace(each, role="held-out", conventions=conventions) for each in held_out]
    clashes = {each.name for each in trainers} & {each.name for each in tests}
    if clashes:
        raise RunConfigError("hospital_name_taken", f"Held-out {sorted(clashes)} are named as simulated sites.")
    return tuple(sorted([*trainers, *tests], key=lambda hospital: hospital.name))


def _unknown(reason: str, key: str, value: str, known: Iterable[str]) -> RunConfigError:
    return RunConfigError(reason, f"{key}: {value!r} is not known. Choose from: {', '.join(sorted(known))}.")


def _site_folders(config: FederationData) -> dict[str, Hospital]:
    """Return the hospitals of a folder of site folders, each with the store that its own intake made; else none.

    RunConfigError `site_is_private` where one has a ledger: a simulation enters nothing there.
    """
    if config.data is None or not config.data.is_dir() or (config.data / "manifest.csv").exists():
        return {}
    found = {}
    for folder in sorted(config.data.iterdir()):
        if (folder / "store" / CURRENT).is_symlink():
            if _is_private(folder):
                raise RunConfigError(
                    "site_is_private",
                    f"{_plain(folder.name)} has a patient population or a ledger, or a site.toml that cannot be read. "
                    "A simulation would train there past the ledger: leave this site out, or train with its agent.",
                )
            store = open_store(folder / "store")
            if store.image_size != config.image_size:
                raise RunConfigError(
                    "image_size",
                    f"image-size is {config.image_size}, but the images at {folder.name} were taken in at "
                    f"{store.image_size}. Set image-size to that.",
                )
            name = _plain(folder.name) or "site"
            found[name] = _hospital(name, store, np.arange(len(store)), config.seed)
    return found


def _is_private(folder: Path) -> bool:
    """Whether a site folder declares a population or has a ledger; when unsure it does."""
    try:
        text = (folder / "site.toml").read_text("utf-8")
        return (folder / "ledger").exists() or "population" in tomllib.loads(text)
    except FileNotFoundError:
        return (folder / "ledger").exists()
    except (OSError, ValueError):
        return True


def _hospital(name: str, store: Store, rows: Rows, seed: int) -> Hospital:
    return Hospital(
        name=name, role="train", store_path=store.path, rows=rows, budget=Budget(), conventions=None, seed=seed
    )


def _by_name(config: FederationData, store: Store) -> dict[str, Hospital]:
    names = store.source if config.site_column == "source" else _site_names(store)
    return {
        name: _hospital(name, store, np.flatnonzero(names == name), config.seed) for name in np.unique(names).tolist()
    }


def _plain(name: str) -> str:
    """Return a name that can travel."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:_LONGEST_NAME]


def _site_names(store: Store) -> npt.NDArray[np.str_]:
    """Return a name that can travel for the hospital of each image, from the site column.

    Images without a site, and those of sites with fewer than 10 patients, make one hospital for each source.
    """
    names = np.array([_plain(site) for site in store.site.tolist()])
    for name in np.unique(names).tolist():
        rows = names == name
        if not name or len(np.unique(store.patient[rows])) < SMALLEST_SITE:
            names = np.where(rows, np.char.add(store.source, "-others"), names)
    return names


def _cached_store(config: FederationData, cache: Path, progress: Progress | None) -> Store:
    """Return the store of the manifest's images, or of the phantoms."""
    with locked_cache(cache):
        manifest = _manifest(config, cache)
    return cached_store(
        read_manifest(manifest),
        root=manifest.parent,
        cache=cache,
        preprocessing=Preprocessing(image_size=config.image_size, fit=config.fit),
        split_seed=config.seed if config.split_seed is None else config.split_seed,
        progress=progress,
    )


def _manifest(config: FederationData, cache: Path) -> Path:
    if config.data is not None:
        return config.data / "manifest.csv" if config.data.is_dir() else config.data
    from multimix.data.phantom import GENERATOR_VERSION, write_phantoms  # noqa: PLC0415  (scipy)

    wanted = (
        GENERATOR_VERSION,
        config.phantom_hospitals,
        config.phantom_patients,
        config.image_size,
        config.seed,
    )
    return write_phantoms(
        cache / f"phantoms-{'-'.join(map(str, wanted))}",
        hospitals=config.phantom_hospitals,
        patients=config.phantom_patients,
        image_size=config.image_size,
        seed=config.seed,
    )


def _conventions(
    config: FederationData, trainers: Sequence[Hospital], held_out: Sequence[Hospital]
) -> frozenset[str] | None:
    """Return the mask conventions to train on: the test's if it can be trained, else the most frequent."""
    if config.mask_convention == "all":
        return None
    training = _mask_counts(trainers)
    if config.mask_convention != "auto":
        if config.mask_convention not in training:
            raise _unknown(
                "mask_convention_unknown",
                "mask_convention",
                config.mask_convention,
                [*training, "all", "auto"],
            )
        return frozenset({config.mask_convention})
    tested = _mask_counts(held_out)
    if len(tested) == 1 and tested.keys() <= training.keys():
        return frozenset(tested)
    return frozenset({min(training, key=lambda name: (-training[name], name))}) if training else None


def _mask_counts(some: Sequence[Hospital]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for hospital in some:
        store = hospital.store()
        counts.update(store.convention[hospital.rows[store.mask_row[hospital.rows] >= 0]].tolist())
    return counts


def _with_budgets(config: FederationData, trainers: Sequence[Hospital]) -> list[Hospital]:
    stores = {each.name: each.store() for each in trainers}
    train = {each.name: each.evaluation_rows(stores[each.name], "train") for each in trainers}
    empty = sorted(name for name, rows in train.items() if not len(rows))
    if empty:
        raise ManifestError(
            "site_empty",
            f"No training image at {', '.join(empty)}. Hold such hospitals out, or give them a train split.",
        )
    accepted = trainers[0].conventions
    labels = {name: len(label_rows(stores[name], rows)) for name, rows in train.items()}
    masks = {name: len(mask_rows(stores[name], rows, accepted)) for name, rows in train.items()}
    label_budgets = site_budgets("labels", config.labels, labels)
    mask_budgets = site_budgets("masks", config.masks, masks)
    return [
        replace(each, budget=Budget(labels=label_budgets[each.name], masks=mask_budgets[each.name]))
        for each in trainers
    ]


def _pooled(trainers: Sequence[Hospital]) -> Hospital:
    """Return one site with the images, labels and masks of all: what a federation is compared with."""
    if len({each.store_path for each in trainers}) > 1:
        raise RunConfigError("pooled", "Site folders cannot be pooled. Leave pooled at false.")
    store = trainers[0].store()
    rows = np.concatenate([each.rows for each in trainers])
    splits = np.concatenate([store.split[each.rows] if each.resplit is None else each.resplit for each in trainers])
    order = np.argsort(rows)
    return replace(
        trainers[0], name=POOLED, rows=rows[order], resplit=splits[order], budget=Budget(), members=tuple(trainers)
    )


def _dirichlet(config: FederationData, trainers: Sequence[Hospital]) -> list[Hospital]:
    """Deal the pooled train patients to simulated sites with label-skewed shares; split each site anew.

    Per label the sites' shares are one draw of a symmetric Dirichlet (Hsu et al. 2019, arXiv:1909.06335).
    """
    if len({each.store_path for each in trainers}) > 1:
        raise RunConfigError("dirichlet_sites", "Site folders cannot be dealt anew. Leave dirichlet-sites at 0.")
    store = trainers[0].store()
    rows = np.sort(np.concatenate([hospital.evaluation_rows(store, "train") for hospital in trainers]))
    people, first = np.unique(store.patient[rows], return_index=True)
    count = config.dirichlet_sites
    if len(people) < count:
        raise RunConfigError(
            "dirichlet_sites_too_many",
            f"dirichlet_sites = {count} but there are {len(people)} training patients. Ask for fewer sites.",
        )
    owner = _dealt(store.label[rows[first]], count, config.dirichlet_alpha, config.seed)
    dealt = []
    for index in range(count):
        members = people[owner == index]
        name = f"site-{index + 1:03d}"
        site_rows = rows[np.isin(store.patient[rows], members)]
        ranked = sorted(members.tolist(), key=lambda person: derive_seed(config.seed, "split", name, person))
        splits = dict(zip(ranked, split_ranked(len(ranked)), strict=True))
        resplit = np.array([splits[person] for person in store.patient[site_rows].tolist()])
        dealt.append(replace(trainers[0], name=name, rows=site_rows, resplit=resplit))
    return dealt


def _dealt(labels: npt.NDArray[np.int8], sites: int, alpha: float, seed: int) -> npt.NDArray[np.int64]:
    """Return the site of each patient from the patients' labels; every site gets somebody."""
    owner = np.zeros(len(labels), np.int64)
    for label in np.unique(labels).tolist():
        same = np.flatnonzero(labels == label)
        random = stream(seed, "dirichlet", label)
        ends = np.round(np.cumsum(random.dirichlet([alpha] * sites)) * len(same))
        ends[-1] = len(same)
        owner[random.permutation(same)] = np.searchsorted(ends, np.arange(len(same)), side="right")
    for site in range(sites):
        if not (owner == site).any():
            largest = np.bincount(owner, minlength=sites).argmax()
            owner[np.flatnonzero(owner == largest)[-1]] = site
    return owner
