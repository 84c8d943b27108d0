"""What a site that trains with differential privacy says of itself: what the hospital declared, nothing it holds."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from test_card import SIZE, Film, many, write

from client.card import Declared, declared_card
from client.hospital import books_of, card_of, hospital_of, local_site
from client.policy import SitePolicy
from client.population import PopulationSettings
from client.settings import ServerSettings, SiteFolder, new_site
from multimix.contract.messages import ClassCounts
from multimix.contract.signing import public_text
from multimix.data.pseudonyms import Pseudonyms
from multimix.errors import SiteError
from multimix.privacy.ledger import FILE as LEDGER
from multimix.privacy.ledger import create_ledger, open_ledger
from multimix.privacy.officer import decide

COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
OFFICER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
POPULATION = PopulationSettings(
    declared_patients=500,
    declared_labels=ClassCounts(normal=200, pneumonia=150),
    declared_masks={"mediastinum_excluded": 100, "behind_heart": 50},
)


@pytest.fixture
def site(tmp_path):
    made = new_site(tmp_path / "north", "north", image_size=SIZE)
    write(made.store, [*many(30, mask=True, label="normal"), *many(3, 30, view="AP")])
    return with_settings(made, population=POPULATION)


def with_settings(site, **changes):
    return SiteFolder(site.path, site.settings.model_copy(update=changes))


def declared(folder, films, secret=b"s" * 32):
    site = new_site(folder, "north", image_size=SIZE)
    write(site.store, films)
    hospital, store = hospital_of(site)
    return declared_card(hospital, store, Declared(POPULATION, Pseudonyms(secret)), device="cpu", synthetic=False)


def test_every_number_on_a_private_card_is_the_declared_one(site):
    found = card_of(site, device="cpu")
    assert (found.images, found.patients, found.training_patients) == (500, 500, 500)
    assert found.labelled_patients == POPULATION.declared_labels
    assert found.masked_patients == POPULATION.declared_masks
    assert found.conventions == ("behind_heart", "mediastinum_excluded")
    assert (found.mean_masks, found.histograms, found.withheld) == ({}, {}, ())


@pytest.fixture
def open_site(site):
    """A site whose policy allows training without privacy, with an officer and a ledger."""
    population = POPULATION.model_copy(update={"officer_key": public_text(OFFICER)})
    create_ledger(site.ledger, site="north", population=population.name)
    return with_settings(site, policy=SitePolicy(allow_non_private=True), population=population)


def officer_signs(site, action="allow_non_private"):
    with open_ledger(site.ledger, site="north", population=POPULATION.name) as ledger:
        decide(ledger, action, "agreed", OFFICER, officer_key=public_text(OFFICER))


def patients_shown(site):
    """On the card that is printed and on the one that is sent."""
    printed, sent = card_of(site, device="cpu"), local_site(site, COORDINATOR.public_key(), device="cpu").describe()
    assert printed == sent
    return printed.patients


def test_a_site_that_may_train_without_privacy_counts_its_patients(open_site):
    officer_signs(open_site)
    assert patients_shown(open_site) == 33


@pytest.mark.parametrize("action", ["note", "private_after_non_private"])
def test_nothing_is_counted_before_the_officer_has_signed(open_site, action):
    assert patients_shown(open_site) == 500
    officer_signs(open_site, action)
    assert patients_shown(open_site) == 500


def test_the_officer_s_signature_alone_counts_nothing(open_site):
    officer_signs(open_site)
    assert patients_shown(with_settings(open_site, policy=SitePolicy())) == 500


def test_a_signature_counts_nothing_where_the_settings_name_no_officer(open_site):
    officer_signs(open_site)
    assert patients_shown(with_settings(open_site, population=POPULATION)) == 500


def test_nothing_is_counted_where_the_ledger_cannot_be_read(open_site):
    officer_signs(open_site)
    ledger = open_site.ledger / LEDGER
    ledger.write_bytes(ledger.read_bytes().replace(b"agreed", b"denied"))
    assert patients_shown(open_site) == 500
    ledger.unlink()
    assert patients_shown(open_site) == 500


def test_a_site_that_declared_nothing_counts_its_patients(site):
    assert card_of(with_settings(site, population=None), device="cpu").patients == 33


film = st.builds(
    Film,
    patient=st.sampled_from([f"p{number}" for number in range(9)]),
    label=st.sampled_from(["normal", "pneumonia", "other", "unknown"]),
    mask=st.booleans(),
    split=st.sampled_from(["train", "test"]),
    view=st.sampled_from(["PA", "AP", "odd"]),
    side=st.sampled_from([500, 3000]),
    grey=st.integers(0, 255),
)


@settings(max_examples=10, deadline=None)
@given(films=st.lists(film, min_size=1, max_size=12))
def test_whatever_a_site_holds_its_private_card_is_the_same_but_for_the_fingerprint(tmp_path_factory, films):
    folder = tmp_path_factory.mktemp("card")
    one, other = declared(folder / "a", films), declared(folder / "b", many(40, mask=True))
    assert one.model_copy(update={"data_fingerprint": ""}) == other.model_copy(update={"data_fingerprint": ""})


def test_the_fingerprint_tells_changed_data_and_nothing_to_who_has_not_the_secret(tmp_path):
    films = many(12)
    same, again = (declared(tmp_path / name, films).data_fingerprint for name in "ab")
    changed = declared(tmp_path / "c", films[1:]).data_fingerprint
    another_secret = declared(tmp_path / "d", films, b"t" * 32).data_fingerprint
    unkeyed = write(tmp_path / "e", films).fingerprint
    assert same == again
    assert len({same, changed, another_secret, unkeyed}) == 4


def test_the_site_that_trains_has_the_books_the_policy_and_the_coordinator_of_its_settings(site):
    named = with_settings(
        site,
        server=ServerSettings(address="a:1", coordinator_key=public_text(COORDINATOR)),
        policy=SitePolicy(maximum_clip_norm=2.0),
    )
    found = local_site(named, device="cpu")
    assert found.coordinator == COORDINATOR.public_key()
    assert found.policy.maximum_clip_norm == 2.0
    books = found.books_of(None)
    assert books == books_of(named)
    assert (books.folder, books.site, books.population, books.seed) == (site.path / "ledger", "north", POPULATION, None)


def test_the_site_that_trains_describes_itself_by_its_private_card(site):
    assert local_site(site, COORDINATOR.public_key(), device="cpu").describe() == card_of(site, device="cpu")


@pytest.mark.parametrize(
    ("changes", "reason"), [({"population": None}, "population_missing"), ({}, "coordinator_missing")]
)
def test_a_site_trains_for_nobody_without_population_and_coordinator(site, changes, reason):
    with pytest.raises(SiteError) as refused:
        local_site(with_settings(site, **changes), device="cpu")
    assert refused.value.reason == reason
