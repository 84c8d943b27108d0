"""A site that is killed at any moment has spent what it trained, and answers each order once."""

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from multimix.privacy.entries import Commit, Reservation
from multimix.privacy.ledger import create_ledger, open_ledger, read_ledger
from tests.privacy import sample_ledger as sample
from tests.privacy.killable_site import EXECUTIONS, POPULATION, SENT, log_lines

ROOT = Path(__file__).parents[2]
LONGEST_LIFE_S = 0.25  # after it is ready: some ten rounds
LIVES_OF_THE_DATA = 3  # after so many, the data change


@dataclass(frozen=True)
class Remains:
    """What is found after the last death."""

    folder: Path
    reservations: dict[int, Reservation]
    commits: dict[int, Commit]
    executions: list[dict]
    sent: list[dict]


def killed(folder: Path, logs: Path, *, times: int) -> Remains:
    create_ledger(folder, site=sample.SITE, population=POPULATION)
    moments = random.Random(times)
    for life in range(times):
        live_and_die(folder, logs, f"gen-{life // LIVES_OF_THE_DATA}", moments.uniform(0, LONGEST_LIFE_S))
    with open_ledger(folder, site=sample.SITE, population=POPULATION):
        pass  # verifies, and removes a torn line
    bodies = {entry.sequence: entry.body for entry in read_ledger(folder, every_signature=True).entries}
    return Remains(
        folder,
        {number: body for number, body in bodies.items() if isinstance(body, Reservation)},
        {body.reservation: body for body in bodies.values() if isinstance(body, Commit)},
        log_lines(logs / EXECUTIONS),
        log_lines(logs / SENT),
    )


def live_and_die(folder: Path, logs: Path, fingerprint: str, life_s: float) -> None:
    site = subprocess.Popen(
        [sys.executable, "-m", "tests.privacy.killable_site", str(folder), str(logs), fingerprint],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    said = site.stdout.readline()
    time.sleep(life_s)
    alive = site.poll() is None
    site.send_signal(signal.SIGKILL)
    _, errors = site.communicate()
    assert (said, alive) == (b"ready\n", True), errors.decode()


def check(remains: Remains) -> None:
    assert_nothing_was_trained_unspent(remains)
    assert_every_order_had_one_answer(remains)
    assert_what_was_sent_was_committed(remains)


def assert_nothing_was_trained_unspent(remains: Remains) -> None:
    spent = {(each.commitment, each.binding.model_dump_json()) for each in remains.reservations.values()}
    trained = {(line["commitment"], line["binding"]) for line in remains.executions}
    assert trained <= spent
    assert len(trained) <= len(remains.reservations)
    assert len({each.commitment for each in remains.reservations.values()}) == len(remains.reservations)


def assert_every_order_had_one_answer(remains: Remains) -> None:
    for order in ("sequence", "round"):
        answers = {(line[order], line["sha256"]) for line in remains.sent}
        assert len(answers) == len({line[order] for line in remains.sent})


def assert_what_was_sent_was_committed(remains: Remains) -> None:
    committed = {(number, commit.reply_sha256) for number, commit in remains.commits.items()}
    assert {(line["sequence"], line["sha256"]) for line in remains.sent} <= committed


@pytest.mark.slow
def test_a_site_killed_fifteen_times_never_undercounts_nor_answers_twice(tmp_path):
    remains = killed(tmp_path / "ledger", tmp_path, times=15)
    check(remains)
    assert len(remains.sent) > 15  # it got somewhere between its deaths, and repeated itself


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_site_killed_a_hundred_and_fifty_times_never_undercounts_nor_answers_twice(tmp_path):
    remains = killed(tmp_path / "ledger", tmp_path, times=150)
    check(remains)
    orders = {(line["commitment"], line["binding"]) for line in remains.executions}
    assert len(remains.executions) > len(orders)  # some were executed again
    assert len(remains.reservations) > len(remains.commits)  # some stay spent without an answer
