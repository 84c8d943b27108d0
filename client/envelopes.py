"""Orders and private replies as bytes on disk: what a site was told to do, and what it answered.

One line of JSON, then arrays as safetensors. Both are deterministic, so equal messages are equal bytes. Replies are
committed in the ledger and sent again if asked again; orders are kept so that a round can be replayed in an audit.
"""

import json

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from multimix.contract.messages import TrainReport, Weights, canonical_json
from multimix.contract.signing import SignedPlan
from multimix.contract.site import Trained
from multimix.errors import Refused


def pack(trained: Trained) -> bytes:
    """Return a reply as bytes."""
    return _joined(canonical_json(trained.report), trained.weights)


def unpack(data: bytes) -> Trained:
    """Read what `pack` wrote; Refused `reply_damaged` for anything else."""
    report, _, arrays = data.partition(b"\n")
    try:
        return Trained(TrainReport.model_validate_json(report), load(arrays))
    except (ValidationError, SafetensorError):
        raise Refused("reply_damaged") from None


def pack_order(signed: SignedPlan, weights: Weights) -> bytes:
    """Return an order as bytes: the signed plan, without the countersignature beside it, and the weights sent."""
    text = json.dumps({"document": signed.document, "signature": signed.signature}, sort_keys=True)
    return _joined(text, weights)


def unpack_order(data: bytes) -> tuple[SignedPlan, Weights]:
    """Read what `pack_order` wrote; Refused `order_damaged` for anything else."""
    signed, _, arrays = data.partition(b"\n")
    try:
        return SignedPlan(**json.loads(signed)), load(arrays)
    except (ValueError, TypeError, SafetensorError):
        raise Refused("order_damaged") from None


def _joined(text: str, weights: Weights) -> bytes:
    arrays = {name: np.asarray(value, order="C") for name, value in sorted(weights.items())}
    packed: bytes = save(arrays)
    return text.encode() + b"\n" + packed
