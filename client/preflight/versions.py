"""Do Python and the installed packages match what this release was tested with?

The pins come from the metadata of the installed distribution, so there is one list of them: pyproject.toml. It is
read without the `packaging` library, which nothing that multimix needs at run time promises to install.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

from client.preflight.lines import Line

_DISTRIBUTION = "multimix"
_SUPPORTED_PYTHON = ">=3.11,<3.14"  # used where the installed metadata cannot be read

_COMPARE: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda have, bound: have >= bound,
    "<=": lambda have, bound: have <= bound,
    ">": lambda have, bound: have > bound,
    "<": lambda have, bound: have < bound,
    "!=": lambda have, bound: have != bound,
}


def python_version(running: tuple[int, int, int] | None = None) -> Line:
    """Compare the running Python with the range that the installed package supports."""
    supported = _supported_python()
    version = ".".join(map(str, running or sys.version_info[:3]))
    if meets(supported, version):
        return Line("python", "PASS", f"Python {version}; supported is {supported}.")
    return Line(
        "python",
        "FAIL",
        f"Python {version} is outside the supported range {supported}.",
        "Make a new virtual environment with Python 3.11, 3.12 or 3.13 and install multimix into it.",
    )


def packages(
    requirements: Sequence[str] | None = None, *, version_of: Callable[[str], str | None] | None = None
) -> list[Line]:
    """Compare the installed packages with what this version of multimix was tested with; extras are left out.

    Args:
        requirements: As in the distribution's metadata ("torch==2.13.0"); those of multimix unless given.
        version_of: The installed version of a package, None where it is missing.
    """
    if requirements is None:
        requirements = _requirements()
    if not requirements:
        return [_not_installed()]
    version_of = version_of or _installed_version
    needed = [parsed for text in requirements if (parsed := _parse_requirement(text))]
    lines = [_package(name, specifier, version_of(name)) for name, specifier in needed]
    wrong = [line for line in lines if line.status != "PASS"]
    return wrong or [Line("packages", "PASS", f"All {len(lines)} packages are the versions this release asks for.")]


def meets(specifier: str, version: str) -> bool:
    """Say whether `version` is within `specifier`, a comma-separated list of ==, !=, >=, <=, > and < bounds.

    A local part ("2.13.0+cpu") is ignored. An exact pin wants the exact text; the other bounds compare release numbers.
    An operator not listed is not met: unknown is not good.
    """
    public = version.split("+", maxsplit=1)[0]
    for bound in filter(None, (part.strip() for part in specifier.split(","))):
        operator, wanted = _split_bound(bound)
        if operator == "==":
            met = public == wanted
        else:
            compare = _COMPARE.get(operator)
            met = compare is not None and compare(_release(public), _release(wanted))
        if not met:
            return False
    return True


def _split_bound(bound: str) -> tuple[str, str]:
    operator = re.match(r"[=!<>~]*", bound)
    length = operator.end() if operator else 0
    return bound[:length], bound[length:].strip()


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of "2.13.0rc1" as (2, 13), without trailing zeros, so that 3 and 3.0 are equal."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in found.group().split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _parse_requirement(text: str) -> tuple[str, str] | None:
    """Split "flwr[simulation]==1.41.0; marker" into name and specifier; None for what belongs to an extra."""
    requirement, _, marker = text.partition(";")
    found = re.fullmatch(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^()]*)\)?\s*", requirement)
    if "extra" in marker or found is None:
        return None
    return found.group(1), found.group(2).strip()


def _package(name: str, specifier: str, version: str | None) -> Line:
    install = f"pip install '{name}{specifier}'"
    if version is None:
        return Line("packages", "FAIL", f"{name} is not installed; {specifier or 'any version'} is needed.", install)
    if meets(specifier, version):
        return Line("packages", "PASS", f"{name} {version}")
    return Line("packages", "WARN", f"{name} is {version}; this release was tested with {specifier}.", install)


def _not_installed() -> Line:
    return Line(
        "packages",
        "WARN",
        "multimix is not installed as a package, so the versions it needs are not known.",
        "Install it with pip into this environment.",
    )


def _requirements() -> list[str]:
    try:
        return metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []


def _supported_python() -> str:
    try:
        return metadata.metadata(_DISTRIBUTION)["Requires-Python"] or _SUPPORTED_PYTHON
    except (metadata.PackageNotFoundError, KeyError):
        return _SUPPORTED_PYTHON


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
