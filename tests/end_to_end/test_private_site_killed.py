"""A site that is killed while it really trains has spent what it trained, and gives each order one answer.

As tests/privacy/test_killed_site.py, but with the whole of a site: policy, budget, torch, and the server's heads.
"""

import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from os import kill
from pathlib import Path

import pytest

from multimix.privacy.accountant import Mechanism, price
from multimix.privacy.entries import Commit, Reservation
from multimix.privacy.history import history_of
from multimix.privacy.ledger import Ledger, read_ledger
from server.heads import Heads
from tests.end_to_end.private_site import (
    EXECUTIONS,
    HEADS,
    LEDGER,
    MOST_ROUNDS,
    POPULATION,
    SENT,
    SITE,
    log_lines,
    order,
)

ROOT = Path(__file__).parents[2]
ROUNDS_OF_A_LIFE = 3  # at most


class Lives:
    """The program that the site's lives are forks of."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.private_site", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "errors").open("wb"),
            bufsize=0,
            cwd=ROOT,
        )
        assert self._said() == "ready"

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self._program.stdin.close()
        self._program.wait(10)
        self._program.stdout.close()

    def killed(self, after_s: float) -> None:
        """Live for a while and be killed in the middle."""
        child = self._start(MOST_ROUNDS)
        time.sleep(after_s)
        kill(child, signal.SIGKILL)
        assert self._said() == str(-signal.SIGKILL), self._errors()

    def undisturbed(self, until: int) -> float:
        """Live until a round is answered; return the seconds."""
        started = time.monotonic()
        self._start(until)
        assert self._said() == "0", self._errors()
        return time.monotonic() - started

    def _start(self, until: int) -> int:
        self._program.stdin.write(f"{until}\n".encode())
        return int(self._said())

    def _said(self) -> str:
        assert select.select([self._program.stdout], [], [], 120)[0], self._errors()
        return self._program.stdout.readline().decode().strip()

    def _errors(self) -> str:
        return (self._folder / "errors").read_text()


@dataclass(frozen=True)
class Remains:
    """What is found in the end: the ledger with every signature checked, and the observers' logs."""

    ledger: Ledger
    reservations: dict[int, Reservation]
    commits: dict[int, Commit]
    executions: list[dict]
    sent: list[dict]
    heads: Heads


def lived(folder: Path, *, kills: int) -> Remains:
    """Kill a site at moments drawn from a seed, then let it answer all it was asked, and two rounds more."""
    moments = random.Random(kills)
    with Lives(folder) as lives:
        lives.killed(moments.uniform(0, 0.05))  # the books are being begun
        longest_s = ROUNDS_OF_A_LIFE / 2 * lives.undisturbed(until=2)
        for _ in range(1, kills):
            lives.killed(moments.uniform(0, longest_s))
        asked = [line["first_step"] // line["steps"] + 1 for line in log_lines(folder / EXECUTIONS)]
        lives.undisturbed(until=max(asked, default=0) + 2)
    ledger = read_ledger(folder / LEDGER, every_signature=True)
    bodies = {entry.sequence: entry.body for entry in ledger.entries}
    return Remains(
        ledger,
        {number: body for number, body in bodies.items() if isinstance(body, Reservation)},
        {body.reservation: body for body in bodies.values() if isinstance(body, Commit)},
        log_lines(folder / EXECUTIONS),
        log_lines(folder / SENT),
        Heads(folder / HEADS),
    )


def check(remains: Remains) -> None:
    assert_what_was_trained_is_paid_for(remains)
    assert_every_order_had_one_answer(remains)
    assert_what_was_sent_was_committed(remains)
    assert_all_was_answered(remains)
    assert remains.heads.last(SITE).head == remains.ledger.head


def assert_what_was_trained_is_paid_for(remains: Remains) -> None:
    trained = {line["commitment"]: line for line in remains.executions}  # the same noise twice is one release
    reserved = {each.commitment: each for each in remains.reservations.values()}
    assert set(trained) <= set(reserved)
    assert len(reserved) == len(remains.reservations)
    spent = Counter[Mechanism]()
    for line in trained.values():
        spent[Mechanism(line["noise_multiplier"], line["sampling_rate"])] += line["steps"]
    delta = POPULATION.failure_probability
    assert price(history_of(remains.ledger.entries), delta=delta).epsilon >= price(spent, delta=delta).epsilon > 0


def assert_every_order_had_one_answer(remains: Remains) -> None:
    answers = {(line["round"], line["plan_sha256"], line["sha256"]) for line in remains.sent}
    assert len(answers) == len({line["round"] for line in remains.sent})


def assert_what_was_sent_was_committed(remains: Remains) -> None:
    committed = {
        (remains.reservations[number].binding.round, commit.reply_sha256) for number, commit in remains.commits.items()
    }
    assert {(line["round"], line["sha256"]) for line in remains.sent} <= committed


def assert_all_was_answered(remains: Remains) -> None:
    rounds = max(each.binding.round for each in remains.reservations.values())
    answered = {(line["round"], line["plan_sha256"]) for line in remains.sent}
    assert answered == {(number, order(number).sha256) for number in range(1, rounds + 1)}


@pytest.mark.slow
def test_a_training_site_killed_eight_times_never_undercounts_nor_answers_twice(tmp_path):
    remains = lived(tmp_path, kills=8)
    check(remains)
    assert len(remains.sent) > len({line["round"] for line in remains.sent})  # something was asked again


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_site_killed_forty_times_never_undercounts_nor_answers_twice(tmp_path):
    remains = lived(tmp_path, kills=40)
    check(remains)
    assert len(remains.executions) > len({line["commitment"] for line in remains.executions})  # some began again
