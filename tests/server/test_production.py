"""The ServerApp of a federation: its folder says who, which key and where; nothing of a simulation is looked for."""

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fake_network import FakeNetwork, key_of
from fake_sites import PLAN_KEY, FakeSite, card, tiny_run
from flwr.app import Context, RecordDict

from multimix.contract.node_key import as_flower_keeps_it
from multimix.contract.signing import public_text
from multimix.errors import InputError, RunConfigError
from server.app import StoppedError, app, production_job
from server.job import initial_weights
from server.provision.admission import admit, revoke
from server.provision.folder import FILE, FederationSettings, open_federation
from server.provision.rotation import new_federation
from server.results import read_results


@pytest.fixture
def federation(tmp_path):
    folder = new_federation(tmp_path / "fed", FederationSettings(name="lungs", address="host.example:443"))
    pem = PLAN_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    folder.coordinator.write_bytes(pem)  # the key that the fake sites know
    for name in "ab":
        admit(folder.path, name, key_of(name))
    return open_federation(folder.path)


def test_a_run_of_a_federation_has_its_key_its_heads_and_a_folder_among_its_runs(federation):
    job = production_job(tiny_run(out="first"), federation.path)
    assert public_text(job.key) == federation.coordinator_key()
    assert job.folder == federation.runs / "first"
    assert job.heads == federation.heads
    assert job.licences == {}


def test_runs_without_a_name_get_one_each(federation):
    one, other = (production_job(tiny_run(), federation.path).folder for _ in range(2))
    assert one != other
    assert one.parent == other.parent == federation.runs


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", "/somewhere"),
        ("phantom-hospitals", 3),
        ("cache", "there"),
        ("dp-seeded", True),
        ("heads", "mine.jsonl"),
    ],
)
def test_what_only_a_simulation_has_is_refused_by_name(federation, key, value):
    with pytest.raises(RunConfigError, match=key) as caught:
        production_job(tiny_run(**{key: value}), federation.path)
    assert caught.value.reason == "simulation_only"


@pytest.mark.parametrize("name", ["/tmp/run", "../run", "a/b", "."])
@pytest.mark.parametrize("key", ["out", "start-from"])
def test_runs_are_named_not_addressed(federation, key, name):
    with pytest.raises(RunConfigError, match="plain name") as caught:
        production_job(tiny_run(**{key: name}), federation.path)
    assert caught.value.reason == "plain_name"


def test_a_folder_that_is_no_federation_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        production_job(tiny_run(), tmp_path)
    assert caught.value.reason == "federation_missing"


def test_whom_the_coordinator_revokes_during_a_run_is_seen_at_the_next_question(federation):
    roster = production_job(tiny_run(), federation.path).production.roster
    assert roster.name_of(as_flower_keeps_it(key_of("b"))) == "b"
    revoke(federation.path, "b", now=lambda: datetime.now(UTC))
    assert roster.admitted() == {"a"}


def test_settings_that_cannot_be_read_for_a_moment_leave_those_before(federation):
    roster = production_job(tiny_run(), federation.path).production.roster
    (federation.path / FILE).write_text("half of a li")
    assert roster.admitted() == {"a", "b"}


def _run(network, federation, monkeypatch, **config):
    monkeypatch.setenv("MULTIMIX_FEDERATION", str(federation.path))
    monkeypatch.setattr("server.exchange._LOOK_S", 0.01)
    for node in network.nodes.values():
        node.takes_s = 0.0
    flat = tiny_run(rounds=2, **config).flat()
    app(network, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=flat))


def test_the_app_runs_a_federations_job_and_a_later_run_starts_from_its_model(federation, monkeypatch):
    network = FakeNetwork([FakeSite(card(name)) for name in "ab"])
    _run(network, federation, monkeypatch, out="first")
    assert read_results(federation.runs / "first").status == "finished"
    begun = initial_weights(tiny_run(start_from="first"), runs=federation.runs)
    fresh = initial_weights(tiny_run())
    assert any((begun[name] != fresh[name]).any() for name in fresh)


def test_a_simulations_key_ends_the_app_of_a_federation(federation, monkeypatch):
    network = FakeNetwork([FakeSite(card(name)) for name in "ab"])
    with pytest.raises(StoppedError):
        _run(network, federation, monkeypatch, out="first", data="/somewhere")
    assert network.pushed == []
    assert not (federation.runs / "first").exists()
