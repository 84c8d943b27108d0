"""What a worker process runs in place of training, in the test of an interrupt."""

import time

from sim.experiments.case import AnyCase
from sim.experiments.record import CaseRecord
from sim.experiments.work import Place

BEGUN = "begun"


def do(case: AnyCase, place: Place) -> CaseRecord:
    """Say that work has begun, and never end."""
    (place.out / BEGUN).touch()
    time.sleep(600)
    raise AssertionError(case)
