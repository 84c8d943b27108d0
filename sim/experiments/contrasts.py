"""Which rows are compared with a test: fixed here, before any run, so that the family is not chosen by its results."""

from collections.abc import Iterator
from typing import Final

from sim.experiments.federations import LOCAL, fedprox, group_without
from sim.experiments.owners import LABELLED, MASKED
from sim.experiments.scales import HELD_OUT
from sim.experiments.suites import ABLATIONS, ExperimentName
from sim.experiments.summary import Contrast

CHEX, NIH = ("chex224/test", "auroc"), ("nih14/test", "auroc")
JSRT, MONTGOMERY, SHENZHEN = (("jsrt/test", "dice"), ("montgomery/test", "dice"), ("shenzhen/test", "dice"))
BOTH: Final = (CHEX, NIH, JSRT, MONTGOMERY, SHENZHEN)
_MASKS: Final = (JSRT, MONTGOMERY, SHENZHEN)

PAPER: Final = (
    Contrast("modern", "modern-supervised", BOTH),  # does semi-supervision help?
    Contrast("modern", "umtl", BOTH),
    Contrast("modern", "paper", BOTH),
    Contrast("modern", "modern-bridge-off", BOTH),  # does the bridge?
    Contrast("modern", "modern-zero-saliency", BOTH),
    Contrast("modern", "modern", _MASKS, control="@zero"),  # does the trained decoder look at it?
    Contrast("modern", "modern", _MASKS, control="@shuffled"),
    Contrast("modern", "thumbnail-ridge", (CHEX, NIH)),
)


def contrasts_of(experiment: ExperimentName) -> tuple[Contrast, ...]:
    """Return the planned comparisons of an experiment."""
    if experiment == "paper":
        return PAPER
    if experiment == "ablation":
        return tuple(_ablation())
    return tuple(_federated()) if experiment == "federated" else ()


def _ablation() -> Iterator[Contrast]:
    for name, _, _ in ABLATIONS:
        yield Contrast(name, "modern", BOTH)
    for name in ("class-only-lungs", "class-only-lungs-equalised"):
        yield Contrast(name, "class-only", (CHEX, NIH))


def _federated() -> Iterator[Contrast]:
    """Compare the federation with what hospitals could have without it, and with what they cannot have."""
    for held_out in HELD_OUT:
        unseen = (f"{held_out}/all", "auroc" if held_out in LABELLED else "dice")
        group = group_without({held_out})
        yield Contrast("fedavg", "ensemble", (unseen,), groups=(group, group))
        for name in LABELLED if held_out in LABELLED else MASKED:
            if name != held_out:
                yield Contrast("fedavg", f"local-{name}", (unseen,), groups=(group, LOCAL))
    group = group_without({HELD_OUT[0]})
    inside = tuple(
        (f"{name}/test", metric)
        for names, metric in ((LABELLED, "auroc"), (MASKED, "dice"))
        for name in names
        if name != HELD_OUT[0]
    )
    everywhere = (*inside, (f"{HELD_OUT[0]}/all", "dice"))
    for other in ("pooled", "plain", fedprox(0.01)):
        yield Contrast("fedavg", other, everywhere, groups=(group, group))
    for name, metric in inside:
        site = name.partition("/")[0]
        yield Contrast("fedavg", f"local-{site}", ((name, metric),), groups=(group, LOCAL))
