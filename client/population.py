"""`[population]` of `site.toml`: whose privacy is spent, how much of it there is, and what is public about them.

What is declared here is public by the hospital's decision and never derived from the images. A private run is
told these numbers and nothing else about the patients.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from multimix.config import Frozen
from multimix.contract.messages import ClassCounts, Name
from multimix.contract.privacy import Base64
from multimix.privacy.accountant import default_delta

Epsilon = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class PopulationSettings(Frozen):
    """One patient population, its budget and its ledger."""

    name: Name = "patients"
    declared_patients: Annotated[int, Field(ge=2, le=100_000_000)]
    declared_labels: ClassCounts = ClassCounts()  # about so many patients of each class
    declared_masks: dict[Name, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)  # by convention
    images_per_patient: Annotated[int, Field(ge=1, le=1000)] = 4
    epsilon_per_run: Epsilon = 3.0
    epsilon_lifetime: Epsilon = 8.0
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None  # declared_patients ** -1.1
    ledger: Path | None = None  # a folder; beside the store if not given
    officer_key: Base64 | None = None  # public key of the privacy officer

    @property
    def failure_probability(self) -> float:
        """The delta at which everything is priced."""
        return default_delta(self.declared_patients) if self.delta is None else self.delta

    @property
    def delta_reason(self) -> str:
        """Why it is this."""
        return "declared patients ** -1.1, below one in all patients" if self.delta is None else "set by the hospital"
