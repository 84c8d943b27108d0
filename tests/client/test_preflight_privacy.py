"""`multimix-site check` on privacy: a population, its ledger, its budget, and an officer where one is needed."""

import pytest
from test_card import SIZE, many, write

from client.policy import SitePolicy
from client.population import PopulationSettings
from client.preflight.privacy import privacy_lines
from client.settings import ServerSettings, SiteFolder, new_site
from multimix.privacy.ledger import FILE, KEY_FILE, create_ledger, open_ledger
from tests.privacy import sample_ledger as sample

PATIENTS = 30  # of which all train
POPULATION = PopulationSettings(declared_patients=PATIENTS, delta=1e-3)


def with_settings(site, **changes):
    return SiteFolder(site.path, site.settings.model_copy(update=changes))


def declaring(site, **changes):
    return with_settings(site, population=POPULATION.model_copy(update=changes))


@pytest.fixture
def site(tmp_path):
    made = declaring(new_site(tmp_path / "north", "north", image_size=SIZE))
    write(made.store, many(PATIENTS))
    create_ledger(made.ledger, site="north", population="patients")
    return made


def add(site, *bodies):
    with open_ledger(site.ledger, site="north", population="patients") as ledger:
        for body in bodies:
            ledger.append(body)


def complaints(site):
    """Return status and finding of all lines that do not pass."""
    lines = list(privacy_lines(site))
    assert {line.name for line in lines} == {"privacy"}
    return [(line.status, line.finding) for line in lines if line.status != "PASS"]


def the_complaint(site, status):
    found = complaints(site)
    assert [each for each, _ in found] == [status], found
    return found[0][1]


def test_a_declared_population_with_a_whole_ledger_and_budget_left_passes(site):
    add(site, sample.reservation())
    assert complaints(site) == []
    assert any("of 8 is spent" in line.finding for line in privacy_lines(site))


def test_a_site_that_declares_nobody_is_warned(site):
    assert "No patient population" in the_complaint(with_settings(site, population=None), "WARN")


def test_a_missing_ledger_fails(tmp_path, site):
    assert "(ledger_missing)" in the_complaint(declaring(site, ledger=tmp_path / "elsewhere"), "FAIL")


def test_a_damaged_ledger_fails(site):
    file = site.ledger / FILE
    file.write_bytes(file.read_bytes().replace(b"north", b"south"))
    assert "(ledger_damaged)" in the_complaint(site, "FAIL")


def test_a_ledger_without_its_key_fails(site):
    (site.ledger / KEY_FILE).unlink()
    assert "key is missing" in the_complaint(site, "FAIL")


@pytest.mark.parametrize(("name", "mode"), [("", 0o750), (KEY_FILE, 0o640)])
def test_a_ledger_that_others_can_get_at_fails(site, name, mode):
    (site.ledger / name).chmod(mode)
    assert "Others may use" in the_complaint(site, "FAIL")


def test_allowing_training_without_privacy_fails_where_no_officer_is_named(site):
    allowing = with_settings(site, policy=SitePolicy(allow_non_private=True))
    assert "no officer" in the_complaint(allowing, "FAIL")
    named = with_settings(allowing, population=POPULATION.model_copy(update={"officer_key": sample.COORDINATOR_KEY}))
    assert complaints(named) == []


def test_a_spent_budget_warns_before_a_round_is_refused(site):
    add(site, sample.reservation())
    assert "of 0.01 is spent" in the_complaint(declaring(site, epsilon_lifetime=0.01), "WARN")


@pytest.mark.parametrize("body", [sample.non_private(), sample.reservation(seeded=True)])
def test_an_infinite_epsilon_warns(site, body):
    add(site, body)
    assert "infinity" in the_complaint(site, "WARN")


@pytest.mark.parametrize(
    ("declared", "word"),
    [(PATIENTS + 1, "More"), (PATIENTS, ""), (PATIENTS // 2, ""), (PATIENTS // 2 - 1, "Far fewer")],
)
def test_a_declared_number_far_from_the_stores_warns_without_the_stores_number(site, declared, word):
    found = complaints(declaring(site, declared_patients=declared))
    assert [finding.startswith(word) for _, finding in found] == ([True] if word else [])
    assert str(PATIENTS) not in str(found)


def test_a_server_without_a_coordinators_key_warns(site):
    assert "coordinator's key" in the_complaint(with_settings(site, server=ServerSettings(address="a:1")), "WARN")
