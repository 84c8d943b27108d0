"""`make bench`: measures everything and writes benchmarks/results.json; `python -m benchmarks KEY...` some of it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import agent, audit, deployment, gpu, intake, privacy, site, step, store

RESULTS = Path(__file__).parent / "results.json"
ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """Return the real radiographs: $MULTIMIX_DATA, or shared/data beside the checkout."""
    return Path(os.environ.get("MULTIMIX_DATA", ROOT.parent / "shared" / "data")) / "cxr"


def make_run_s() -> float:
    """Return how long `make run` takes after installation."""
    started = time.perf_counter()
    subprocess.run(["make", "run"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


BENCHMARKS: dict[str, Callable[[], float | dict[str, float]]] = {
    "step": step.figures,
    "store_images_per_s": store.store_images_per_s,
    "site_100k_rss_gib": site.site_100k_rss_gib,
    "run_overhead_fraction": lambda: site.run_overhead_fraction(data_folder()),
    "intake": intake.figures,
    "privacy": privacy.figures,
    "audit": audit.figures,
    "agent": agent.figures,
    "deployment": deployment.figures,
    "gpu": gpu.figures,
    "make_run_s": make_run_s,
}


def main(chosen: list[str]) -> None:
    """Run the benchmarks named, or all, and keep the figures of those not run."""
    unknown = set(chosen) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"no benchmark {sorted(unknown)}: choose from {sorted(BENCHMARKS)}")
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() and chosen else {}
    for name in chosen or BENCHMARKS:
        if name == "run_overhead_fraction" and not data_folder().exists():
            print(f"{name} skipped: no radiographs in {data_folder()} (set MULTIMIX_DATA)")
            continue
        if name == "gpu" and not torch.cuda.is_available():
            print("gpu skipped: torch sees none here")
            continue
        measured = BENCHMARKS[name]()
        figures = measured if isinstance(measured, dict) else {name: measured}
        known.update(figures)
        for key, value in figures.items():
            print(f"{key:32} {value:.6g}", flush=True)
        RESULTS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
