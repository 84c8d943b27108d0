"""What the benchmark of the step claims, where it does not depend on how busy the machine is."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.privacy import clipped_sum_difference, noise_std_error
from benchmarks.step import RELEASED_GFLOP_5X10_256PX, flop_figures, gradient_difference

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results.json"


def test_the_released_formulation_gives_the_gradients_of_ours():
    assert gradient_difference() < 1e-12


@pytest.mark.slow
def test_a_step_needs_less_than_half_the_operations_of_the_released_formulation():
    figures = flop_figures()
    assert figures["step_released_gflop"] == pytest.approx(RELEASED_GFLOP_5X10_256PX, rel=0.01)
    assert figures["step_flop_ratio"] >= 2.05


def test_the_clipped_sum_is_that_of_one_patient_at_a_time():
    assert clipped_sum_difference() < 1e-12


def test_the_noise_of_a_million_coordinates_has_the_standard_deviation_of_the_plan():
    assert noise_std_error() < 0.01


@pytest.mark.slow
def test_what_is_measured_on_a_gpu_can_be_measured_on_a_cpu(monkeypatch):
    uncompiled = {name: each for name, each in gpu.CHOICES.items() if not each.compiled}
    monkeypatch.setattr(gpu, "CHOICES", uncompiled)
    monkeypatch.setattr(gpu, "PACKED", (2,))
    found = gpu.figures(device="cpu", image_size=32, images_per_group=2)
    assert found["gpu_gradient_error_exact"] == 0
    assert all(found[f"gpu_gradient_error_{name}"] > 0 for name in uncompiled if name != "exact")
    assert all(value > 0 for name, value in found.items() if "error" not in name)


def test_the_committed_results_are_a_flat_map_from_key_to_number():
    results = json.loads(RESULTS.read_text())
    assert all(isinstance(value, int | float) for value in results.values())


def test_the_committed_results_keep_the_bounds_that_were_set():
    results = json.loads(RESULTS.read_text())
    at_least = {
        "step_flop_ratio": 2.05,
        "step_cpu_ratio_128px": 1.9,
        "step_cpu_ratio_256px": 1.9,
        "store_images_per_s": 8000,
        "intake_second_run_speedup": 20,
        "audit_flips_detected_fraction": 1.0,
    }
    at_most = {
        "step_gradient_difference": 1e-12,
        "run_overhead_fraction": 0.10,
        "site_100k_rss_gib": 2.0,
        "make_run_s": 300.0,
        "intake_over_decode_ratio": 1.3,
        "dp_step_ratio_128px": 1.25,
        "dp_memory_ratio": 1.5,
        "dp_clipped_sum_difference": 1e-12,
        "dp_noise_std_error": 0.01,
        "dp_epsilon_accountant_difference": 0.02,
        "ledger_pricing_s_10k": 2.0,
        "audit_verify_s_100k": 60.0,
        "round_overhead_s": 6.0,
        "agent_overhead_fraction": 0.02,
        "agent_memory_ratio_1gb": 2.0,
        "audit_empirical_s_2000_64px": 600.0,
    }
    assert {key: results[key] for key in at_least if results[key] < at_least[key]} == {}
    assert {key: results[key] for key in at_most if results[key] > at_most[key]} == {}
