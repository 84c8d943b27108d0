"""The hospital on disk as the site that trains: its current generation, its policy, its budget of everything."""

from typing import TYPE_CHECKING

import numpy as np

from client.card import site_card
from client.settings import SiteFolder
from multimix.contract.messages import SiteCard
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
    return site_card(hospital, store, site.settings.policy, device=device, synthetic=False)
