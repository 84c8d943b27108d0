"""The hospital on disk as the site that trains: its current generation, its policy, its budget of everything."""

from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.books import Books
from client.card import Declared, card_for
from client.settings import SiteFolder
from client.site import LocalSite
from multimix.contract.messages import SiteCard
from multimix.contract.signing import public_key
from multimix.data.hospitals import Hospital
from multimix.data.sampling import Budget
from multimix.data.store import open_store
from multimix.errors import SiteError, StoreError

if TYPE_CHECKING:
    from multimix.data.store import Store


def hospital_of(site: SiteFolder) -> tuple[Hospital, "Store"]:
    """Return the site's images as a hospital that trains, and their store, pinned to the current generation.

    Raises:
        SiteError: `store_missing`, `store_damaged`, `store_empty`.
    """
    try:
        store = open_store(site.store)
    except StoreError as error:
        remedy = "Take images in first: multimix-site intake" if error.reason == "store_missing" else "Run an intake."
        raise SiteError(error.reason, f"The site has no usable store. {remedy}.") from None
    if not len(store):
        raise SiteError("store_empty", "No image is accepted yet. Take images in, then look at the review queue.")
    hospital = Hospital(
        name=site.settings.name,
        role="train",
        store_path=store.path,
        rows=np.arange(len(store)),
        budget=Budget(),
        conventions=None,
        seed=0,
    )
    return hospital, store


def card_of(site: SiteFolder, *, device: str) -> SiteCard:
    """Return the very card that the site would send.

    Raises:
        SiteError: as `hospital_of`; Refused: `cohort_too_small`.
    """
    hospital, store = hospital_of(site)
    policy = site.settings.policy
    return card_for(hospital, store, policy, declared=declared_of(site), device=device, synthetic=False)


def declared_of(site: SiteFolder) -> Declared | None:
    """Return what the hospital declared of its patients, if it did; SiteError as `SiteFolder.read_secret`."""
    population = site.settings.population
    if population is None:
        return None
    return Declared(population, site.card_pseudonyms(), books_of(site).non_private_signed)


def books_of(site: SiteFolder) -> Books:
    """Return the books of the site's population; its ledger is made by `multimix-site ledger begin`.

    Raises:
        SiteError: `population_missing`.
    """
    return Books(site.ledger, site.settings.name, site.population)


def local_site(site: SiteFolder, coordinator: Ed25519PublicKey | None = None, *, device: str = "auto") -> LocalSite:
    """Return the site that trains on the store's current generation, under the policy and the budget of `site.toml`.

    Args:
        site: The folder.
        coordinator: Who may order training; the key in `site.toml` unless given.
        device: To train on.

    Raises:
        SiteError: `population_missing`, `coordinator_missing`, as `hospital_of` and `SiteFolder.read_secret`.
    """
    books = books_of(site)
    coordinator = coordinator or _coordinator(site)
    hospital, _ = hospital_of(site)
    return LocalSite(
        hospital=hospital,
        policy=site.settings.policy,
        coordinator=coordinator,
        device=device,
        books_of=lambda _plan: books,
        declared=declared_of(site),
    )


def _coordinator(site: SiteFolder) -> Ed25519PublicKey:
    server = site.settings.server
    if server is None or server.coordinator_key is None:
        raise SiteError(
            "coordinator_missing",
            "site.toml names no coordinator_key in [server]: nobody may order training here. Take it from the "
            "coordinator's kit.",
        )
    return public_key(server.coordinator_key)
