"""Hospitals that need no images: they answer a server's orders through a grid that is a dictionary.

A fake site's training adds a constant that depends on its name and the round, so a test can compute what the
federation must hold afterwards. `misbehaves` replaces the reply of one round.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from multimix.contract.messages import (
    ClassCounts,
    EvaluateReport,
    Picture,
    SiteCard,
    Teachers,
    TrainReport,
    Weights,
    taught_arrays,
    weights_sha256,
)
from multimix.contract.records import card_reply, evaluated_reply, read_request, refusal_reply, trained_reply
from multimix.contract.run_config import RunConfig
from multimix.contract.signing import SignedPlan, simulation_key, verified
from multimix.contract.site import Evaluated, Trained
from multimix.contract.statistics import EvaluationStatistics, Moments, SegmentationStatistics
from multimix.errors import Refused

CONVENTION = "behind_heart"
PLAN_KEY = simulation_key(0)
EVERY_MODULE = {module: Teachers(labelled=10, unlabelled=0) for module in ("encoder", "classifier", "decoder")}


def tiny_run(**fields: object) -> RunConfig:
    """The configuration of a run over fake sites or phantoms: the smallest network, three rounds of one step."""
    smallest = {"image_size": 32, "width": 2, "local_steps": 1, "images_per_group": 1, "deadline_s": 60.0}
    return RunConfig.model_validate({**smallest, **fields})


def card(site: str, **fields: object) -> SiteCard:
    """A site of 40 training patients: 10 normal and 10 pneumonia labels, 15 masks."""
    return SiteCard.model_validate(
        {
            "site": site,
            "role": "train",
            "synthetic": True,
            "device": "cpu",
            "image_size": 32,
            "images": 60,
            "patients": 50,
            "training_patients": 40,
            "labelled_patients": ClassCounts(normal=10, pneumonia=10),
            "masked_patients": {CONVENTION: 15},
            "conventions": (CONVENTION,),
            "data_fingerprint": f"images of {site}",
            "software": {"torch": "2"},
        }
        | fields
    )


def weights(value: float = 0.0) -> Weights:
    """One small array for each module, all of one value."""
    shapes = {"encoder.a": (2, 3), "classifier.b": (2,), "decoder.c": (3,)}
    return {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}


def dice_of(value: float, *, images: int = 4, convention: str = CONVENTION) -> EvaluationStatistics:
    """Statistics of images that all have one Dice (and every other measure the same)."""
    moments = Moments(count=images, total=images * value, squares=images * value**2)
    measures = ("dice", "jaccard", "hausdorff_px", "hausdorff95_px", "ssim")
    table = SegmentationStatistics(images=images, empty_truth=0, empty_prediction=0, **dict.fromkeys(measures, moments))
    return EvaluationStatistics(patients=images, images=images, segmentation={convention: table})


Misbehaviour = Callable[["FakeSite", Message], Message | None]


@dataclass
class FakeSite:
    """One hospital; `asked` lists the kinds and rounds of the orders that it got."""

    card: SiteCard
    teachers: dict[str, Teachers] = field(default_factory=lambda: dict(EVERY_MODULE))
    misbehaves: dict[int, Misbehaviour] = field(default_factory=dict)  # by round
    dice: float = 0.9
    pictures: tuple[Picture, ...] = ()
    asked: list[tuple[str, int]] = field(default_factory=list)

    def answer(self, message: Message) -> Message | None:
        if message.metadata.message_type == MessageType.QUERY:
            return self.describe(message)
        signed, _ = read_request(message.content)
        plan = verified(signed, PLAN_KEY.public_key())
        self.asked.append((plan.kind, plan.round))
        if plan.kind == "train" and plan.round in self.misbehaves:
            return self.misbehaves[plan.round](self, message)
        return self.train(message) if plan.kind == "train" else self.evaluate(message)

    def describe(self, message: Message) -> Message | None:
        return Message(card_reply(self.card), reply_to=message)

    def trained(self, message: Message) -> Trained:
        """What an honest site sends: every number larger by `self.step(round)`."""
        signed, received = read_request(message.content)
        plan = verified(signed, PLAN_KEY.public_key())
        moved = {name: value + np.float32(self.step(plan.round)) for name, value in received.items()}
        sent = taught_arrays(moved, self.teachers)
        report = TrainReport(
            site=self.card.site,
            job_id=plan.job_id,
            round=plan.round,
            plan_sha256=signed.sha256,
            weights_sha256=weights_sha256(sent),
            steps=1,
            teachers=self.teachers,
            losses={"total": 1.0 / plan.round},
            seconds={"total": 0.5},
            evaluation=self.scores(signed),
        )
        return Trained(report, sent)

    def train(self, message: Message) -> Message:
        return Message(trained_reply(self.trained(message)), reply_to=message)

    def step(self, round_number: int) -> float:
        return 0.001 * round_number * (1 + sum(self.card.site.encode()) % 7)

    def scores(self, signed: SignedPlan) -> EvaluateReport:
        plan = verified(signed, PLAN_KEY.public_key())
        return EvaluateReport(
            site=self.card.site,
            job_id=plan.job_id,
            round=plan.round,
            plan_sha256=signed.sha256,
            split="validation" if plan.kind == "train" else "test",
            statistics=dice_of(self.dice, convention=self.card.conventions[0]),
        )

    def evaluate(self, message: Message) -> Message | None:
        signed, _ = read_request(message.content)
        return Message(evaluated_reply(Evaluated(self.scores(signed), self.pictures)), reply_to=message)


@dataclass
class FakeGrid:
    """The part of Flower's Grid that the server uses; node 2 is the first site."""

    sites: Sequence[FakeSite]
    away: set[int] = field(default_factory=set)  # nodes that are not connected

    def __post_init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in range(2, 2 + len(self.sites)) if node not in self.away]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = [self.sites[m.metadata.dst_node_id - 2].answer(m) for m in messages]
        return [reply for reply in reversed(replies) if reply is not None]  # late sites answer first


