"""The round loop: deadline, quorum, checkpoint every round, resume; over Flower's strategy and grid.

Flower's `Strategy.start()` has no start round, quorum or checkpoint, and waits forever for absent nodes. Here a round
is a function of the weights before it: orders go out, replies are admitted or left out with a reason, the
strategy averages, and the result is on disk before the next round begins.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from multimix.contract.messages import (
    EvaluateReport,
    LocalWork,
    MeanMask,
    RoundPlan,
    TrainReport,
    Weights,
    weights_sha256,
)
from multimix.contract.messages import Picture as SitePicture
from multimix.contract.privacy import PatientPrivacy
from multimix.contract.records import (
    ARRAYS,
    REFUSAL,
    array_record,
    plan_record,
    read_pictures,
    read_reply,
    unpack_arrays,
)
from multimix.contract.run_config import RunConfig
from multimix.contract.signing import SignedPlan, sign
from multimix.errors import InputError, Refused
from multimix.privacy.central import SiteLevel
from server.admission import Update, admit, check_evaluation
from server.aggregation import ModuleAverage, SiteLevelRound, order
from server.convention import site_figures
from server.federation import Federation, content
from server.heads import Heads
from server.log import log
from server.private_plan import is_public, learning
from server.results import RoundResult, SiteRound, SiteState, Teachers

_HEADER_BYTES = 1024  # of an array, beside its numbers, at most


@dataclass(frozen=True)
class Orders:
    """What stays the same in every plan of a job."""

    job_id: str
    config: RunConfig
    key: Ed25519PrivateKey
    mask_convention: str | None
    mean_mask: MeanMask | None = None
    privacy: Mapping[str, PatientPrivacy] = field(default_factory=dict)  # by site; of a private run
    heads: Heads | None = None  # the ledgers' heads this server has countersigned
    site_level: SiteLevel | None = None  # noise on the average, for whole sites

    def train(self, round_number: int, weights: Weights, site: str) -> SignedPlan:
        """Sign a site's plan of a training round; all sites have the same one but for their private work."""
        config = self.config
        work = LocalWork(
            steps=config.local_steps,
            images_per_group=config.images_per_group,
            proximal_mu=config.proximal_mu if config.strategy == "fedprox" else 0.0,
            first_step=(round_number - 1) * config.local_steps,
            total_steps=config.rounds * config.local_steps,
        )
        dp = self.privacy.get(site)
        evaluate_on = "validation" if dp is None and self.site_level is None else "none"
        signed = self._sign(round_number, weights, kind="train", work=work, evaluate_on=evaluate_on, dp=dp)
        return self._with_head(signed, site)

    def evaluate(self, weights: Weights, site: str, *, pictures: int) -> SignedPlan:
        """Sign the plan that scores the final model on a site's test patients."""
        last = self.config.rounds
        signed = self._sign(last, weights, kind="evaluate", work=None, evaluate_on="test", pictures=pictures)
        return self._with_head(signed, site)

    def _with_head(self, signed: SignedPlan, site: str) -> SignedPlan:
        """Send the last head that was countersigned along: beside the plan, so that a repeated plan stays the same."""
        return replace(signed, countersigned=self.heads.last(site) if self.heads else None)

    def remember_head(self, site: str, report: TrainReport | EvaluateReport, round_number: int) -> None:
        """Countersign the head of the ledger that a reply proves.

        Refused: `ledger_head_missing` from a site that trains privately, and those of `Heads.countersign`.
        """
        if report.ledger is not None and self.heads is not None:
            self.heads.countersign(site, report.ledger, self.key, job_id=self.job_id, round_number=round_number)
        elif site in self.privacy:
            raise Refused("ledger_head_missing")

    def _sign(self, round_number: int, weights: Weights, **fields: object) -> SignedPlan:
        plan = RoundPlan.model_validate(
            {
                "job_id": self.job_id,
                "round": round_number,
                "seed": self.config.seed,
                "method": self.config.method(),
                "mask_convention": self.mask_convention,
                "one_class_sites": self.config.one_class_sites,
                "mean_mask": self.mean_mask if fields["kind"] == "evaluate" else None,
                "weights_sha256": weights_sha256(weights),
                **fields,
            }
        )
        return sign(plan, self.key)


