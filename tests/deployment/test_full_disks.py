"""A disk that is filled to the last byte: nothing leaves a hospital without its row, and work goes on once there is room.

The ledger of one hospital, and the runs of the server, lie on small disks of their own. Where none can be mounted
these tests are skipped and say so.
"""

from collections import Counter

import pytest

from multimix.privacy.entries import Commit, Reservation
from multimix.privacy.ledger import read_ledger
from tests.deployment import disks
from tests.deployment.disks import small_disk
from tests.deployment.federation import PRIVATE, QUICK, deployment, wait_for

NO_DISK = disks.unavailable()
pytestmark = [
    pytest.mark.skipif(NO_DISK is not None, reason=str(NO_DISK)),
    pytest.mark.chaos,
    pytest.mark.timeout(1800),
]
SITES = ("phantom-a", "phantom-b")
LEDGER_PAGES, RUNS_PAGES = 4096, 4096
ROUNDS = 6


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with deployment(tmp_path_factory.mktemp("disks"), SITES) as made:
        made.start_all()
        yield made


@pytest.fixture
def ledger_disk(federation):
    with small_disk(ledger_folder(federation), pages=LEDGER_PAGES) as disk:
        yield disk


def ledger_folder(federation):
    return federation.site_folder("phantom-b") / "ledger"


def entries(federation):
    return Counter(type(entry.body) for entry in read_ledger(ledger_folder(federation), every_signature=True).entries)


def states(results, site):
    return [(each["sites"][site]["state"], each["sites"][site]["reason"] or "") for each in results["rounds"]]


def so_far(federation, name):
    try:
        return federation.results(name)
    except (OSError, ValueError):
        return {"rounds": []}


def begun(federation, name, *options):
    return federation.begin_job(name, *QUICK, *PRIVATE, f"rounds={ROUNDS}", "quorum=1", *options)


def until_refused(federation, name):
    wait_for(
        "a round was refused", lambda: ("refused", "ledger_disk_full") in states(so_far(federation, name), SITES[1])
    )


def check_it_went_on(federation, name, before):
    """The other site missed no round; this one missed some, with the reason; what it sent is committed, and no more."""
    results = federation.results(name)
    assert states(results, "phantom-a") == [("accepted", "")] * ROUNDS
    here = states(results, "phantom-b")
    assert here[-1] == ("accepted", "")
    assert set(here) == {("refused", "ledger_disk_full"), ("accepted", "")}
    assert federation.verified("phantom-b")["counts"]["commit"] == before[Commit] + here.count(("accepted", ""))


def test_a_site_whose_ledger_cannot_grow_by_a_byte_refuses_and_is_back_once_there_is_room(federation, ledger_disk):
    before = entries(federation)
    ledger_disk.fill()
    running = begun(federation, "full")
    until_refused(federation, "full")
    assert entries(federation) == before
    ledger_disk.free()
    assert running.process.wait(timeout=400) == 0
    check_it_went_on(federation, "full", before)


def test_an_answer_that_cannot_be_kept_is_not_sent_though_its_budget_is_spent(federation, ledger_disk):
    before = entries(federation)
    ledger_disk.fill(spare_pages=4)  # for the secret and the reservation, not for order and answer
    running = begun(federation, "nearly-full")
    until_refused(federation, "nearly-full")
    assert entries(federation)[Commit] == before[Commit]
    assert entries(federation)[Reservation] > before[Reservation]
    ledger_disk.free()
    assert running.process.wait(timeout=400) == 0
    check_it_went_on(federation, "nearly-full", before)


def test_a_run_whose_disk_is_full_stops_with_that_reason_and_is_resumed_once_there_is_room(federation):
    with small_disk(federation.federation / "runs", pages=RUNS_PAGES) as disk:
        running = begun(federation, "stopped")
        wait_for("a round is done", lambda: so_far(federation, "stopped")["rounds"], within_s=200)
        disk.fill()
        assert running.process.wait(timeout=300) == 1
        assert "unwritable-file" in running.said
        assert "multimix-server resume stopped" in " ".join(running.said.split())
        done = len(federation.results("stopped")["rounds"])
        wait_for("the status says how to go on", lambda: "resume stopped" in federation.server("status").stdout)
        assert federation.server("resume", "stopped", check=False).returncode == 1
        disk.free()
        federation.server("resume", "stopped", within_s=400)
        results = federation.results("stopped")
    assert results["status"] == "finished"
    assert (len(results["rounds"]), done < ROUNDS) == (ROUNDS, True)
    for site in SITES:
        assert states(results, site) == [("accepted", "")] * ROUNDS
        assert federation.verified(site)
