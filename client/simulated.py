"""Hospitals of a simulation: the i-th node owns the i-th hospital of the run configuration's data.

A simulated site trains without differential privacy and shows sample pictures, because its data is synthetic or
public; its policy says so. Real hospitals are set up by `multimix-site`.
"""

import re
from pathlib import Path

from client.policy import SitePolicy
from client.site import LocalSite
from multimix.contract.messages import NAME_PATTERN
from multimix.contract.run_config import RunConfig
from multimix.contract.signing import simulation_key
from multimix.data.hospitals import FederationData, Hospital, Progress, hospitals
from multimix.errors import RunConfigError

SIMULATION_POLICY = SitePolicy(allow_non_private=True, minimum_cohort=1, pictures=64)


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
        dirichlet_sites=config.dirichlet_sites,
        dirichlet_alpha=config.dirichlet_alpha,
        image_size=config.image_size,
        fit=config.fit,
        seed=config.seed,
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


def simulated_site(config: RunConfig, *, partition: int, nodes: int) -> LocalSite:
    """Return the site of one node; RunConfigError unless there is one hospital for each node."""
    found = simulated_hospitals(config, nodes=nodes)
    if len(found) != nodes:
        names = ", ".join(hospital.name for hospital in found)
        raise RunConfigError(
            "nodes_and_hospitals",
            f"There are {nodes} nodes for {len(found)} hospitals ({names}): give one node to each, for instance "
            f"flwr run . --federation-config 'num-supernodes={len(found)}'.",
        )
    return LocalSite(
        hospital=found[partition],
        policy=SIMULATION_POLICY,
        coordinator=simulation_key(config.seed).public_key(),
        device=config.device,
        synthetic=not config.data,
    )
