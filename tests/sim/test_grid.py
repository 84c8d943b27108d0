import os
import signal
import time

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from sim.grid import InProcessGrid


def says_where(message, context):
    """Answer with the node, its partition and the process."""
    where = {"node": context.node_id, **context.node_config, "process": os.getpid()}
    return Message(RecordDict({"where": ConfigRecord(where)}), reply_to=message)


def does_as_told(message, context):
    """Do what the order says, then answer."""
    task = message.content["task"]
    if task["do"] == "raise":
        raise ValueError("secret of a patient")
    if task["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task["do"].startswith("sleep"):
        time.sleep(float(task["do"].split()[1]))
    return says_where(message, context)


def _orders(grid, *tasks):
    nodes = list(grid.get_node_ids())
    tasks = [*tasks, *[""] * (len(nodes) - len(tasks))]
    return [
        Message(RecordDict({"task": ConfigRecord({"do": task})}), dst_node_id=node, message_type=MessageType.TRAIN)
        for node, task in zip(nodes, tasks, strict=True)
    ]


def _told(*tasks, grid, timeout=None):
    """The replies by the place of their task."""
    replies = list(grid.send_and_receive(_orders(grid, *tasks), timeout=timeout))
    first = min(grid.get_node_ids())
    return {reply.metadata.src_node_id - first: reply for reply in replies}


@pytest.fixture(scope="module")
def workers():
    with InProcessGrid({}, nodes=5, workers=2, app=does_as_told) as grid:
        _told(grid=grid)  # both processes are up
        yield grid


def test_every_node_is_one_hospital_answered_here_without_workers():
    grid = InProcessGrid({}, nodes=3, app=says_where)
    where = [dict(reply.content["where"]) for reply in grid.send_and_receive(_orders(grid))]
    assert [(w["partition-id"], w["num-partitions"]) for w in where] == [(0, 3), (1, 3), (2, 3)]
    assert [w["node"] for w in where] == list(grid.get_node_ids())
    assert {w["process"] for w in where} == {os.getpid()}


def test_replies_name_their_node_and_the_order_they_answer():
    grid = InProcessGrid({}, nodes=2, app=says_where)
    orders = _orders(grid)
    replies = list(grid.send_and_receive(orders))
    assert [r.metadata.src_node_id for r in replies] == [o.metadata.dst_node_id for o in orders]
    assert [r.metadata.reply_to_message_id for r in replies] == [o.metadata.message_id for o in orders]
    assert orders[0].metadata.message_id != orders[1].metadata.message_id


def test_the_app_gets_the_run_configuration():
    grid = InProcessGrid(
        {"seed": 7},
        nodes=1,
        app=lambda message, context: Message(
            RecordDict({"seed": ConfigRecord({"is": context.run_config["seed"]})}), reply_to=message
        ),
    )
    (reply,) = list(grid.send_and_receive(_orders(grid)))
    assert reply.content["seed"]["is"] == 7


def test_workers_answer_in_the_order_of_the_orders_and_in_other_processes(workers):
    replies = list(workers.send_and_receive(_orders(workers)))
    where = [dict(reply.content["where"]) for reply in replies]
    assert [w["partition-id"] for w in where] == [0, 1, 2, 3, 4]
    assert os.getpid() not in {w["process"] for w in where}


def test_a_site_that_raises_in_a_worker_gives_an_error_without_its_text_and_the_others_answer(workers):
    replies = _told("", "raise", grid=workers)
    assert replies[1].has_error()
    assert "secret" not in f"{replies[1].error}"
    assert replies[0].has_content()
    assert replies[2].has_content()


def test_a_worker_that_dies_gives_errors_once_and_is_replaced(workers):
    replies = _told("die", grid=workers)
    assert replies[0].has_error()
    assert all(reply.has_content() for reply in _told(grid=workers).values())


def test_an_order_that_is_not_answered_by_the_deadline_is_missing_and_the_others_are_there(workers):
    _told(grid=workers)
    assert set(_told("sleep 4", grid=workers, timeout=2.0)) == {1, 2, 3, 4}


def test_orders_that_wait_behind_late_ones_are_given_up_at_the_deadline(workers):
    assert _told("sleep 4", "sleep 4", "", "", "die", grid=workers, timeout=0.5) == {}
    replies = _told(grid=workers)  # nobody died: the last order was never begun
    assert all(reply.has_content() for reply in replies.values())


def test_without_workers_orders_not_begun_by_the_deadline_go_unanswered():
    grid = InProcessGrid({}, nodes=3, app=does_as_told)
    assert set(_told("sleep 0.3", grid=grid, timeout=0.1)) == {0}


def test_closing_ends_workers_that_are_still_busy():
    grid = InProcessGrid({}, nodes=3, workers=2, app=does_as_told)
    pids = {reply.content["where"]["process"] for reply in _told("sleep 1", "sleep 1", grid=grid).values()}
    _told("sleep 60", "sleep 60", grid=grid, timeout=0.5)
    grid.close()
    deadline = time.monotonic() + 20.0
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if _runs(pid)]


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("offer", ["create_message", "push_messages", "pull_messages"])
def test_what_has_no_meaning_in_one_process_is_refused(offer):
    with pytest.raises(NotImplementedError):
        getattr(InProcessGrid({}, nodes=1), offer)([])
