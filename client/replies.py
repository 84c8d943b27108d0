"""A private reply as bytes on disk: what is committed in the ledger, and sent again if asked again.

One line of JSON, the report, then the arrays as safetensors. Both are deterministic, so equal replies are equal bytes.
"""

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from multimix.contract.messages import TrainReport, canonical_json
from multimix.contract.site import Trained
from multimix.errors import Refused


def pack(trained: Trained) -> bytes:
    """Return the reply as bytes."""
    arrays = {name: np.asarray(value, order="C") for name, value in sorted(trained.weights.items())}
    packed: bytes = save(arrays)
    return canonical_json(trained.report).encode() + b"\n" + packed


def unpack(data: bytes) -> Trained:
    """Read what `pack` wrote; Refused `reply_damaged` for anything else."""
    report, _, arrays = data.partition(b"\n")
    try:
        return Trained(TrainReport.model_validate_json(report), load(arrays))
    except (ValidationError, SafetensorError):
        raise Refused("reply_damaged") from None
