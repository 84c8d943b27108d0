"""What training costs beside the steps, and how much memory a large site needs."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_GIB = 1024**3
LARGE_SITE_IMAGES = 100_000
LARGE_SITE_PX = 128


def run_overhead_fraction(data: Path) -> float:
    """Return the share of an in-process run at 128 px on real radiographs that is not the model computing.

    The model computes in training steps (targets, loss, gradients, optimiser) and in the forward passes of
    evaluations. Everything else counts as overhead: loading, augmentation, metrics, hashing, messages, averaging,
    checkpoints, report.
    """
    from multimix.contract.run_config import RunConfig
    from sim.run import hospitals_of, simulate

    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            data=str(data),
            hold_out="montgomery",
            labels="200",
            masks="50",
            image_size=128,
            rounds=3,
            local_steps=10,
            images_per_group=4,
            out=f"{folder}/run",
            cache=f"{folder}/cache",
        )
        hospitals_of(config)
        started = time.perf_counter()
        results, _ = simulate(config, workers=1)
        whole = time.perf_counter() - started
    in_rounds = sum(
        site.seconds.get("step", 0.0) + site.seconds.get("evaluation_model", 0.0)
        for record in results.rounds
        for site in record.sites.values()
    )
    in_scoring = sum(site.seconds.get("evaluation_model", 0.0) for site in results.sites.values())
    return 1.0 - (in_rounds + in_scoring) / whole


def site_100k_rss_gib() -> float:
    """Return the peak resident memory of a process that trains a site of 100,000 images at 128 px for a round."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.site", folder]
        subprocess.run([*command, "write"], check=True)
        done = subprocess.run([*command, "train"], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) / _GIB


def _train_large_site(folder: Path) -> int:
    """Train 20 steps, evaluate on 1,000 images, read all; return the peak resident bytes of this process."""
    import numpy as np
    import torch

    from client.simulated import SIMULATION_POLICY
    from client.site import LocalSite
    from multimix.config import preset
    from multimix.contract.messages import LocalWork, RoundPlan, weights_sha256
    from multimix.contract.signing import sign, simulation_key
    from multimix.data.hospitals import Hospital
    from multimix.data.sampling import Budget
    from multimix.network import new_network
    from multimix.weights import export

    torch.set_num_threads(1)
    method = preset("modern", image_size=LARGE_SITE_PX)
    weights = export(new_network(method.network, 0))
    plan = RoundPlan(
        job_id="large",
        round=1,
        kind="train",
        seed=0,
        method=method,
        work=LocalWork(steps=20, images_per_group=4, total_steps=20),
        evaluate_on="validation",
        weights_sha256=weights_sha256(weights),
    )
    hospital = Hospital(
        name="large",
        role="train",
        store_path=folder / "store",
        rows=np.arange(LARGE_SITE_IMAGES),
        budget=Budget(labels=1000, masks=500),
        conventions=None,
        seed=0,
    )
    site = LocalSite(hospital, SIMULATION_POLICY, simulation_key(0).public_key(), device="cpu")
    site.describe()
    site.train(sign(plan, simulation_key(0)), weights)
    for rows in np.array_split(np.random.default_rng(0).permutation(LARGE_SITE_IMAGES), 3000):
        site.store.load_images(rows)  # every image once, as epochs of training would
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    target, action = Path(sys.argv[1]), sys.argv[2]
    if action == "write":
        from benchmarks.store import make_large_store

        make_large_store(target / "store", images=LARGE_SITE_IMAGES, image_size=LARGE_SITE_PX)
    else:
        print(_train_large_site(target))
