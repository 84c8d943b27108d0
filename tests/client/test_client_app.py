"""The ClientApp: thin, without torch, and silent about everything but reason codes."""

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, Metadata, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from tiny_hospitals import HOSPITALS, METHOD, WEIGHTS, order, write_radiographs

from client.app import _answer, app
from multimix.contract.messages import EvaluateReport, SiteCard, TrainReport, weights_sha256
from multimix.contract.records import (
    array_record,
    plan_record,
    read_pictures,
    read_reply,
    refusal_reply,
    unpack_arrays,
)
from multimix.contract.run_config import RunConfig
from multimix.errors import InputError, ManifestError, Refused, RunConfigError

ROOT = Path(__file__).parents[2]
SENTINEL = "SENTINEL-patient-4711"
NODES = len(HOSPITALS)
BOTH = sorted(HOSPITALS).index("both")


@pytest.fixture(scope="module")
def run_config(tmp_path_factory) -> dict[str, object]:
    """Return the run configuration of seven hospitals in a folder whose name must not leave."""
    folder = tmp_path_factory.mktemp(SENTINEL)
    write_radiographs(folder / "data")
    values = {"data": str(folder / "data"), "cache": str(folder / "cache"), "seed": 0, "image-size": 32}
    return RunConfig.model_validate({**values, "hold-out": "outside", "device": "cpu"}).flat()


def message(kind: str, content: RecordDict | None = None) -> Message:
    metadata = Metadata(1, "m", 1, 2, "", "", 0.0, 1e12, kind)
    return Message(content or RecordDict(), metadata=metadata)


def asked(kind: str, **fields: object) -> Message:
    return message(kind, RecordDict({"plan": plan_record(order(kind, **fields)), "arrays": array_record(WEIGHTS)}))


def context(run_config: dict[str, object], **node_config: object) -> Context:
    return Context(1, 2, node_config, RecordDict(), run_config)


def node(run_config: dict[str, object], partition: int = BOTH) -> Context:
    return context(run_config, **{"partition-id": partition, "num-partitions": NODES})


def reason(reply: Message) -> str:
    with pytest.raises(Refused) as caught:
        read_reply(reply.content, SiteCard)
    return caught.value.reason


def wire_bytes(reply: Message) -> bytes:
    """Everything of a reply that Flower sends."""
    return b"".join(each.deflate() for each in get_all_nested_objects(reply).values())


# --- with a site


def test_a_query_is_answered_with_the_card(run_config):
    card = read_reply(app(message(MessageType.QUERY), node(run_config)).content, SiteCard)
    assert (card.site, card.patients) == ("both", 14)


def test_a_training_order_is_answered_with_weights_bound_to_their_report(run_config):
    reply = app(asked("train"), node(run_config))
    report = read_reply(reply.content, TrainReport)
    assert weights_sha256(unpack_arrays(reply.content.array_records["arrays"])) == report.weights_sha256


def test_an_evaluation_order_is_answered_with_statistics_and_pictures(run_config):
    reply = app(asked("evaluate", pictures=2), node(run_config))
    assert read_reply(reply.content, EvaluateReport).statistics.images == 4
    assert len(read_pictures(reply.content)) == 2


def test_a_site_stays_warm_and_remembers_the_rounds_it_answered(run_config):
    app(asked("train", job_id="warm", round=2), node(run_config))
    assert reason(app(asked("train", job_id="warm", round=1), node(run_config))) == "plan_replayed"


def test_a_forged_order_is_refused(run_config):
    forged = asked("train")
    forged.content["plan"]["signature"] = "AAAA"
    assert reason(app(forged, node(run_config))) == "plan_signature"


def test_an_order_for_a_method_of_another_size_names_both_sizes(run_config):
    method = METHOD.model_copy(update={"network": METHOD.network.model_copy(update={"image_size": 64})})
    assert reason(app(asked("train", method=method), node(run_config))) == "image_size"


