"""A site answers each order once, and the very same one again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_hospitals import plan

from client.replays import Replays
from multimix.errors import Refused


def admit(replays: Replays, number: int, text: str = "a", **fields: object) -> None:
    replays.admit(plan(round=number, **fields), text)


def test_later_rounds_are_admitted():
    replays = Replays()
    for number in (0, 1, 5):
        admit(replays, number)


def test_the_very_same_plan_may_be_asked_again():
    replays = Replays()
    admit(replays, 2)
    admit(replays, 2)


def test_an_older_round_is_refused():
    replays = Replays()
    admit(replays, 2)
    with pytest.raises(Refused, match="plan_replayed: round 1 after round 2"):
        admit(replays, 1)


def test_another_plan_for_the_same_round_is_refused():
    replays = Replays()
    admit(replays, 2, "a")
    with pytest.raises(Refused, match="plan_changed"):
        admit(replays, 2, "b")


def test_a_refused_plan_is_not_remembered():
    replays = Replays()
    admit(replays, 2, "a")
    for number, text in ((2, "b"), (1, "b")):
        with pytest.raises(Refused):
            admit(replays, number, text)
    admit(replays, 2, "a")


def test_jobs_and_kinds_are_counted_apart():
    replays = Replays()
    admit(replays, 5, job_id="job")
    admit(replays, 1, job_id="other")
    admit(replays, 1, kind="evaluate", work=None, evaluate_on="test")


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("ab")), max_size=12))
def test_what_is_admitted_never_goes_back_and_has_one_plan_a_round(orders):
    replays, admitted = Replays(), []
    for number, text in orders:
        try:
            admit(replays, number, text)
        except Refused:
            continue
        admitted.append((number, text))
    rounds = [number for number, _ in admitted]
    assert rounds == sorted(rounds)
    assert len(set(admitted)) == len(set(rounds))
