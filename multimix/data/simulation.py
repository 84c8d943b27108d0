"""The hospitals of a simulated federation, from a run configuration: one for each node.

Server, client and laboratory ask here, so that a mistake in the configuration is told to the person who made it
before a hospital is asked for anything.
"""

import re
from functools import lru_cache
from pathlib import Path

from multimix.contract.messages import NAME_PATTERN
from multimix.contract.run_config import RunConfig
from multimix.data.cache import Progress
from multimix.data.hospitals import FederationData, Hospital, hospitals
from multimix.errors import RunConfigError


def federation_data(config: RunConfig, *, nodes: int) -> FederationData:
    """Return which images belong to whom; `nodes` is how many hospitals the phantoms get where none is set."""
    return FederationData(
        data=Path(config.data) if config.data else None,
        phantom_hospitals=config.phantom_hospitals or nodes,
        phantom_patients=config.phantom_patients,
        site_column=config.site_column,
        hold_out=config.held_out(),
        labels=config.labels,
        masks=config.masks,
        pooled=config.pooled,
        dirichlet_sites=config.dirichlet_sites,
        dirichlet_alpha=config.dirichlet_alpha,
        image_size=config.image_size,
        fit=config.fit,
        seed=config.seed,
        split_seed=config.seed if config.split_seed < 0 else config.split_seed,
        mask_convention=config.mask_convention,
    )


def simulated_hospitals(config: RunConfig, *, nodes: int, progress: Progress | None = None) -> tuple[Hospital, ...]:
    """Return the hospitals, by name; decodes the images on first use.

    Raises:
        InputError: the images cannot be used, or a hospital's name cannot travel.
    """
    found = hospitals(federation_data(config, nodes=nodes), cache=Path(config.cache), progress=progress)
    for hospital in found:
        if not re.fullmatch(NAME_PATTERN, hospital.name):
            raise RunConfigError(
                "hospital_name",
                f"The hospital {hospital.name!r} (site-column = {config.site_column}) cannot be the name of a site: "
                "use 1 to 64 letters, digits, points, underscores and hyphens, the first a letter or digit.",
            )
    return found


@lru_cache(maxsize=4)
def hospitals_of_nodes(config: RunConfig, nodes: int) -> tuple[Hospital, ...]:
    """Return one hospital for each node, remembered by this process; RunConfigError unless there are as many."""
    found = simulated_hospitals(config, nodes=nodes)
    if len(found) != nodes:
        names = ", ".join(hospital.name for hospital in found)
        raise RunConfigError(
            "nodes_and_hospitals",
            f"There are {nodes} nodes for {len(found)} hospitals ({names}): give one node to each, for instance "
            f"flwr run . --federation-config 'num-supernodes={len(found)}'.",
        )
    return found