@dataclass(frozen=True)
class RoundOutcome:
    """The weights after a round, and its record."""

    weights: Weights
    record: RoundResult
    quorum_met: bool


def quorum_of(config: RunConfig, training_sites: int) -> int:
    """Return how many accepted sites a round needs: as configured, or more than half."""
    return config.quorum or training_sites // 2 + 1


def check_federation(federation: Federation, config: RunConfig) -> None:
    """Raise InputError where the job cannot begin: too few training sites."""
    sites, needed = federation.training_sites(), quorum_of(config, len(federation.training_sites()))
    if not sites or len(sites) < needed:
        declined = ", ".join(sorted(set(federation.declined.values()))) or "none"
        raise InputError(
            "quorum",
            f"{len(sites)} training sites answered and quorum = {needed} are needed (reasons given by others: "
            f"{declined}). Connect more sites, or lower quorum.",
        )


def train_round(
    federation: Federation, orders: Orders, weights: Weights, round_number: int, sites: list[str]
) -> RoundOutcome:
    """Run one training round over `sites` and average what is admitted."""
    started = time.perf_counter()
    signed = {site: orders.train(round_number, weights, site) for site in sites}
    strategy = ModuleAverage(
        unlabelled_weight=orders.config.unlabelled_weight,
        weighting=orders.config.weighting,
        site_level=_site_level(orders, weights, sites),
    )
    present = federation.present(sites)
    strategy.plans = {federation.nodes[site]: plan_record(signed[site]) for site in present}
    strategy.previous = weights
    messages = strategy.configure_train(round_number, array_record(weights), ConfigRecord(), federation.grid)
    records: dict[str, SiteRound] = {}
    admission_s = 0.0
    for site, reply in federation.answers(sites, list(messages), deadline_s=orders.config.deadline_s):
        came = time.perf_counter()
        update, records[site] = admitted_reply(
            federation, orders, site, reply, signed=signed[site], round_number=round_number, sent=weights
        )
        if update is not None:
            strategy.take_in(update)
        admission_s += time.perf_counter() - came
    checked = time.perf_counter()
    met = sum(site.state == "accepted" for site in records.values()) >= quorum_of(orders.config, len(sites))
    if met:
        strategy.aggregate_train(round_number, ())
    averaged = strategy.result
    done = time.perf_counter()
    record = RoundResult(
        round=round_number,
        seconds=done - started,
        parts={
            "sites": checked - started - admission_s,
            "admission": admission_s,
            "aggregation": done - checked,
        },
        sites=records,
        module_shares=averaged.shares if averaged else {},
        kept_modules=averaged.kept if averaged else (),
    )
    return RoundOutcome(averaged.weights if averaged else weights, record, met)


def _site_level(orders: Orders, weights: Weights, sites: list[str]) -> SiteLevelRound | None:
    if orders.site_level is None:
        return None
    return SiteLevelRound(orders.site_level, tuple(sites), learning(weights, orders.privacy))


def admitted_reply(
    federation: Federation,
    orders: Orders,
    site: str,
    reply: Message | None,
    *,
    signed: SignedPlan,
    round_number: int,
    sent: Weights,
) -> tuple[Update | None, SiteRound]:
    """Admit one reply, or say why not: absent, refused by the site, or rejected here.

    Under site-level privacy the record tells that a site answered and nothing of what: a reply that cannot be used
    counts as zero, under the name of an accepted one.
    """
    state: SiteState = "absent"
    try:
        answer = content(reply, absent=federation.why_absent(site))
        state = "refused" if REFUSAL in answer.config_records else "rejected"
        update = admit(
            read_reply(answer, TrainReport),
            _weights_in(answer, sent),
            card=federation.cards[site],
            job_id=orders.job_id,
            round_number=round_number,
            plan_sha256=signed.sha256,
            sent=sent,
            maximum_update_norm=orders.config.maximum_update_norm,
            dp=orders.privacy.get(site),
            site_level=orders.site_level is not None,
        )
        orders.remember_head(site, update.report, round_number)
    except Refused as refused:
        return None, _left_out(orders, site, state, refused.reason)
    except ValueError:
        return None, _left_out(orders, site, state, "weights_unreadable")
    if orders.site_level is not None:
        return update, _answered(orders)
    return update, _accepted(update, orders)


