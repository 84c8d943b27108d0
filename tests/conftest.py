"""What needs something outside the repository says so: skipped with a reason elsewhere, an error in CI."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.browser import CHROMIUM
from tests.deployment.hosts import unavailable
from tests.orthanc import ORTHANC

REAL_DATA = Path(os.environ.get("MULTIMIX_DATA", Path(__file__).parents[2] / "shared" / "data"))

torch.set_num_threads(1)
# Machines are shared and noisy: a slow example is no failure.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


def pytest_collection_modifyitems(items):
    missing = {
        "data": None if (REAL_DATA / "cxr" / "manifest.csv").exists() else f"no radiographs in {REAL_DATA}",
        "orthanc": None if ORTHANC else "no Orthanc with its DICOMweb plugin",
        "dicom3tools": None if shutil.which("dciodvfy") else "no dciodvfy on PATH",
        "browser": None if CHROMIUM else "no chromium, chromium-browser or google-chrome on PATH",
        "netns": unavailable(),
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                if os.environ.get("CI") == "true" and marker != "netns":  # a container may not permit them
                    pytest.exit(f"CI must run every test: {reason}", returncode=1)
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def real_data():
    return REAL_DATA
