"""Hospitals of a simulation: the i-th node owns the i-th hospital of the run configuration's data.

A simulated site trains without differential privacy and shows sample pictures, because its data is synthetic or
public; its policy says so. Real hospitals are set up by `multimix-site`.
"""

from client.policy import SitePolicy
from client.site import LocalSite
from multimix.contract.run_config import RunConfig
from multimix.contract.signing import simulation_key
from multimix.data.simulation import hospitals_of_nodes

SIMULATION_POLICY = SitePolicy(
    allow_non_private=True, minimum_cohort=1, pictures=64, maximum_width=128, maximum_images_per_group=4096
)


def simulated_site(config: RunConfig, *, partition: int, nodes: int) -> LocalSite:
    """Return the site of one node; RunConfigError unless there is one hospital for each node."""
    return LocalSite(
        hospital=hospitals_of_nodes(config, nodes)[partition],
        policy=SIMULATION_POLICY,
        coordinator=simulation_key(config.seed).public_key(),
        device=config.device,
        synthetic=not config.data,
    )
