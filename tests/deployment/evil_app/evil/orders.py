"""The orders of a hostile server: it has the coordinator's key and the site's card, and signs whatever it likes."""

from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from multimix.config import MethodConfig, preset, row
from multimix.contract.messages import LocalWork, RoundPlan, SiteCard, Weights, weights_sha256
from multimix.contract.privacy import Extension, LedgerHead, PatientPrivacy, countersign
from multimix.contract.signing import SignedPlan, sign
from multimix.network import new_network
from multimix.weights import export

EPSILON, DELTA = 50.0, 0.001  # what the hospital declared: for a run, and for a lifetime
DRAINS = 8  # orders of the costliest kind; the budget lasts for about four
_AGENT = "/multimix.agent.v1.Agent/"
METHODS = (
    *(_AGENT + name for name in ("Approve", "Pause", "Resume", "Leave", "Cancel", "Progress", "Ledger", "Files")),
    *("/multimix.agent.v1.Local/Cancel", "/multimix.agent.v1.Local/Progress"),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
)
NOTHING = SignedPlan("", "")


@dataclass(frozen=True)
class Attack:
    """One order, and how the ClientApp puts it to the agent: `client_app.WAYS`."""

    name: str
    way: str
    signed: SignedPlan = NOTHING


@dataclass(frozen=True)
class Coordinator:
    """Makes plans that a private site accepts, but for what is given."""

    card: SiteCard
    key: Ed25519PrivateKey

    def method(self, *, width: int = 2) -> MethodConfig:
        return row("enc-ssl", preset("modern", image_size=self.card.image_size, width=width))

    def weights(self) -> Weights:
        return export(new_network(self.method().network, 0))

    def privacy(self, **given: object) -> PatientPrivacy:
        """As weak as a fresh policy allows: everybody in each step, and noise of half the clip norm."""
        asked = {
            "noise_multiplier": 0.5,
            "clip_norm": 1.0,
            "sampling_rate": 1.0,
            "declared_patients": self.card.training_patients,
            "images_per_patient": 1,
            "delta": DELTA,
            "modules": ("encoder", "classifier"),
            "module_weights": {"encoder": 1.0, "classifier": 1.0},
            "rounds": 50,
            "epsilon": EPSILON,
        }
        return PatientPrivacy.model_validate(asked | given)

    def plan(self, job: str, **given: object) -> RoundPlan:
        asked = {
            "job_id": job,
            "round": 1,
            "kind": "train",
            "seed": 0,
            "method": self.method(),
            "work": work(3),
            "weights_sha256": weights_sha256(self.weights()),
            "dp": self.privacy(),
        }
        return RoundPlan.model_validate(asked | given)

    def order(self, job: str, **given: object) -> SignedPlan:
        return sign(self.plan(job, **given), self.key)


def work(steps: int) -> LocalWork:
    return LocalWork(steps=steps, images_per_group=1, total_steps=1000)


def against_memory(by: Coordinator) -> list[Attack]:
    """What would fill the agent's memory."""
    allowed = by.order("memory")
    return [Attack("10 GB", "10 GB", allowed), Attack("all that is allowed, never sent", "never sent", allowed)]


def without_right(by: Coordinator) -> list[Attack]:
    """No orders of the coordinator, and none that the agent knows."""
    allowed, foreign = by.order("unread"), Ed25519PrivateKey.generate()
    head = Extension(public_key="AA==", since=LedgerHead(), digests=(), head=LedgerHead())
    forged = replace(allowed, countersigned=countersign(by.card.site, head, foreign))
    later = sign(by.plan("unread").model_copy(update={"protocol": 99}), by.key)
    return [
        Attack("unsigned", "train", replace(allowed, signature="")),
        Attack("foreign key", "train", sign(by.plan("unread"), foreign)),
        Attack("foreign countersignature", "train", forged),
        Attack("plan of an unknown protocol", "train", later),
        Attack("call of an unknown protocol", "unknown protocol", allowed),
        Attack("pickle", "pickle", allowed),
        Attack("other weights", "other weights", allowed),
    ]


def beyond_policy(by: Coordinator) -> list[Attack]:
    """Signed as it should be, and more than the hospital allows."""
    asked = {
        "without privacy": {"dp": None},
        "over the budget": {"work": work(20)},
        "too large an epsilon": {"dp": by.privacy(epsilon=2 * EPSILON)},
        "too little noise": {"dp": by.privacy(noise_multiplier=0.1)},
        "too large a clip norm": {"dp": by.privacy(clip_norm=1000.0)},
        "more patients than there are": {"dp": by.privacy(declared_patients=10_000)},
        "more images of a patient": {"dp": by.privacy(images_per_patient=1000)},
        "too wide a network": {"method": by.method(width=128)},
    }
    attacks = [Attack(name, "train", by.order(name.replace(" ", "-"), **given)) for name, given in asked.items()]
    figures = {"kind": "evaluate", "dp": None, "work": None, "evaluate_on": "test", "pictures": 64}
    return [*attacks, Attack("exact figures", "evaluate", by.order("figures", **figures))]


def replays(by: Coordinator) -> list[Attack]:
    """One order that is allowed, and what can be made of it afterwards."""
    allowed = by.order("replays", round=2)
    return [
        Attack("allowed", "train", allowed),
        Attack("again", "train", allowed),
        Attack("again with other weights", "other weights", allowed),
        Attack("the same round with another plan", "train", by.order("replays", round=2, seed=1)),
        Attack("an older round", "train", by.order("replays", round=1)),
        Attack("other privacy in a later round", "train", by.order("replays", round=3, dp=by.privacy(delta=DELTA / 2))),
        Attack("later again with other weights", "other weights", allowed),
        Attack("later again", "train", allowed),
    ]


def drain(by: Coordinator) -> list[Attack]:
    """The costliest order there is, under one new name after the other."""
    return [Attack(f"drain {number}", "train", by.order(f"drain-{number}")) for number in range(DRAINS)]


def control(_by: Coordinator) -> list[Attack]:
    """What only the hospital's people decide, and what the connector has no call for."""
    return [Attack(method, method) for method in METHODS]


def unapproved(by: Coordinator) -> list[Attack]:
    """A job that nobody approved, before and after the app tries to approve it itself."""
    order = by.order("unapproved")
    return [
        Attack("unapproved", "train", order),
        Attack("approving", _AGENT + "Approve"),
        Attack("still unapproved", "train", order),
    ]


SETS = {
    "memory": (against_memory,),
    "orders": (without_right, beyond_policy, control, replays, drain),
    "unapproved": (unapproved,),
}