def silent(_site: FakeSite, _message: Message) -> None:
    """No reply before the deadline."""


def node_error(_site: FakeSite, message: Message) -> Message:
    """What Flower sends for an app that crashed."""
    return Message(Error(2, "ValueError: secret of a patient"), reply_to=message)


def refuses(reason: str) -> Misbehaviour:
    """The site's own policy says no."""
    return lambda _site, message: Message(refusal_reply(Refused(reason)), reply_to=message)


def garbled(_site: FakeSite, message: Message) -> Message:
    """A report that is no report."""
    return Message(RecordDict({"report": ConfigRecord({"document": "{"})}), reply_to=message)


def without_arrays(site: FakeSite, message: Message) -> Message:
    """A report without the weights it speaks of."""
    content = trained_reply(site.trained(message))
    del content["arrays"]
    return Message(content, reply_to=message)


def unreadable_arrays(site: FakeSite, message: Message) -> Message:
    """Weights whose bytes are no arrays."""
    content = trained_reply(site.trained(message))
    for array in content["arrays"].values():
        array.data = b"\x80\x04no array"
    return Message(content, reply_to=message)


def sends(**fields: object) -> Misbehaviour:
    """An honest reply but for some fields of its report."""

    def answer(site: FakeSite, message: Message) -> Message:
        trained = site.trained(message)
        report = trained.report.model_copy(update=fields)
        return Message(trained_reply(replace(trained, report=report)), reply_to=message)

    return answer


def sends_weights(change: Callable[[Weights], Weights]) -> Misbehaviour:
    """An honest report of other weights."""

    def answer(site: FakeSite, message: Message) -> Message:
        trained = site.trained(message)
        sent = change(trained.weights)
        report = trained.report.model_copy(update={"weights_sha256": weights_sha256(sent)})
        return Message(trained_reply(Trained(report, sent)), reply_to=message)

    return answer


def not_a_number(sent: Weights) -> Weights:
    spoiled = {name: value.copy() for name, value in sent.items()}
    spoiled[min(spoiled)].flat[0] = np.nan
    return spoiled
