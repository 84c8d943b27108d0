"""A model of synthetic images to begin a private run with: it costs no patient anything.

Phantoms teach where lungs are and roughly what an opacity looks like; their images also give the constants that
standardise the classifier's features. Private training then moves few numbers, so that little noise goes a long way.
"""

from pathlib import Path

import numpy as np

from multimix.contract.run_config import RunConfig
from multimix.errors import RunConfigError
from multimix.standardise import standardise
from multimix.weights import export, load_model, save_model
from sim.run import hospitals_of, simulate

FILE = "public.safetensors"
_IMAGES = 400  # for the constants


def pretrain(config: RunConfig, *, workers: int = 1) -> Path:
    """Train on phantoms, standardise, and return the model's file.

    Raises:
        RunConfigError: `pretrain_data` where the configuration names images or privacy: this is for phantoms alone.
    """
    if config.data or config.dp != "none":
        raise RunConfigError("pretrain_data", "Pretraining is on synthetic phantoms: leave out data and dp.")
    _, folder = simulate(config, workers=workers)
    network = load_model(folder / "model.safetensors")
    hospitals = hospitals_of(config)
    store = hospitals[0].store()
    rows = np.concatenate([hospital.rows for hospital in hospitals])
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _IMAGES).astype(int))]
    if network.config.standardised:
        standardise(network, store.load_images(chosen))
    path = folder / FILE
    save_model(path, export(network), network.config, fit=config.fit)
    return path
