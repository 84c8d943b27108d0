"""`multimix-site join`, as a person at the hospital runs it, with a kit that `multimix-server kit` has made."""

import json

import pytest
import typer
from typer.testing import CliRunner

from client.join_cli import register
from client.settings import open_site
from server.provision.admission import admit
from server.provision.folder import FederationSettings
from server.provision.kits import kit_bytes
from server.provision.rotation import new_federation

SENTINEL = "MUELLER"
APP = typer.Typer(pretty_exceptions_enable=False)
register(APP)


@pytest.fixture
def federation(tmp_path):
    return new_federation(tmp_path / "federation", FederationSettings(name="lungs", address="a.example:443"))


@pytest.fixture
def kit(federation, tmp_path):
    file = tmp_path / f"{SENTINEL}.zip"
    file.write_bytes(kit_bytes(federation, "north"))
    return file


@pytest.fixture
def path(tmp_path):
    return tmp_path / f"site-{SENTINEL}"


def run(kit, path, *words):
    done = CliRunner().invoke(APP, [str(word) for word in (kit, "--folder", path, *words)])
    assert SENTINEL not in done.stdout + done.stderr
    return done


def fingerprint_of(federation):
    from multimix.contract.kit import coordinator_fingerprint

    return coordinator_fingerprint(federation.coordinator_key())


def test_what_join_prints_is_what_the_coordinator_admits(kit, path, federation):
    done = run(kit, path, "--fingerprint", fingerprint_of(federation), "--json")
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    *words, key = said["admit"].split(maxsplit=3)
    assert words == ["multimix-server", "admit", "north"]
    assert admit(federation.path, "north", key.strip("'")).settings.sites["north"].public_key == said["public_key"]


def test_the_line_to_admit_stands_whole_on_a_line_of_its_own(kit, path, federation):
    done = run(kit, path, "--fingerprint", fingerprint_of(federation))
    assert done.stdout.splitlines()[-1].startswith("multimix-server admit north 'ecdsa-sha2-nistp384 ")
    assert done.stdout.endswith("'\n")


def test_a_wrong_fingerprint_leaves_no_trace(kit, path):
    done = run(kit, path, "--fingerprint", "0000")
    assert (done.exit_code, "fingerprint_wrong" in done.stderr) == (2, True)
    assert not path.exists()


def test_without_a_fingerprint_and_a_person_it_shows_the_kits_and_stops(kit, path, federation):
    done = run(kit, path)
    assert done.exit_code == 2
    assert fingerprint_of(federation) in done.stderr
    assert not path.exists()


def test_declared_numbers_fill_the_population_and_begin_the_ledger(kit, path, federation):
    options = ("--declared-patients", 800, "--declared-normal", 300, "--declared-pneumonia", 400, "--declared-masks",
               100, "--epsilon-per-run", 2, "--epsilon-lifetime", 6)  # fmt: skip
    done = run(kit, path, "--fingerprint", fingerprint_of(federation), "--json", *options)
    assert json.loads(done.stdout)["ledger_begun"] is True
    population = open_site(path).population
    assert (population.declared_patients, population.epsilon_per_run, population.epsilon_lifetime) == (800, 2.0, 6.0)
    assert population.declared_masks == {"mediastinum_excluded": 100}
    again = run(kit, path, "--fingerprint", fingerprint_of(federation), "--json", *options)
    assert (again.exit_code, json.loads(again.stdout)["ledger_begun"]) == (0, False)


def test_a_population_without_its_patients_is_refused(kit, path, federation):
    done = run(kit, path, "--fingerprint", fingerprint_of(federation), "--epsilon-per-run", 2)
    assert (done.exit_code, "population_incomplete" in done.stderr) == (2, True)


def test_a_number_that_cannot_be_is_refused_with_its_name(kit, path, federation):
    done = run(
        kit, path, "--fingerprint", fingerprint_of(federation), "--declared-patients", 800, "--epsilon-per-run", -1
    )
    assert (done.exit_code, "population.epsilon_per_run" in done.stderr) == (2, True)
