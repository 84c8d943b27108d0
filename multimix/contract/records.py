"""Contract messages as Flower records and back: the one file of `multimix` that knows Flower.

A request is {"arrays": ArrayRecord, "plan": ConfigRecord}. A reply is {"report": ConfigRecord} with {"arrays"} after
training, or {"refusal": ConfigRecord}; pictures ride along as bytes.
"""

import re
from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import ValidationError

from multimix.config import Frozen
from multimix.contract.chunks import chunked, pieces, read_weights
from multimix.contract.messages import Picture, SiteCard, Weights
from multimix.contract.privacy import Countersignature
from multimix.contract.signing import SignedPlan
from multimix.contract.site import Evaluated, Trained
from multimix.errors import Refused

ARRAYS, PLAN, REPORT, REFUSAL, PICTURES = "arrays", "plan", "report", "refusal", "pictures"
MAXIMUM_PICTURES = 64  # as many as a plan may ask for
WEIGHTS = "weights"  # the one array of a record: all of them as safetensors bytes
_SAFETENSORS = "safetensors"
_Document = TypeVar("_Document", bound=Frozen)


def array_record(weights: Weights) -> ArrayRecord:
    """Pack named arrays: as one, since each array of a record is a request of its own on every hop of Flower's."""
    data = b"".join(chunked(pieces(weights)))
    return ArrayRecord({WEIGHTS: Array("uint8", (len(data),), _SAFETENSORS, data)})


def unpack_arrays(record: ArrayRecord) -> Weights:
    """Unpack named arrays; ValueError for anything but plain arrays of floats.

    The sender is not trusted: no pickle, no archive, and no memory that the data do not fill.
    """
    if list(record) != [WEIGHTS]:
        raise ValueError("not one array of weights")
    try:
        return read_weights(memoryview(bytearray(record[WEIGHTS].data)))
    except Refused:
        raise ValueError("not arrays of floats") from None


def plan_record(signed: SignedPlan) -> ConfigRecord:
    """Pack a signed plan."""
    known = signed.countersigned.model_dump_json() if signed.countersigned else ""
    return ConfigRecord({"document": signed.document, "signature": signed.signature, "countersigned": known})


def read_request(content: RecordDict) -> tuple[SignedPlan, Weights]:
    """Unpack a plan and its weights, or refuse with `request_malformed`."""
    try:
        record = content.config_records[PLAN]
        known = str(record.get("countersigned") or "")
        countersigned = Countersignature.model_validate_json(known) if known else None
        signed = SignedPlan(str(record["document"]), str(record["signature"]), countersigned)
        return signed, unpack_arrays(content.array_records[ARRAYS])
    except (KeyError, ValueError, TypeError):
        raise Refused("request_malformed") from None


def card_reply(card: SiteCard) -> RecordDict:
    """Pack a site card."""
    return RecordDict({REPORT: ConfigRecord({"document": card.model_dump_json()})})


def trained_reply(trained: Trained) -> RecordDict:
    """Pack a training answer."""
    report = ConfigRecord({"document": trained.report.model_dump_json()})
    return RecordDict({REPORT: report, ARRAYS: array_record(trained.weights)})


def evaluated_reply(evaluated: Evaluated) -> RecordDict:
    """Pack an evaluation answer."""
    records: dict[str, ConfigRecord] = {REPORT: ConfigRecord({"document": evaluated.report.model_dump_json()})}
    if evaluated.pictures:
        records[PICTURES] = ConfigRecord(
            {
                "captions": [picture.caption for picture in evaluated.pictures],
                "pngs": [picture.png for picture in evaluated.pictures],
            }
        )
    return RecordDict(records)


def refusal_reply(refused: Refused) -> RecordDict:
    """Pack a refusal: its reason code and the bounds concerned, nothing else."""
    return RecordDict({REFUSAL: ConfigRecord({"reason": refused.reason, "detail": refused.detail})})


def read_reply(content: RecordDict, kind: type[_Document]) -> _Document:
    """Return the report of a reply; raise `Refused` with the site's own reason, or `reply_malformed`.

    Reason and detail go into logs and reports: a reason that is no code is `unknown`, a detail is one printable line.
    """
    if REFUSAL in content.config_records:
        refusal = content.config_records[REFUSAL]
        reason, detail = str(refusal.get("reason")), str(refusal.get("detail", ""))[:200]
        is_code = re.fullmatch(r"[a-z][a-z0-9_]{0,63}", reason)
        raise Refused(reason if is_code else "unknown", "".join(c if c.isprintable() else " " for c in detail))
    try:
        return kind.model_validate_json(str(content.config_records[REPORT]["document"]))
    except (KeyError, ValidationError):
        raise Refused("reply_malformed") from None


def read_pictures(content: RecordDict) -> tuple[Picture, ...]:
    """Return the pictures of a reply, none if there are none; `reply_malformed` for anything else."""
    record = content.config_records.get(PICTURES)
    if record is None:
        return ()
    captions, pngs = record.get("captions"), record.get("pngs")
    if not isinstance(captions, list) or not isinstance(pngs, list) or len(captions) != len(pngs):
        raise Refused("reply_malformed")
    if len(pngs) > MAXIMUM_PICTURES or not all(isinstance(png, bytes) for png in pngs):
        raise Refused("reply_malformed")
    return tuple(Picture(caption=str(caption), png=png) for caption, png in zip(captions, pngs, strict=True))
