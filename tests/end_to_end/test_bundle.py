"""What the server delivers to hospitals as the app: all that the apps need, nothing else."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle():
    return zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT)))


def test_the_bundle_holds_the_four_packages_the_page_and_the_licence(bundle):
    packages = {
        str(path.relative_to(ROOT))
        for package in ("multimix", "client", "server", "sim")
        for pattern in ("*.py", "*.html.md")
        for path in (ROOT / package).rglob(pattern)
    }
    template = "multimix/privacy/statement.md"  # of the Markdown statement
    expected = packages | {template, "LICENSE", "pyproject.toml", ".info/CONTENT"}
    assert set(bundle.namelist()) == expected


def test_the_apps_import_from_the_unpacked_bundle_alone(bundle, tmp_path):
    bundle.extractall(tmp_path)
    code = (
        "import server.app, client.app, server.report, sys; "
        "assert all(m.__file__.startswith(sys.argv[1]) for m in (server.app, client.app)); server.report.render"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, check=True, timeout=120)


def test_the_bundle_holds_no_image_and_no_test(bundle):
    assert not [name for name in bundle.namelist() if name.endswith((".png", ".jpg", ".jpeg", ".dcm", ".u8"))]
    assert not [name for name in bundle.namelist() if name.startswith("tests/")]
