"""Hospitals that train privately, without images: a ledger of digests, stored replies, noised weights of the plan."""

import hashlib
from dataclasses import dataclass, field

from fake_sites import PLAN_KEY, FakeSite, card
from flwr.app import Message

from multimix.contract.messages import TrainReport, private_arrays, weights_sha256
from multimix.contract.privacy import EMPTY_HEAD, Countersignature, Extension, LedgerHead, chained
from multimix.contract.records import read_request
from multimix.contract.signing import verified
from multimix.contract.site import Trained


def public_key(site):
    """Any text of base64 does: the server signs it and never checks a signature of the ledger's."""
    return site.encode().hex()


def extension(site, digests, since=0):
    """The proof that a ledger of these digests has grown from its first `since` entries."""

    def head(length):
        return LedgerHead(length=length, sha256=chained(EMPTY_HEAD, digests[:length]))

    return Extension(
        public_key=public_key(site), since=head(since), digests=tuple(digests[since:]), head=head(len(digests))
    )


@dataclass
class PrivateSite(FakeSite):
    """Answers a private plan with moved arrays of the plan and its ledger's proof; the same bytes if asked again."""

    digests: list[str] = field(default_factory=list)
    answers: dict[str, Trained] = field(default_factory=dict)  # by plan
    plans: list[str] = field(default_factory=list)  # the documents received for training
    countersigned: list[Countersignature | None] = field(default_factory=list)

    def trained(self, message: Message) -> Trained:
        signed, received = read_request(message.content)
        plan = verified(signed, PLAN_KEY.public_key())
        self.plans.append(signed.document)
        self.countersigned.append(signed.countersigned)
        if signed.sha256 not in self.answers:
            self.digests.append(hashlib.sha256(f"{self.card.site} {len(self.digests)}".encode()).hexdigest())
            learned = private_arrays(received, plan.dp)
            sent = {name: value + value.dtype.type(self.step(plan.round)) for name, value in learned.items()}
            report = TrainReport(
                site=self.card.site,
                job_id=plan.job_id,
                round=plan.round,
                plan_sha256=signed.sha256,
                weights_sha256=weights_sha256(sent),
                steps=plan.work.steps,
                teachers={},
                losses={},
                ledger=extension(self.card.site, self.digests, self._known(signed.countersigned)),
            )
            self.answers[signed.sha256] = Trained(report, sent)
        return self.answers[signed.sha256]

    def _known(self, countersigned):
        return countersigned.head.length if countersigned else 0


def private_sites(names="abc", **misbehaving):
    """Private hospitals of 40 declared training patients; misbehaviour by name and round."""
    return [PrivateSite(card(name), misbehaves=misbehaving.get(name, {})) for name in names]


# Given noise is not searched for, so a run costs a second instead of ten.
PRIVATE = {"dp": "patient", "dp_noise_multiplier": 1.0, "dp_sampling_rate": 0.5, "rounds": 3}
