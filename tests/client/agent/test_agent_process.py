"""The agent as a process: no network, closed to others, one at a time, killed without harm."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.agent.process import check_usable, listening
from client.agent.remote import RemoteSite, agent_progress
from client.agent.wire import SERVICE, target
from client.settings import open_site
from multimix.contract.messages import LocalWork
from multimix.data.store import CURRENT
from multimix.errors import SiteError
from multimix.privacy.entries import Commit, Reservation
from multimix.privacy.ledger import read_ledger
from tests.client.agent.agents import (
    ROOT,
    EchoSite,
    agent_over,
    agent_process,
    command,
    in_thread,
    same_bytes,
    site_folder,
    socket_of,
    wait_for,
)
from tests.client.tiny_hospitals import PRIVATE_WEIGHTS, private_order
from tests.support import phantom_films, write_films

LONG = LocalWork(steps=30, images_per_group=1, total_steps=10_000)
CHEAP = {"noise_multiplier": 30.0}


def no_namespace() -> bool:
    return subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode != 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return site_folder(tmp_path_factory.mktemp("made") / "site")


@pytest.fixture
def site(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "site", symlinks=True))


def entries(site, kind):
    return [entry.body for entry in read_ledger(site / "ledger").entries if isinstance(entry.body, kind)]


def status(site) -> dict:
    done = subprocess.run(command("status", "--site", site, "--json"), cwd=ROOT, capture_output=True, text=True)
    return json.loads(done.stdout) | {"code": done.returncode}


def health(socket: Path) -> str:
    with grpc.insecure_channel(target(str(socket)), options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        asked = health_pb2.HealthCheckRequest(service=SERVICE)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(
            health_pb2_grpc.HealthStub(channel).Check(asked).status
        )


def inodes_of_sockets(process: int) -> set[str]:
    links = [str(each.readlink()) for each in Path(f"/proc/{process}/fd").iterdir()]
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


def test_an_agent_trains_opens_unix_sockets_only_and_ends_at_sigterm(site):
    local = socket_of(site).with_name("local.sock")
    with agent_process(site) as process:
        remote = RemoteSite(socket_of(site), wait_s=0.0)
        assert remote.describe().site == "clinic"
        assert remote.train(private_order(), PRIVATE_WEIGHTS).report.ledger.holds()
        unix = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
        assert inodes_of_sockets(process.pid)
        assert inodes_of_sockets(process.pid) <= unix
        assert (health(socket_of(site)), health(local)) == ("SERVING", "SERVING")
        assert (stat.S_IMODE(socket_of(site).stat().st_mode), stat.S_IMODE(socket_of(site).parent.stat().st_mode)) == (
            0o660,
            0o750,
        )
        found = status(site)
        assert (found["agent"], found["running"], found["code"]) == (True, None, 0)
        assert found["last_activity"]["outcome"] == "answered"
        assert found["epsilon_spent"] > 0
        assert found["epsilon_left"] == 4.0 - found["epsilon_spent"]
        assert not found["epsilon_infinite"]
        assert (stat.S_IMODE(local.stat().st_mode), local.stat().st_uid) == (0o600, os.geteuid())
    assert process.returncode == 0
    assert not socket_of(site).exists()
    assert not local.exists()
    assert "multimix_agent_budget_used_ratio" in (site / "metrics.prom").read_text()


@pytest.mark.skipif(no_namespace(), reason="network namespaces are not permitted here")
def test_an_agent_trains_where_there_is_no_network_at_all(site):
    with agent_process(site, wrapper=("unshare", "-n")) as process:
        assert Path(f"/proc/{process.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        devices = Path(f"/proc/{process.pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in devices] == ["lo"]
        assert RemoteSite(socket_of(site), wait_s=0.0).train(private_order(), PRIVATE_WEIGHTS).weights


def test_an_agent_killed_in_a_round_and_started_again_answers_it_with_one_reservation(site):
    signed = private_order(CHEAP, work=LONG)
    answer = in_thread(lambda: RemoteSite(socket_of(site), wait_s=60.0).train(signed, PRIVATE_WEIGHTS))
    with agent_process(site) as process:
        wait_for(lambda: (doing := agent_progress(socket_of(site))) is not None and doing.step > 2, timeout_s=60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert socket_of(site).exists()  # what a killed agent leaves
    with agent_process(site):
        trained = answer()
        again = RemoteSite(socket_of(site), wait_s=0.0).train(signed, PRIVATE_WEIGHTS)
    assert same_bytes(trained.weights, again.weights)
    assert (len(entries(site, Reservation)), len(entries(site, Commit))) == (1, 1)


def test_sigterm_cancels_the_round_and_the_next_agent_answers_it(site):
    signed = private_order(CHEAP, work=LONG)
    answer = in_thread(lambda: RemoteSite(socket_of(site), wait_s=60.0).train(signed, PRIVATE_WEIGHTS))
    with agent_process(site) as process:
        wait_for(lambda: (doing := agent_progress(socket_of(site))) is not None and doing.step > 2, timeout_s=60)
    assert process.returncode == 0
    assert (len(entries(site, Reservation)), len(entries(site, Commit))) == (1, 0)
    with agent_process(site):
        assert answer().weights
    assert (len(entries(site, Reservation)), len(entries(site, Commit))) == (1, 1)


def test_a_second_agent_is_refused_and_the_first_goes_on(site):
    with agent_process(site):
        second = subprocess.run(command("agent", "--site", site), cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (second.returncode, "agent_running" in second.stderr) == (2, True)
        assert agent_progress(socket_of(site)) is not None


def test_a_new_generation_is_trained_on_from_the_next_round(site):
    first, second = site / "store-a", site / "store-b"
    (site / "store").rename(first)
    write_films(second, phantom_films(8, seed=1))
    (site / "store").mkdir()
    (site / "store" / CURRENT).symlink_to(first)
    from client.agent.warm import WarmSite

    warm = WarmSite(site)
    one, same = warm.served().site, warm.served().site
    assert one is same
    fingerprint = one.store.fingerprint
    (site / "store" / CURRENT).unlink()
    (site / "store" / CURRENT).symlink_to(second)
    other = warm.served().site
    assert other.store.fingerprint != fingerprint
    assert one.store.fingerprint == fingerprint  # a round that began keeps what it began with


def test_a_change_of_policy_counts_from_the_next_order(site):
    from client.agent.warm import WarmSite

    warm = WarmSite(site)
    assert not warm.served().policy.approve_jobs
    text = (site / "site.toml").read_text()
    (site / "site.toml").write_text(text.replace("[policy]", "[policy]\napprove_jobs = true"))
    assert warm.served().policy.approve_jobs
    (site / "site.toml").write_text("name =")
    with pytest.raises(SiteError, match="TOML"):
        warm.served()


# --- health


def harm(what, site):
    {
        "control": lambda: (site / "control.json").write_text("{"),
        "store": lambda: shutil.rmtree(site / "store"),
        "ledger": lambda: (site / "ledger" / "ledger.jsonl").write_text("{"),
        "nothing": lambda: None,
    }[what]()


@pytest.mark.parametrize("what", ["control", "store", "ledger", "nothing"])
def test_an_agent_is_not_serving_where_it_could_not_train(site, what):
    from client.agent.warm import WarmSite

    warm = WarmSite(site)
    warm.served()
    harm(what, site)
    with agent_over(EchoSite(), site.parent / "a", check=lambda: check_usable(open_site(site), warm)) as agent:
        assert health(agent.remote.socket) == ("SERVING" if what == "nothing" else "NOT_SERVING")


def test_health_is_looked_up_anew_only_after_a_while(tmp_path):
    looks = []
    with agent_over(EchoSite(), tmp_path, check=lambda: looks.append(1)) as agent:
        for _ in range(5):
            health(agent.remote.socket)
    assert len(looks) == 1


def test_the_agents_process_lets_grpc_say_errors_only(site):
    code = (
        "import os, client.agent.cli as c; c.open_site = lambda _: os._exit(os.environ['GRPC_VERBOSITY'] != 'ERROR' or "
    )
    code += "'grpc._cython' not in __import__('sys').modules); c.agent()"
    early = "import sys, client.agent.cli; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", early], cwd=ROOT).returncode == 0
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=without_verbosity()).returncode == 0


def without_verbosity() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}


# --- the socket


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a socket to any group")
def test_the_socket_is_given_to_the_connectors_group(tmp_path):
    from client.agent.service import AgentService

    with listening(AgentService(None, None, None, None), tmp_path / "socket" / "s", group=4711):
        for path, mode in ((tmp_path / "socket", 0o750), (tmp_path / "socket" / "s", 0o660)):
            found = path.stat()
            assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (4711, mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_the_connectors_group_gets_at_the_socket_and_another_user_does_not():
    from client.agent.service import AgentService

    def may_connect(group: int) -> bool:
        return subprocess.run(["test", "-w", socket], user=65534, group=group, extra_groups=[]).returncode == 0

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        socket = Path(folder) / "socket" / "s"
        with listening(AgentService(None, None, None, None), socket, group=4711):
            assert may_connect(4711)
            assert not may_connect(65534)
            socket = socket.with_name("local.sock")
            assert not may_connect(4711)


def test_something_else_in_the_sockets_place_is_not_removed(tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(SiteError, match="something else"), listening(None, tmp_path / "s"):
        pass
    assert (tmp_path / "s").read_text() == "precious"


def test_the_name_of_the_hospitals_own_socket_is_not_taken_for_the_connectors(tmp_path):
    with pytest.raises(SiteError, match="another socket"), listening(None, tmp_path / "local.sock"):
        pass


def test_a_path_that_no_socket_can_have_is_refused(tmp_path):
    with pytest.raises(SiteError, match="longer than 107"), listening(None, tmp_path / ("x" * 120)):
        pass


def test_an_unknown_group_of_the_connector_is_refused(site):
    text = (site / "site.toml").read_text().replace("[agent]", '[agent]\nconnector_group = "no-such-group"')
    (site / "site.toml").write_text(text)
    done = subprocess.run(command("agent", "--site", site), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "group_unknown" in done.stderr) == (2, True)


def test_a_site_without_a_coordinator_has_no_agent(site):
    folder = open_site(site)
    text = (site / "site.toml").read_text()
    key = folder.settings.server.coordinator_key
    (site / "site.toml").write_text(text.replace(f'coordinator_key = "{key}"', ""))
    done = subprocess.run(command("agent", "--site", site), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "coordinator_missing" in done.stderr) == (2, True)


# --- the networked side has no torch


def test_the_connectors_side_works_where_torch_cannot_be_imported(tmp_path):
    code = """
        import sys
        from pathlib import Path

        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torch", "scipy", "opacus"):
                    raise ModuleNotFoundError(f"blocked: {name}")

        sys.meta_path.insert(0, NoTorch())
        import client.agent.cli
        from client.agent.remote import RemoteSite
        from multimix.errors import Refused
        try:
            RemoteSite(Path(sys.argv[1]), wait_s=0.0).describe()
        except Refused as refused:
            print(refused.reason)
    """
    with agent_over(EchoSite(), tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "socket" / "s")],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    assert done.stdout.split() == ["cohort_too_small"]
