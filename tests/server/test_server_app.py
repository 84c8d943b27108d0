import pytest
from fake_sites import FakeGrid, FakeSite, card, tiny_run
from flwr.app import Context, RecordDict

from multimix.contract.signing import public_text, simulation_key
from server.app import StoppedError, app, new_job


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("server.federation._SETTLE_S", 0.0)
    monkeypatch.setattr("server.federation._POLL_S", 0.0)


def _context(**config):
    flat = tiny_run(**config).flat()
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=flat)


def test_a_job_goes_to_the_folder_it_names():
    assert new_job(tiny_run(out="/somewhere/run")).folder.as_posix() == "/somewhere/run"


def test_two_jobs_without_a_folder_get_one_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = new_job(tiny_run()).folder, new_job(tiny_run()).folder
    assert one != other
    assert one.parent == other.parent == tmp_path / "runs"


def test_the_key_of_a_simulation_follows_from_its_seed():
    assert public_text(new_job(tiny_run(seed=3)).key) == public_text(simulation_key(3))


def test_the_app_runs_the_job_of_its_run_configuration(tmp_path):
    cache = str(tmp_path / "cache")
    app(
        FakeGrid([FakeSite(card("a"))]), _context(rounds=1, out=str(tmp_path / "run"), cache=cache, phantom_patients=12)
    )
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("sites", "config"),
    [
        ([], {"deadline_s": 0.1}),  # nobody is connected
        (["a"], {"hold_out": "nowhere"}),
        (["a"], {"phantom_hospitals": 2}),  # more hospitals than nodes
    ],
)
def test_the_app_of_a_job_that_cannot_begin_fails_in_a_way_that_flower_ends_at_once(tmp_path, sites, config):
    fields = {"out": str(tmp_path / "run"), "cache": str(tmp_path / "cache"), "phantom_patients": 12}
    with pytest.raises(StoppedError):  # not SystemExit, which Flower does not see: the run would seem to go on
        app(FakeGrid([FakeSite(card(name)) for name in sites]), _context(**fields | config))
    assert not (tmp_path / "run").exists()
