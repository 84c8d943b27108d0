"""One trained model of an experiment, as data: what it learns with, on how many labels, for how long.

A case is all that decides its result, so its hash says whether a finished one is still the one that is asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from multimix.config import Frozen, MethodConfig
from multimix.contract.messages import canonical_json, sha256_text
from multimix.contract.run_config import RunConfig

Budget = Annotated[int, Field(ge=0)] | None
"""Of labels or masks; None is all of them."""
Row = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class CentralCase(Frozen):
    """One central training of the paper's task: a row of the table in one cell of the grid, with one seed."""

    kind: Literal["central"] = "central"
    row: Row
    labels: Budget
    masks: Budget
    seed: Annotated[int, Field(ge=0)] = 0
    method: MethodConfig
    steps: Annotated[int, Field(ge=1)]
    images_per_group: Annotated[int, Field(ge=1)]
    # A U-Net is trained first, on the masks; the classifier then sees the lungs that it draws, cut out of every image.
    lungs_by: MethodConfig | None = None
    lungs_masks: Budget = 0

    @property
    def group(self) -> str:
        """The cell of the grid, written labels-masks as in the paper."""
        return f"{budget_name(self.labels)}-{budget_name(self.masks)}"

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.method.network.image_size


class _Run(Frozen):
    """What is run by a configuration."""

    config: RunConfig  # data, cache and out are filled in by who runs it

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.config.seed

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.config.image_size


class PhantomCase(_Run):
    """A public model, taught by phantoms: private runs begin with it, since it costs no patient anything.

    `config` is that of its training.
    """

    kind: Literal["phantoms"] = "phantoms"
    row: Literal["phantoms"] = "phantoms"
    group: str  # of the runs that begin with it
    scored: RunConfig  # of a run whose hospitals it is scored at


class FederatedCase(_Run):
    """One run of a federation, or of one of its hospitals alone, or of all their images in one place."""

    kind: Literal["federated"] = "federated"
    row: Row
    group: str  # who is held out
    method: MethodConfig  # what its preset means
    from_phantoms: PhantomCase | Literal[False] = False  # the public model it begins with


class _Beside(Frozen, ABC):
    """What is compared with another case and scored on the same images."""

    @property
    @abstractmethod
    def other(self) -> CentralCase | FederatedCase:
        """That case."""

    @property
    def group(self) -> str:
        """That of the other case."""
        return self.other.group

    @property
    def seed(self) -> int:
        """That of the other case."""
        return self.other.seed

    @property
    def image_size(self) -> int:
        """That of the other case."""
        return self.other.image_size


class BaselineCase(_Beside):
    """An answer that needs no network, taught by the labels and masks of another case."""

    kind: Literal["baseline"] = "baseline"
    row: Literal["majority", "mean-mask", "thumbnail-ridge"]
    of: Annotated[CentralCase | FederatedCase, Field(discriminator="kind")]

    @property
    def other(self) -> CentralCase | FederatedCase:
        """Whose images, labels and masks teach it."""
        return self.of


class EnsembleCase(_Beside):
    """Hospitals that share no weights, only answers: the mean of what their own models say of an image."""

    kind: Literal["ensemble"] = "ensemble"
    row: Row
    like: FederatedCase  # whose hospitals are scored
    classifiers: tuple[FederatedCase, ...]  # the runs of those that have labels
    segmenters: tuple[FederatedCase, ...]  # of those that have masks

    @property
    def other(self) -> FederatedCase:
        """The federation it is compared with."""
        return self.like


class ScaleCase(_Run):
    """A short run of many simulated sites, for what a round takes; nothing is scored."""

    kind: Literal["scale"] = "scale"
    row: Literal["in-process", "ray"]

    @property
    def group(self) -> str:
        """How many sites."""
        return f"{self.config.dirichlet_sites}-sites"


AnyCase = CentralCase | FederatedCase | BaselineCase | EnsembleCase | ScaleCase | PhantomCase
Case = Annotated[AnyCase, Field(discriminator="kind")]


def case_name(case: AnyCase) -> str:
    """Return the folder of a case's results; unique in an experiment."""
    return name_of(case.row, case.group, case.seed)


def name_of(row: str, group: str, seed: int) -> str:
    """Return the name of the case of a row, a group and a seed."""
    return f"{row}_{group}_s{seed}"


def case_sha256(case: AnyCase) -> str:
    """Return the hash of everything that decides a case's result."""
    return sha256_text(canonical_json(case))


def budget_name(budget: int | None) -> str:
    """Return a budget as the paper writes it."""
    return "Full" if budget is None else str(budget)


def needs(case: AnyCase) -> tuple[str, ...]:
    """Return the names of the cases that have to be finished before this one."""
    others: tuple[AnyCase, ...] = ()
    if isinstance(case, EnsembleCase):
        others = (*case.classifiers, *case.segmenters)
    elif isinstance(case, FederatedCase) and case.from_phantoms:
        others = (case.from_phantoms,)
    return tuple(case_name(other) for other in others)


def baselines_of(case: CentralCase | FederatedCase) -> Iterator[BaselineCase]:
    """Yield the answers that need no network, taught as a case is."""
    for row in ("majority", "mean-mask", "thumbnail-ridge"):
        yield BaselineCase(row=row, of=case)
