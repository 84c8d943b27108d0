"""Run as a program: a job whose disk takes no file above a few bytes from its third round on.

Prints the reason and the message of the error that stopped it.
"""

import resource
import sys
from pathlib import Path

from fake_sites import PLAN_KEY, FakeGrid, FakeSite, card, tiny_run

import server.federation
from multimix.errors import InputError
from server.job import Job, run_job

SMALL_FILE = 512  # bytes; above it the system says "File too large"


def fill_the_disk(state):
    if state.round == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE, resource.RLIM_INFINITY))


if __name__ == "__main__":
    server.federation._SETTLE_S = 0.0
    job = Job(tiny_run(rounds=3), Path(sys.argv[1]), PLAN_KEY, {})
    try:
        run_job(FakeGrid([FakeSite(card(name)) for name in "abc"]), job, after_round=fill_the_disk)
    except InputError as error:
        print(error.reason, error, sep="\n")