def test_an_order_that_is_none_is_refused(run_config):
    assert reason(app(message(MessageType.TRAIN), node(run_config))) == "request_malformed"


def test_a_reply_goes_back_to_who_asked(run_config):
    reply = app(message(MessageType.QUERY), context({}))
    assert (reply.metadata.dst_node_id, reply.metadata.src_node_id) == (1, 2)
    assert reply.metadata.reply_to_message_id == "m"


# --- without one


@pytest.mark.parametrize(
    ("node_config", "expected"),
    [
        ({}, "site_not_configured"),
        ({"partition": 0}, "site_not_configured"),
        ({"partition-id": 0}, "site_not_configured"),
        ({"partition-id": "0", "num-partitions": NODES}, "site_not_configured"),
        ({"partition-id": -1, "num-partitions": NODES}, "site_not_configured"),
        ({"partition-id": NODES, "num-partitions": NODES}, "site_not_configured"),
        ({"agent-socket": "/run/multimix.sock", "agent-wait-s": 0}, "agent_unavailable"),
        ({"agent-socket": "/run/multimix.sock", "agent-wait-s": "soon"}, "site_not_configured"),
        # Who names an agent is a hospital: it must not fall back to the images that a run configuration names.
        ({"agent-socket": "/x", "agent-wait-s": 0, "partition-id": 0, "num-partitions": NODES}, "agent_unavailable"),
    ],
)
def test_a_node_that_is_not_set_up_refuses(run_config, node_config, expected):
    reply = app(message(MessageType.QUERY), context(run_config, **node_config))
    assert reason(reply) == expected
    assert b"multimix.sock" not in wire_bytes(reply)


def test_a_misspelt_run_configuration_is_refused_by_its_reason_alone(run_config):
    reply = app(message(MessageType.QUERY), node({**run_config, SENTINEL: 1}))
    assert reason(reply) == "run_config"
    assert SENTINEL.encode() not in wire_bytes(reply)


# --- nothing private leaves or is logged


def failing(error: Exception):
    """Work that fails as deep code does: with a cause, a context and a traceback through this frame."""

    def work() -> RecordDict:
        try:
            raise KeyError(SENTINEL)  # noqa: TRY301  (a context, as deep code leaves one)
        except KeyError as cause:
            raise error from cause

    return work


