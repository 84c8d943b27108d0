"""Running the server: what Flower is told, what a run is started with, and what status and metrics say."""

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

import httpx
import pytest

from multimix.errors import InputError
from multimix.locks import held
from multimix.processes import NOT_STARTED, environment, free_port, keep_running, start, stop
from server.metrics import serve_metrics
from server.nodes import is_running, local_address, runs_going_on
from server.overview import lines_of, overview
from server.provision.admission import revoke
from server.provision.folder import write_settings
from server.reasons import REASONS
from server.results import write_results
from server.run_cli import assignments
from server.running import flower_environment, serve, superlink_command, write_connection
from server.runs import resume_run, start_run, toml
from tests.connected_sites import again, federation, joined, server_running
from tests.server.sample_results import sample_results

SOURCE = Path(__file__).parents[2]
ELSEWHERE = {"audit", "intake", "preflight"}  # refusals that no server gets to see
SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def folder(tmp_path):
    return federation(tmp_path / "federation")


def test_the_superlink_has_tls_and_node_authentication_and_listens_where_the_settings_say(folder):
    words = superlink_command(folder)
    assert "--enable-supernode-auth" in words
    assert "--insecure" not in words
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--ssl-ca-certfile") + 1] == str(folder.ca)
    assert "--disable-runtime-dependency-installation" in words


def test_the_serverapp_learns_the_federation_and_nothing_that_a_person_exported(folder, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    told = flower_environment(folder)
    assert told["MULTIMIX_FEDERATION"] == str(folder.path)
    assert "AWS_SECRET_ACCESS_KEY" not in told
    assert told["NO_PROXY"] == "*"


def test_a_server_on_all_interfaces_is_reached_here_by_the_loopback(folder):
    wide = write_settings(folder, folder.settings.model_copy(update={"bind_host": "0.0.0.0"}))
    assert local_address(wide) == f"127.0.0.1:{folder.settings.bind_port}"


def test_a_superlink_that_others_reach_is_not_started_unless_that_was_asked_for(folder):
    wide = write_settings(folder, folder.settings.model_copy(update={"bind_host": "0.0.0.0"}))
    with pytest.raises(InputError) as error:
        serve(wide, threading.Event(), metrics_port=free_port())
    assert error.value.reason == "superlink_exposed"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_root_leaves_no_files_behind_that_the_services_user_cannot_use(folder):
    os.chown(folder.path, 64_001, 64_001)
    with pytest.raises(InputError) as error:
        serve(folder, threading.Event(), metrics_port=free_port())
    assert error.value.reason == "wrong_user"


def test_flwr_trusts_the_federations_authority_only(folder):
    import tomllib

    write_connection(folder)
    said = tomllib.loads((folder.flower / "config.toml").read_text())["superlink"]["federation"]
    assert said == {"address": local_address(folder), "root-certificates": str(folder.ca)}


def test_without_a_server_nothing_is_started_and_a_person_is_told_to_start_it(folder):
    assert not is_running(folder)
    for work in (
        lambda: start_run(folder, "one", {}),
        lambda: resume_run(folder, "one"),
        lambda: runs_going_on(folder),
    ):
        with pytest.raises(InputError) as error:
            work()
        assert error.value.reason == "superlink_away"


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "x" * 65])
def test_a_run_has_a_plain_name(folder, name):
    with pytest.raises(InputError) as error:
        start_run(folder, name, {})
    assert error.value.reason == "run_name"


def test_options_of_a_run_are_assignments():
    assert assignments(["rounds=2", 'title="a = b"']) == {"rounds": "2", "title": "a = b"}
    with pytest.raises(InputError):
        assignments(["rounds"])


def test_values_reach_flower_as_they_were_meant():
    import tomllib

    for value in (True, 3, 0.5, 'a "quoted" \\ text', "Lübeck"):
        assert tomllib.loads(f"x = {toml(value)}")["x"] == value


def test_status_says_of_each_site_how_it_stands(folder, tmp_path):
    for name in ("alpha", "beta"):
        joined(folder, tmp_path / name)
    revoke(folder.path, "beta")
    seen = overview(again(folder), datetime.now(UTC))
    assert not seen["up"]
    assert seen["sites"]["alpha"] == {
        "admitted": seen["sites"]["alpha"]["admitted"], "revoked": None, "connected": False, "last_seen": None,
    }  # fmt: skip
    words = "\n".join(lines_of(seen))
    assert "NOT RUNNING: multimix-server start" in words
    assert "beta: revoked" in words
    assert "has not connected yet" in words
    assert json.loads(json.dumps(seen)) == seen


def test_the_running_server_confirms_a_revocation_and_is_seen_to_show_its_old_certificate(folder, tmp_path):
    import typer
    from typer.testing import CliRunner

    from server.provision import cli

    app = typer.Typer()
    cli.register(app)
    joined(folder, tmp_path / "alpha")
    with server_running(again(folder)):
        assert CliRunner().invoke(app, ["revoke", "alpha", "-f", str(folder.path)]).exit_code == 0
        for step, code in (("--ca", 0), ("--switch", 0), ("--forget-old", 2)):
            done = CliRunner().invoke(app, ["rotate", step, "-f", str(folder.path)])
            assert done.exit_code == code, done.stderr
        assert "old_authority_shown" in done.stderr
        assert is_running(again(folder))
        assert "not_served" in CliRunner().invoke(app, ["certificates", "-f", str(folder.path)]).stdout