def _weights_in(answer: RecordDict, sent: Weights) -> Weights:
    """Unpack a reply's weights; Refused `reply_too_large` before memory is taken to unpack more than was sent."""
    if ARRAYS not in answer.array_records:
        return {}
    record = answer.array_records[ARRAYS]
    if sum(len(array.data) for array in record.values()) > _allowed_bytes(sent):
        raise Refused("reply_too_large")
    return unpack_arrays(record)


def _allowed_bytes(sent: Weights) -> int:
    return sum(value.nbytes + _HEADER_BYTES for value in sent.values())


def _left_out(orders: Orders, site: str, state: SiteState, reason: str) -> SiteRound:
    if orders.site_level is None or state == "absent" or is_public(reason):
        return SiteRound(state=state, reason=reason)
    log.warning("  %s counts as zero in this round: %s", site, reason)  # for the coordinator, who sees every update
    return _answered(orders)


def _answered(orders: Orders) -> SiteRound:
    """Record an answer whose content is protected: the steps are those of the plan."""
    return SiteRound(state="accepted", steps=orders.config.local_steps)


def _accepted(update: Update, orders: Orders) -> SiteRound:
    report = update.report
    losses: dict[str, float | None] = dict(report.losses.items())
    if report.pseudo_label_rate is not None:
        losses["pseudo_label_rate"] = report.pseudo_label_rate
    statistics = report.evaluation.statistics if report.evaluation else None
    return SiteRound(
        state="accepted",
        losses=losses,
        steps=report.steps if update.private_weights is None else orders.config.local_steps,
        seconds=report.seconds,
        update_norm=update.update_norm,
        teachers={
            module: Teachers(labelled_patients=t.labelled, unlabelled_patients=t.unlabelled)
            for module, t in report.teachers.items()
        },
        metrics=site_figures(statistics, orders.mask_convention) if statistics else {},
    )


@dataclass(frozen=True)
class Scores:
    """What the evaluate-only exchange brought."""

    reports: dict[str, EvaluateReport]
    pictures: dict[str, tuple[SitePicture, ...]]
    refused: dict[str, str]


def evaluate_everywhere(
    federation: Federation, orders: Orders, weights_of: dict[str, Weights], *, pictures: int
) -> Scores:
    """Score weights at each named site on its test patients; every site may be given weights of its own."""
    plans = {site: orders.evaluate(weights, site, pictures=pictures) for site, weights in weights_of.items()}
    messages = [
        order(
            federation.nodes[site],
            array_record(weights_of[site]),
            plan_record(plans[site]),
            MessageType.EVALUATE,
        )
        for site in federation.present(plans)
    ]
    replies = federation.exchange(messages, deadline_s=orders.config.deadline_s)
    scores = Scores({}, {}, {})
    for site, signed in plans.items():
        try:
            answer = content(federation.reply_of(site, replies), absent=federation.why_absent(site))
            report = read_reply(answer, EvaluateReport)
            check_evaluation(
                report, "test", card=federation.cards[site], job_id=orders.job_id, plan_sha256=signed.sha256
            )
            if report.ledger is not None:
                orders.remember_head(site, report, orders.config.rounds)
            scores.reports[site], scores.pictures[site] = report, read_pictures(answer)[:pictures]
        except Refused as refused:
            scores.refused[site] = refused.reason
    return scores
