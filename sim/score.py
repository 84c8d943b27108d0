"""Score any model at the hospitals of a configuration: what a run started from, beside what came out of it."""

from pathlib import Path

from multimix.contract.run_config import RunConfig
from multimix.errors import RunConfigError
from multimix.evaluation import evaluate
from multimix.weights import load_model
from server.convention import site_figures
from server.results import Metrics
from sim.run import hospitals_of


def score(model: Path, config: RunConfig) -> dict[str, Metrics]:
    """Return the figures of each hospital's test patients.

    Raises:
        InputError: the model or the images cannot be used; RunConfigError `image_size` where they do not fit.
    """
    network = load_model(model)
    if network.config.image_size != config.image_size:
        raise RunConfigError(
            "image_size",
            f"The model is of {network.config.image_size} px and image-size = {config.image_size}: give the model's.",
        )
    convention = None if config.mask_convention in ("auto", "all") else config.mask_convention
    result = {}
    for hospital in hospitals_of(config):
        store = hospital.store()
        statistics = evaluate(network, store, hospital.evaluation_rows(store, "test"))
        result[hospital.name] = dict(site_figures(statistics, convention))
    return result
