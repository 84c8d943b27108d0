"""What an evidence bundle holds: frozen records that go to one JSON text and back.

Everything that follows from the ledger is derived again when a bundle is checked (`bundle.py`); the rest is what the
auditor measured. An epsilon without bound is the word "infinity", never blank.
"""

import json
import math
from typing import Any, Final, Literal

from pydantic import AwareDatetime, JsonValue, ValidationError

from multimix.audit.attacks import MembershipResult
from multimix.audit.empirical import EmpiricalResult
from multimix.audit.recompute import Recomputation
from multimix.audit.replay import Replayed
from multimix.audit.verification.verify import Verification
from multimix.config import Frozen
from multimix.contract.privacy import Base64, PatientPrivacy, Sha256
from multimix.errors import InputError
from multimix.privacy.entries import Entry
from multimix.privacy.statement_records import Statement

FORMAT: Final = "multimix evidence 1"

Word = Literal["consistent", "contradicted", "incomplete"]


class Keys(Frozen):
    """Public keys (base64, Ed25519) as the auditor got them by other means, and the auditor's own."""

    ledger: Base64
    auditor: Base64
    coordinator: Base64 | None = None
    officer: Base64 | None = None


class RunFacts(Frozen):
    """How a run was configured and what it used, by its entries: each value that occurs, in the order of first use."""

    job_id: str
    first: AwareDatetime
    last: AwareDatetime
    rounds: int
    reservations: int
    answered: int  # of them
    seeded: int  # of them
    steps: int  # reserved
    dp: tuple[PatientPrivacy, ...]
    method_sha256: tuple[str, ...]
    data_fingerprints: tuple[str, ...]  # of the generations of the store
    code: tuple[str, ...]
    delta: tuple[float, ...]
    limit_run: tuple[float, ...]
    limit_lifetime: tuple[float, ...]
    non_private_trainings: int
    non_private_steps: int
    non_private_since: AwareDatetime | None


class Judgement(Frozen):
    """What the evidence comes to. It never says that anything is safe, or proved to be private."""

    word: Word
    contradictions: tuple[str, ...]
    gaps: tuple[str, ...]  # what was not looked at, or could not be


class Evidence(Frozen):
    """Everything that an audit of one site's ledger looked at and found."""

    format: Literal["multimix evidence 1"] = FORMAT
    made: AwareDatetime
    keys: Keys
    ledger_sha256: Sha256  # of the file
    heads_given: bool
    verification: Verification
    recomputation: Recomputation | None
    recomputation_error: str | None  # a reason code
    statement: Statement | None
    empirical: tuple[EmpiricalResult, ...]
    membership: tuple[MembershipResult, ...]  # exact figures that the officer chose to release
    replays: tuple[Replayed, ...]
    runs: tuple[RunFacts, ...]
    refusals: tuple[Entry, ...]
    evaluations: tuple[Entry, ...]
    officer: tuple[Entry, ...]
    tuning: tuple[Entry, ...]
    policy: dict[str, JsonValue] | None  # of the site, as it was when the evidence was made
    policy_sha256: Sha256 | None
    software: dict[str, str]  # the auditor's, versions by name
    judgement: Judgement

    @property
    def seeded(self) -> int:
        """Reservations whose noise anybody can compute."""
        return sum(run.seeded for run in self.runs)

    @property
    def non_private(self) -> int:
        """Trainings without noise."""
        return sum(run.non_private_trainings for run in self.runs)


def evidence_json(evidence: Evidence) -> str:
    """Return the one text of the evidence: sorted, without spaces, numbers that are none as words."""
    return canonical(evidence.model_dump(mode="json"))


def canonical(document: object) -> str:
    """Return the one JSON text of plain data."""
    return json.dumps(_in_words(document), sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_evidence(text: str) -> Evidence:
    """Read it back.

    Raises:
        InputError: `evidence_unreadable`; `evidence_not_canonical` where it is not spelled as it was written.
    """
    try:
        evidence = Evidence.model_validate_json(text)
    except ValidationError:
        raise InputError("evidence_unreadable", "evidence.json is not evidence of this format.") from None
    if evidence_json(evidence) != text:
        raise InputError("evidence_not_canonical", "evidence.json is not spelled as this software writes it.")
    return evidence


def _in_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _in_words(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_in_words(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    return value
