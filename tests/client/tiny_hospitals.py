"""A federation of seven tiny hospitals with known labels and masks, and signed plans for them.

Every hospital has 14 patients of one 32 px image, but the first has two: 8 train (4 of each class), 2 validate and
4 test (2 of each class). What is known of an image depends on the hospital.

`private_site` and `private_order` are the same with a ledger and under a private plan. `watched` counts the pixels
that are read, and can make reading them fail.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from client.books import Books
from client.policy import SitePolicy
from client.population import PopulationSettings
from client.site import LocalSite
from multimix.config import MethodConfig, preset, row
from multimix.contract.messages import LocalWork, RoundPlan, Weights, weights_sha256
from multimix.contract.privacy import PatientPrivacy
from multimix.contract.signing import SignedPlan, sign, simulation_key
from multimix.data.hospitals import FederationData, Hospital, hospitals
from multimix.data.store import Store
from multimix.network import new_network
from multimix.privacy.ledger import FILE, create_ledger, utcnow
from multimix.weights import export

SIZE = 32
KEY = simulation_key(0)
METHOD: MethodConfig = preset("modern", image_size=SIZE, width=2)
OPEN = SitePolicy(allow_non_private=True, minimum_cohort=1, pictures=64, release_evaluation=True)
PRIVATE = SitePolicy(minimum_expected_patients=1.0)  # as a fresh one, but that 8 patients cannot hide among 10
POPULATION = PopulationSettings(
    declared_patients=8, images_per_patient=2, delta=0.01, epsilon_per_run=3.0, epsilon_lifetime=4.0
)
DP = PatientPrivacy(
    noise_multiplier=2.0,
    clip_norm=1.0,
    sampling_rate=0.5,
    declared_patients=8,
    images_per_patient=2,
    delta=0.01,
    modules=("encoder", "classifier"),
    module_weights={"encoder": 8.0, "classifier": 8.0},
    rounds=50,
    epsilon=3.0,
)
WEIGHTS: Weights = export(new_network(METHOD.network, 0))
PRIVATE_METHOD: MethodConfig = row("enc-ssl", METHOD)  # no decoder: a fourth of the time
PRIVATE_WEIGHTS: Weights = export(new_network(PRIVATE_METHOD.network, 0))
EXPERT, HEART = "mediastinum_excluded", "behind_heart"
SPLITS = ["train"] * 8 + ["validation"] * 2 + ["test"] * 4
# What is known at each hospital: of patient i the class, and the origin of the mask.
HOSPITALS = {
    "both": (lambda i: i % 2, lambda _: "expert"),
    "labels": (lambda i: i % 2, lambda _: None),
    "masks": (lambda _: None, lambda _: "expert"),
    "bare": (lambda _: None, lambda _: None),
    "healthy": (lambda _: 0, lambda _: "expert"),
    "mixed": (lambda i: i % 2, lambda i: "expert" if i < 5 else "includes area behind heart"),
    "outside": (lambda i: i % 2, lambda _: "expert"),
}


def write_radiographs(folder: Path) -> Path:
    """Write images, masks and manifest; return the folder."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "mask", "source", "patient_id", "label", "split", "mask_origin"])
        for hospital, (label_of, origin_of) in HOSPITALS.items():
            for image, patient in enumerate([0, *range(14)]):
                name, label, origin = f"{hospital}{image}.png", label_of(patient), origin_of(patient)
                Image.fromarray(random.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(folder / name)
                mask = ""
                if origin:
                    mask = f"{hospital}{image}-mask.png"
                    lung = np.zeros((SIZE, SIZE), np.uint8)
                    lung[8:24, 4 + patient : 20] = 255
                    Image.fromarray(lung).save(folder / mask)
                known = "" if label is None else ("normal", "pneumonia")[label]
                rows.writerow([name, mask, hospital, f"secret-{patient}", known, SPLITS[patient], origin or ""])
    return folder


def dealt(data: Path, cache: Path, **fields: object) -> dict[str, Hospital]:
    """Return the hospitals by name; `outside` is held out."""
    config = FederationData(data=data, image_size=SIZE, hold_out=("outside",), mask_convention="all", **fields)
    return {hospital.name: hospital for hospital in hospitals(config, cache=cache)}


def site_of(hospital: Hospital, policy: SitePolicy = OPEN) -> LocalSite:
    """Return a fresh site, as after a restart."""
    return LocalSite(hospital, policy, KEY.public_key(), device="cpu")


def plan(kind: str = "train", weights: Weights | None = None, **fields: object) -> RoundPlan:
    """Return a plan that every open site of these accepts, but for the fields given."""
    asked = {
        "job_id": "job",
        "round": 1,
        "kind": kind,
        "seed": 5,
        "method": METHOD,
        "work": LocalWork(steps=2, images_per_group=2, total_steps=10) if kind == "train" else None,
        "minimum_class_patients": 3,
        "evaluate_on": "none" if kind == "train" else "test",
        "weights_sha256": weights_sha256(WEIGHTS if weights is None else weights),
    }
    return RoundPlan.model_validate(asked | fields)


def order(kind: str = "train", weights: Weights | None = None, **fields: object) -> SignedPlan:
    """Return such a plan, signed by the coordinator."""
    return sign(plan(kind, weights, **fields), KEY)


def private_site(
    hospital: Hospital,
    folder: Path,
    *,
    population: PopulationSettings = POPULATION,
    policy: SitePolicy = PRIVATE,
    now: Callable[[], datetime] = utcnow,
) -> LocalSite:
    """Return a fresh site, as after a restart, with the ledger in the folder; one is begun where there is none."""
    if not (folder / FILE).exists():
        create_ledger(folder, site=hospital.name, population=population.name, now=now)
    books = Books(folder, hospital.name, population, now=now)
    return LocalSite(hospital, policy, KEY.public_key(), device="cpu", books_of=lambda _plan: books)


def private_plan(dp: dict[str, object] | None = None, **fields: object) -> RoundPlan:
    """Return a private plan that a private site of these accepts, but for what is given."""
    asked = {
        "method": PRIVATE_METHOD,
        "dp": DP.model_copy(update=dp or {}),
        "work": LocalWork(steps=2, images_per_group=1, total_steps=100),
    }
    return plan("train", **({"weights": PRIVATE_WEIGHTS} | asked | fields))


def private_order(dp: dict[str, object] | None = None, **fields: object) -> SignedPlan:
    """Return such a plan, signed by the coordinator."""
    return sign(private_plan(dp, **fields), KEY)


@dataclass(frozen=True, eq=False)
class WatchedStore(Store):
    """A store that tells which rows were read, and fails with the errors given, one a read."""

    reads: list[int] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)

    def load_images(self, rows):
        """As of the store, but watched."""
        if self.faults:
            raise self.faults.pop()
        self.reads.extend(rows.tolist())
        return super().load_images(rows)


def watched(site: LocalSite) -> WatchedStore:
    """Put a watched store in the place of the site's own and return it."""
    site.store = WatchedStore(**{each.name: getattr(site.store, each.name) for each in fields(Store)})
    return site.store
