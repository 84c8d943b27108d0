"""What the documents say is what there is."""

import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
import typer

from multimix.contract.run_config import RunConfig
from multimix.version import __version__
from sim.cli import REAL_DATA_DEFAULTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_version_is_one():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_the_readmes_tree_names_every_module_and_nothing_else():
    blocks = [block for block in README.split("```") if block.lstrip().startswith("multimix/ ")]
    assert len(blocks) == 1
    named = set(re.findall(r"[a-z0-9_]+\.(?:py|html\.md)|statement\.md", blocks[0]))  # other .md files are docs
    packages = ("multimix", "client", "server", "sim", "benchmarks")
    found = [path.name for package in packages for path in (ROOT / package).rglob("*")]
    files = {name for name in found if name.endswith((".py", ".html.md")) or name == "statement.md"}
    assert named == {name for name in files if not name.startswith("__")}


def test_every_configuration_key_is_documented_with_its_default():
    table = (ROOT / "docs" / "configuration.md").read_text()
    documented = dict(re.findall(r"^\| `([a-z-]+)` \| (\S.*?) \|", table, re.MULTILINE))
    shown = {
        key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in RunConfig().flat().items()
    }
    expected = {key: f"`{value}`" if value else "empty" for key, value in shown.items()}
    assert documented == expected


def test_the_defaults_for_real_radiographs_are_documented():
    text = (ROOT / "docs" / "configuration.md").read_text()
    for key, value in REAL_DATA_DEFAULTS.items():
        assert f"`{key}={value}`" in text


def test_no_image_and_no_registry_host_is_in_the_repository():
    import subprocess

    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    synthetic = {"docs/report.png"}  # a screenshot of a report on phantoms
    assert not [
        name
        for name in set(names) - synthetic
        if name.endswith((".png", ".jpg", ".jpeg", ".dcm", ".u8", ".safetensors"))
    ]
    hosts = re.compile("|".join(("pypi" + r"\.org", "python" + r"hosted", "npmjs" + r"\.")))
    texts = [name for name in names if name.endswith((".py", ".md", ".toml", "Makefile", "run"))]
    assert not [name for name in texts if hosts.search((ROOT / name).read_text())]


def test_the_readmes_table_is_that_of_the_committed_results():
    from server.results import read_results
    from sim.tables import markdown

    assert markdown(read_results(ROOT / "docs" / "runs" / "cxr")) in README


def test_the_committed_run_on_real_radiographs_reaches_what_the_issue_asks():
    from server.results import read_results

    results = read_results(ROOT / "docs" / "runs" / "cxr")
    assert results.status == "finished"
    assert (results.finished - results.started).total_seconds() < 40 * 60
    assert {name for name, site in results.sites.items() if site.role == "held-out"} == {"montgomery"}
    assert results.sites["montgomery"].metrics["dice"] >= 0.88
    assert results.sites["kermany"].metrics["auroc"] >= 0.85


def test_the_readme_has_no_placeholder_left():
    assert "@@" not in README


def arguments(command, path):
    """Every argument of a command and of those below it."""
    yield from ((path, each) for each in command.params if isinstance(each, click.Argument))
    for name, below in getattr(command, "commands", {}).items():
        yield from arguments(below, f"{path} {name}")


@pytest.mark.parametrize("name", ["multimix-sim", "multimix-site", "multimix-server", "multimix-audit"])
def test_every_argument_of_a_command_is_explained(name):
    # typer 0.20 loses the help of arguments to click 8.5.
    (entry,) = entry_points(group="console_scripts", name=name)
    found = list(arguments(typer.main.get_command(entry.load()), name))
    assert found
    assert [f"{path} {each.name}" for path, each in found if not each.help] == []
