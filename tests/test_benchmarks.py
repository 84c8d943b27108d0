"""What the benchmark of the step claims, where it does not depend on how busy the machine is."""

import json
from pathlib import Path

import pytest

from benchmarks.step import RELEASED_GFLOP_5X10_256PX, flop_figures, gradient_difference

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results.json"


def test_the_released_formulation_gives_the_gradients_of_ours():
    assert gradient_difference() < 1e-12


@pytest.mark.slow
def test_a_step_needs_less_than_half_the_operations_of_the_released_formulation():
    figures = flop_figures()
    assert figures["step_released_gflop"] == pytest.approx(RELEASED_GFLOP_5X10_256PX, rel=0.01)
    assert figures["step_flop_ratio"] >= 2.05


def test_the_committed_results_are_a_flat_map_from_key_to_number():
    results = json.loads(RESULTS.read_text())
    assert all(isinstance(value, int | float) for value in results.values())
    assert set(results) >= {
        "make_run_s",
        "run_overhead_fraction",
        "site_100k_rss_gib",
        "step_cpu_ratio_128px",
        "step_cpu_ratio_256px",
        "step_flop_ratio",
        "step_gradient_difference",
        "store_images_per_s",
    }
