"""Generations that a private round was trained on stay until the round cannot be replayed any more."""

import pytest
from intake_sites import found_image, make_site, store_of
from test_intake_generation import grow

from client.intake.generation import KEPT, generations, remove_all_but_current
from client.intake.pinned import fingerprints_in_use, pinned_store
from client.population import PopulationSettings
from multimix.errors import Refused
from multimix.privacy.ledger import FILE, create_ledger, open_ledger
from multimix.privacy.reservations import Reservations
from tests.privacy import sample_ledger as sample


@pytest.fixture
def site(tmp_path):
    made = make_site(tmp_path / "site", population=PopulationSettings(declared_patients=100))
    create_ledger(made.ledger, site="clinic", population="patients")
    grow(made, found_image(made, "1", grey=1))
    return made


def trained_on(site, fingerprint: str) -> None:
    """Answer a round on the data of this fingerprint."""
    kept, bound = Reservations(site.ledger), sample.binding(fingerprint=fingerprint)
    with open_ledger(site.ledger, site="clinic", population="patients") as ledger:
        made = kept.reserve(ledger, lambda hashed: sample.reservation(binding=bound, commitment=hashed))[0]
        kept.keep_order(ledger, bound, b"order")
        kept.keep_reply(ledger, made.sequence, b"reply")


def grow_beyond_what_is_kept(site) -> None:
    for n in range(2, 2 + KEPT):
        grow(site, found_image(site, f"{n}", grey=n))


def test_a_generation_that_a_round_was_trained_on_stays_and_opens(site):
    first = store_of(site).fingerprint
    trained_on(site, first)
    grow_beyond_what_is_kept(site)
    assert generations(site.store) == [1, *range(2, 2 + KEPT)]
    assert pinned_store(site.store, first).fingerprint == first
    assert store_of(site).fingerprint != first


def test_without_a_round_it_goes(site):
    first = store_of(site).fingerprint
    grow_beyond_what_is_kept(site)
    with pytest.raises(Refused, match="generation_gone"):
        pinned_store(site.store, first)


def test_once_the_round_s_order_is_purged_it_goes_with_the_next_intake(site):
    trained_on(site, store_of(site).fingerprint)
    with open_ledger(site.ledger, site="clinic", population="patients") as ledger:
        Reservations(site.ledger).purge(ledger)
    grow_beyond_what_is_kept(site)
    assert generations(site.store) == list(range(2, 2 + KEPT))


def test_the_purge_of_a_patient_removes_it_all_the_same(site):
    first = store_of(site).fingerprint
    trained_on(site, first)
    grow_beyond_what_is_kept(site)
    remove_all_but_current(site.store)
    with pytest.raises(Refused, match="generation_gone"):
        pinned_store(site.store, first)


def test_a_ledger_that_cannot_be_read_keeps_every_generation(site):
    trained_on(site, store_of(site).fingerprint)
    (site.ledger / FILE).write_text("nonsense\n")
    assert fingerprints_in_use(site) is None
    grow_beyond_what_is_kept(site)
    assert generations(site.store)[0] == 1
