"""Apps are forked from a process that has imported Flower, and are Flower's own where that does not answer."""

import os
import subprocess
import sys
import time

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

from client.app_starter import PROGRAM, put_in_place, wait_less
from multimix.processes import descendants, environment

LOST = ("--runtime-api-address", "127.0.0.1:1", "--token", "none", "--insecure")  # asks for work for ever


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    """What forks apps; its log, and the program that asks it."""
    base = tmp_path_factory.mktemp("starter")
    path, log = base / "starter.sock", base / "log"
    put_in_place(base / "bin", path)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "client.app_starter", str(path)],
            cwd=base, env=environment(FLWR_HOME=str(base)), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    until(path.exists)
    yield process, log, base / "bin" / PROGRAM
    process.terminate()
    process.wait(timeout=10)


def test_an_app_is_forked_and_speaks_where_the_supernode_does(starter):
    _, log, program = starter
    done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    until(lambda: "usage: flwr-clientapp" in log.read_text())


def test_killing_what_asked_kills_the_app(starter):
    process, _, program = starter
    asked = subprocess.Popen([program, *LOST])
    until(lambda: len(descendants(process.pid)) == 1)
    asked.kill()
    asked.wait()
    until(lambda: descendants(process.pid) == [])


def test_killing_the_app_ends_what_asked(starter):
    process, _, program = starter
    asked = subprocess.Popen([program, *LOST])
    until(lambda: len(descendants(process.pid)) == 1)
    os.kill(descendants(process.pid)[0], 9)
    asked.wait(timeout=10)


def test_without_a_starter_it_is_flowers_own(tmp_path):
    put_in_place(tmp_path / "bin", tmp_path / "nobody.sock")
    done = subprocess.run([tmp_path / "bin" / PROGRAM, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "usage: flwr-clientapp" in done.stdout


def test_what_forks_apps_holds_none_of_our_code_so_that_the_bundle_brings_its_own():
    code = (
        "import sys; from client.app_starter import preload; preload();"
        "print([name for name in sys.modules if name.split('.')[0] in ('client', 'multimix')], 'flwr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[] True"


def until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_order_whose_objects_never_come_is_given_up(monkeypatch):
    monkeypatch.setattr("client.app_starter._OBJECTS_S", 0.3)
    monkeypatch.setattr(inflatable_utils, "pull_objects", inflatable_utils.pull_objects)  # put back afterwards
    wait_less(inflatable_utils)

    def never(_identity):
        raise ObjectUnavailableError("object")

    with pytest.raises(ObjectPullError):
        inflatable_utils.pull_objects(["object"], never)
