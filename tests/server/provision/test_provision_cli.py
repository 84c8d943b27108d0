"""The coordinator's commands, as a person runs them."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import typer
from typer.testing import CliRunner

from multimix.contract.kit import FILES
from multimix.contract.node_key import new_node_key, node_fingerprint, public_half
from multimix.processes import free_port
from server.provision import cli
from server.provision.folder import FederationSettings, open_federation
from server.provision.rotation import new_federation
from tests.server.provision.showing import showing

APP = typer.Typer(pretty_exceptions_enable=False)
cli.register(APP)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MULTIMIX_FEDERATION", raising=False)
    return tmp_path


@pytest.fixture
def made(here):
    assert run("init", f"127.0.0.1:{free_port()}", "--name", "lungs", "--bind-port", free_port()).exit_code == 0
    return here / "federation"


def run(*words):
    return CliRunner().invoke(APP, [str(word) for word in words])


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("a.example", "a.example:443"),
        ("a.example:8443", "a.example:8443"),
        ("[::1]", "[::1]:443"),
        ("[::1]:9", "[::1]:9"),
    ],
)
def test_init_makes_a_federation_at_the_address(here, given, address):
    assert run("init", given).exit_code == 0
    assert open_federation(here / "federation").settings.address == address


@pytest.mark.parametrize("host", ["https://a.example", "a.example/x", "a b", "::1", "a:0", "a:99999", "", 'a"b'])
def test_init_refuses_what_is_no_host(here, host):
    done = run("init", host)
    assert (done.exit_code, "address_unusable" in done.stderr) == (2, True)
    assert not (here / "federation").exists()


def test_init_twice_is_refused(made):
    done = run("init", "coordinator.example")
    assert (done.exit_code, "federation_exists" in done.stderr) == (2, True)


def test_a_kit_shows_the_fingerprint_of_init_and_holds_no_private_key(made, here):
    first = json.loads(run("init", "b.example", "-f", here / "b", "--json").stdout)["fingerprint"]
    done = run("kit", "north", "-f", here / "b", "--json")
    assert json.loads(done.stdout) == {"file": "north.kit.zip", "fingerprint": first}
    data = (here / "north.kit.zip").read_bytes()
    assert b"PRIVATE" not in data
    assert all(name.encode() in data for name in FILES)


def test_a_kit_is_the_same_bytes_each_time(made, here):
    for name in ("one", "two"):
        assert run("kit", "north", "--out", here / name).exit_code == 0
    assert (here / "one").read_bytes() == (here / "two").read_bytes()


def test_admit_takes_the_key_or_its_file_and_sites_shows_it(made, here):
    one, two = (public_half(new_node_key()) for _ in range(2))
    (here / "node.pub").write_text(one + "\n")
    assert run("admit", "north", "node.pub").exit_code == 0
    assert run("admit", "south", two).exit_code == 0
    listed = {row["site"]: row["fingerprint"] for row in json.loads(run("sites", "--json").stdout)}
    assert listed == {"north": node_fingerprint(one), "south": node_fingerprint(two)}


def test_admit_refuses_a_key_of_another_fingerprint(made):
    done = run("admit", "north", public_half(new_node_key()), "--fingerprint", "0000")
    assert (done.exit_code, "fingerprint_wrong" in done.stderr) == (2, True)
    assert open_federation(made).settings.sites == {}


def test_revoke_says_when_and_that_no_server_has_taken_it_over(made):
    run("admit", "north", public_half(new_node_key()))
    done = run("revoke", "north")
    assert done.exit_code == 1
    assert f"{datetime.now(UTC):%Y-%m-%d}" in done.stdout
    assert "NOT IN FORCE YET" in done.stderr
    assert "superlink_away" in done.stderr
    assert not json.loads(run("revoke", "north", "--json").stdout)["in_force"]
    assert open_federation(made).settings.admitted == {}


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "coordinator.example", "::"])
def test_a_superlink_that_others_reach_has_to_be_asked_for(here, host):
    done = run("init", "a.example", "--bind-host", host)
    assert (done.exit_code, "superlink_exposed" in done.stderr) == (2, True)
    assert not (here / "federation").exists()
    assert run("init", "a.example", "--bind-host", host, "--expose-superlink").exit_code == 0
    assert open_federation(here / "federation").settings.expose_superlink


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
def test_a_superlink_on_the_loopback_needs_no_more_words(here, host):
    assert run("init", "a.example", "--bind-host", host).exit_code == 0


def test_certificates_says_that_the_server_still_shows_another(made):
    with showing(open_federation(made), f"127.0.0.1:{open_federation(made).settings.bind_port}"):
        assert run("certificates").exit_code == 0
        assert "NOT SERVED YET" in run("rotate").stderr
        done = run("certificates", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)[0]["state"] == "not_served"
    assert "systemctl restart multimix-server" in done.stderr


def test_rotate_walks_the_steps_and_refuses_them_out_of_order(made):
    steps = ["--forget-old", "--ca", "--forget-old", "", "--switch", "--forget-old", ""]
    codes = [run("rotate", *([step] if step else [])).exit_code for step in steps]
    assert codes == [0, 0, 2, 2, 0, 0, 0]  # the first --forget-old has nothing to forget


@pytest.mark.parametrize(("age_days", "code", "words"), [(0, 0, ""), (340, 1, "expires soon"), (366, 3, "has EXPIRED")])
def test_certificates_says_what_to_do_and_in_its_exit_code(here, age_days, code, words):
    begun = datetime.now(UTC) - timedelta(days=age_days)
    settings = FederationSettings(name="a", address=f"127.0.0.1:{free_port()}", bind_port=free_port())
    new_federation(here / "federation", settings, now=lambda: begun)
    done = run("certificates", "--json")
    assert done.exit_code == code
    assert [row["days_left"] for row in json.loads(done.stdout)] == [364 - age_days, 3649 - age_days]
    assert words in done.stderr
    assert ("multimix-server rotate" in done.stderr) == bool(code)


def test_without_a_federation_every_command_says_so(here):
    for words in (["kit", "a"], ["admit", "a", public_half(new_node_key())], ["revoke", "a"], ["sites"],
                  ["certificates"], ["rotate"]):  # fmt: skip
        done = run(*words)
        assert (done.exit_code, "federation_missing" in done.stderr) == (2, True)