def test_metrics_count_answers_by_reason(folder):
    _refused(folder, ["dp_delta"])
    port = free_port()
    with serve_metrics(folder.path, port):
        said = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 503
        assert httpx.get(f"http://127.0.0.1:{port}/results").status_code == 404
    assert (
        f'multimix_run_site_rounds{{reason="dp_delta",state="refused"}} {len(sample_results().rounds[0].sites)}.0'
        in said
    )
    assert not any(name in said for name in sample_results().sites)


@pytest.mark.parametrize("reason", ["mueller_hans_1950", 'x"} evil{a="'])
def test_metrics_name_no_reason_that_a_site_made_up(folder, reason):
    _refused(folder, [reason, "dp_delta"])
    port = free_port()
    with serve_metrics(folder.path, port):
        said = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert reason not in said
    assert 'multimix_run_site_rounds{reason="other",state="refused"}' in said
    assert 'multimix_run_site_rounds{reason="dp_delta",state="refused"}' in said


def _refused(folder, reasons):
    """Write results of one round that every site refused, for these reasons in turn."""
    results = sample_results()
    first = results.rounds[0]
    sites = {
        name: site.model_copy(update={"state": "refused", "reason": reason})
        for (name, site), reason in zip(first.sites.items(), cycle(reasons), strict=False)
    }
    (folder.runs / "one").mkdir(parents=True)
    write_results(
        results.model_copy(update={"rounds": (first.model_copy(update={"sites": sites}),)}), folder.runs / "one"
    )


def strings(node):
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def test_every_reason_of_a_refusal_is_known_to_the_metrics_and_none_is_invented():
    files = [file for package in ("client", "multimix", "server") for file in (SOURCE / package).rglob("*.py")]
    trees = [ast.parse(file.read_text()) for file in files if not ELSEWHERE & set(file.parts)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    refusals = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refused"]
    raised = set().union(*(strings(call.args[0]) for call in refusals))
    assert {"dp_delta", "update_norm", "ledger_damaged", "site_revoked"} <= raised
    assert raised <= REASONS
    assert set().union(*map(strings, trees)) >= REASONS


def test_a_metrics_port_that_does_not_exist_is_named(folder):
    with pytest.raises(InputError, match="65536") as error, serve_metrics(folder.path, 0xFFFF + 1):
        pass
    assert error.value.reason == "metrics_port"


def test_a_taken_metrics_port_is_named(folder):
    port = free_port()
    with serve_metrics(folder.path, port), pytest.raises(InputError) as error, serve_metrics(folder.path, port):
        pass
    assert error.value.reason == "port_taken"


def test_a_program_that_ends_is_started_again_until_we_are_told_to_stop(tmp_path):
    stopped, ends = threading.Event(), []

    def ended(code, pause_s):
        ends.append((code, pause_s))
        stopped.set() if len(ends) == 1 else None

    code = keep_running(
        lambda: start([sys.executable, "-c", "raise SystemExit(7)"], env=environment(), cwd=tmp_path), stopped, ended=ended
    )  # fmt: skip
    assert (code, ends) == (7, [(7, 2.0)])


def test_what_cannot_start_is_tried_again_later():
    stopped, ends = threading.Event(), []

    def ended(code, pause_s):
        ends.append(code)
        stopped.set()

    keep_running(lambda: None, stopped, ended=ended)
    assert ends == [NOT_STARTED]


def test_stopping_stops_what_the_program_started_too(tmp_path):
    code = f"import subprocess, time; print(subprocess.Popen({SLEEPER!r}).pid, flush=True); time.sleep(60)"
    with (tmp_path / "log").open("wb") as log:
        process = start([sys.executable, "-c", code], env=environment(), cwd=tmp_path, log=log)
    while not (tmp_path / "log").read_text().strip():
        time.sleep(0.05)
    stop(process)
    child = int((tmp_path / "log").read_text())
    wait_until_gone(child)


def test_a_program_ends_when_the_process_that_started_it_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from multimix.processes import environment, start;"
        f"print(start({SLEEPER!r}, env=environment(), cwd=Path('/')).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    wait_until_gone(child)


def wait_until_gone(pid):
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError("the process is alive")


def test_two_commands_do_not_start_a_run_each(folder, monkeypatch):
    monkeypatch.setattr("server.runs.is_running", lambda _folder: True)
    monkeypatch.setattr("server.runs.runs_going_on", lambda _folder: [])
    folder.flower.mkdir(exist_ok=True)
    with held(folder.flower / "run.lock", wait_s=0, busy=InputError("busy", "")):
        for start in (start_run, resume_run):
            (folder.flower / "runs").mkdir(exist_ok=True)
            (folder.flower / "runs" / "old.json").write_text("{}")
            with pytest.raises(InputError) as caught:
                start(folder, *(("new", {}) if start is start_run else ("old",)))
            assert caught.value.reason == "run_active"