def answered(caplog, capfd, error: Exception) -> tuple[Message, str]:
    """Return the reply and everything that was logged, at every level, or printed."""
    with caplog.at_level(logging.DEBUG):
        reply = _answer(message(MessageType.TRAIN), failing(error))
    printed = capfd.readouterr()
    details = "".join(f"{record.__dict__}" for record in caplog.records)
    return reply, caplog.text + details + printed.out + printed.err


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(SENTINEL),
        ValueError(f"/data/{SENTINEL}.dcm"),
        FileNotFoundError(2, "No such file", f"/data/{SENTINEL}.dcm"),
        MemoryError(SENTINEL),
        type("Odd", (Exception,), {"__str__": lambda _: SENTINEL})(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unexpected_failure_is_an_internal_error_without_a_word(caplog, capfd, error):
    reply, logged = answered(caplog, capfd, error)
    assert dict(reply.content["refusal"]) == {"reason": "internal_error", "detail": ""}
    assert not reply.has_error()
    assert SENTINEL.encode() not in wire_bytes(reply)
    assert SENTINEL not in logged
    assert f"internal_error ({type(error).__name__})" in logged


@pytest.mark.parametrize("kind", [InputError, ManifestError, RunConfigError])
def test_an_input_error_leaves_and_is_logged_as_its_reason_only(caplog, capfd, kind):
    reply, logged = answered(caplog, capfd, kind("mask_empty", f"/data/{SENTINEL}.csv, row 3"))
    assert dict(reply.content["refusal"]) == {"reason": "mask_empty", "detail": ""}
    assert SENTINEL.encode() not in wire_bytes(reply)
    assert SENTINEL not in logged
    assert "refused: mask_empty" in logged


def test_a_refusal_is_passed_on_and_its_cause_is_not(caplog, capfd):
    reply, logged = answered(caplog, capfd, Refused("too_many_steps", "asked 3, allowed 2"))
    assert dict(reply.content["refusal"]) == {"reason": "too_many_steps", "detail": "asked 3, allowed 2"}
    assert SENTINEL.encode() not in wire_bytes(reply)
    assert SENTINEL not in logged


def test_a_developer_may_see_the_failure_on_the_machine_but_it_still_does_not_leave(caplog, capfd, monkeypatch):
    monkeypatch.setenv("MULTIMIX_DEBUG", "1")
    reply, logged = answered(caplog, capfd, RuntimeError(SENTINEL))
    assert SENTINEL in logged
    assert reason(reply) == "internal_error"
    assert SENTINEL.encode() not in wire_bytes(reply)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data": "nowhere"}, "manifest_missing"),
        ({"cache": "manifest.csv"}, "cannot_write"),
        ({"labels": "both=1000"}, "budget_too_large"),
    ],
    ids=["missing data", "a file in place of the cache", "budget"],
)
def test_real_failures_of_a_site_name_no_file(run_config, caplog, capfd, change, expected):
    """The folder's own name is the sentinel: any path in a reply or log shows."""
    folder = Path(run_config["data"])
    assert SENTINEL in str(folder)
    paths = {key: str(folder / value) for key, value in change.items() if key in ("data", "cache")}
    with caplog.at_level(logging.DEBUG):
        reply = app(message(MessageType.QUERY), node({**run_config, **change, **paths}))
    printed = capfd.readouterr()
    assert reason(reply) == expected
    assert SENTINEL.encode() not in wire_bytes(reply)
    assert SENTINEL not in caplog.text + printed.out + printed.err


def test_no_answer_of_a_healthy_site_names_a_patient_or_path(run_config, caplog, capfd):
    orders = [
        message(MessageType.QUERY),
        asked("train", job_id="silent", evaluate_on="test"),
        asked("evaluate", job_id="silent", pictures=4),
    ]
    with caplog.at_level(logging.DEBUG):
        replies = [app(order, node(run_config)) for order in orders]
    printed = capfd.readouterr()
    logged = caplog.text + printed.out + printed.err
    for reply in replies:
        assert "refusal" not in reply.content
        for private in (SENTINEL, "secret-", ".png"):
            assert private.encode() not in wire_bytes(reply)
            assert private not in logged


def test_the_wire_bytes_of_a_reply_would_show_a_sentinel():
    leaky = Message(refusal_reply(Refused("x", SENTINEL)), reply_to=message(MessageType.TRAIN))
    assert SENTINEL.encode() in wire_bytes(leaky)
    assert SENTINEL.encode() in wire_bytes(
        Message(RecordDict({"a": ConfigRecord({"b": [SENTINEL]})}), reply_to=message(MessageType.TRAIN))
    )


# --- no torch on the networked side


def test_the_app_and_its_contract_work_where_torch_cannot_be_imported():
    code = """
        import sys

        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torch", "scipy"):
                    raise ModuleNotFoundError(f"blocked: {name}")

        sys.meta_path.insert(0, NoTorch())
        from flwr.app import Context, Message, Metadata, RecordDict
        import multimix.contract.messages, multimix.contract.signing, multimix.contract.statistics
        from client.app import app

        metadata = Metadata(1, "m", 1, 2, "", "", 0.0, 1e12, "query")
        context = Context(1, 2, {"agent-socket": "/x", "agent-wait-s": 0}, RecordDict(), {})
        reply = app(Message(RecordDict(), metadata=metadata), context)
        print(reply.content["refusal"]["reason"], "torch" in sys.modules)
        try:
            import torch
        except ModuleNotFoundError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["agent_unavailable False", "blocked: torch"]
