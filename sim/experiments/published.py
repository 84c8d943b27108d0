"""The paper's figures: table 2 of Haque et al. (ISBI 2021) and the areas under ROC curves of its supplement."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Final

from multimix.config import Frozen

_FILE: Final = Path(__file__).with_name("published.json")
_MODELS: Final = {
    "u-net": "U-Net",
    "enc": "Enc",
    "enc-ssl": "EncSSL",
    "umtl": "UMTL",
    "umtls": "UMTLS",
    "paper": "MultiMix",
    "modern": "MultiMix",
}
Column = dict[str, float | None]


class Published(Frozen):
    """One row of the paper; a figure is None where the table has a dash."""

    model: str
    labels: str | None
    masks: str | None
    in_domain: Column  # chex224 and jsrt
    cross_domain: Column  # NIH and Montgomery County, without adaptation

    @property
    def group(self) -> str:
        """The cell, named as ours are."""
        return f"{self.labels or 0}-{self.masks or 0}"


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """Return all published rows."""
    return tuple(Published.model_validate(row) for row in json.loads(_FILE.read_text()))


def beside(row: str, group: str) -> Published | None:
    """Return what was published of the row of ours in a cell."""
    model = _MODELS.get(row)
    return next((each for each in published() if each.model == model and each.group == group), None)
