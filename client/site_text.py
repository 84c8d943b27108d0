"""Filling in a section of `site.toml` as a person would: in its place, with the rest and its comments untouched."""

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from client.settings import SiteSettings
from multimix.errors import SiteError

Value = str | int | float | Mapping[str, int]
_HEADER: Final = re.compile(r"\s*\[")


def with_section(text: str, name: str, values: Mapping[str, Value]) -> str:
    """Return site.toml with the section put in the place of its old one, or of the template's commented one.

    Raises:
        SiteError: `settings_unusual` where the file is written so that this cannot be done safely.
    """
    lines = text.splitlines()
    section = [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    start = _first(lines, f"[{name}]")
    if start is None:
        start = _first(lines, f"# [{name}]")
    before, after = (lines, []) if start is None else (lines[:start], lines[_end(lines, start) :])
    changed = [*before, *section, *after]
    result = "\n".join(changed) + "\n"
    _check(text, result, name, values, whole=True)
    return result


def with_keys(text: str, name: str, values: Mapping[str, Value]) -> str:
    """Return site.toml with some keys of a section set, its others as they are; "" is the part above all sections.

    Raises:
        SiteError: as `with_section`.
    """
    lines = text.splitlines()
    start = -1 if not name else _first(lines, f"[{name}]")
    if start is None:
        return with_section(text, name, values)
    for key, value in values.items():
        end = next((n for n in range(start + 1, len(lines)) if _begins(lines[n])), len(lines))
        said = re.compile(rf"#?\s*{re.escape(key)}\s*=")
        found = [n for n in range(start + 1, end) if said.match(lines[n])]
        place = next((n for n in found if not lines[n].startswith("#")), found[0] if found else None)
        line = f"{key} = {_toml(value)}"
        if place is None:
            lines.insert(start + 1, line)
        else:
            lines[place] = line
    result = "\n".join(lines) + "\n"
    _check(text, result, name, values)
    return result


def _first(lines: list[str], header: str) -> int | None:
    """Return where a header stands; what follows it on its line may be a comment."""
    for number, line in enumerate(lines):
        if line.strip() == header or line.startswith((f"{header} ", f"{header}\t")):
            return number
    return None


def _end(lines: list[str], start: int) -> int:
    """Return where a section ends: at an empty line or the next section."""
    for number in range(start + 1, len(lines)):
        if not lines[number].strip() or _begins(lines[number]):
            return number
    return len(lines)


def _begins(line: str) -> bool:
    return bool(_HEADER.match(line)) or line.startswith("# [")


def _check(before: str, after: str, name: str, values: Mapping[str, Value], *, whole: bool = False) -> None:
    """See that the file says what was meant, and says the same as before otherwise."""
    unusual = SiteError(
        "settings_unusual",
        f"site.toml is written in a way that {f'[{name}]' if name else 'its top'} cannot be filled in. Write it by "
        "hand.",
    )
    try:
        old, new = tomllib.loads(before), tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        raise unusual from None
    expected = {**old, name: dict(values)} if whole else {**old, **_set(old, name, values)}
    if new != expected:
        raise unusual
    try:
        SiteSettings.model_validate(new)
    except ValidationError as invalid:
        first = invalid.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        words = first["msg"].removeprefix("Value error, ")
        raise SiteError("settings_invalid", f"{key}: {words}. Give another value.") from None


def _set(old: Mapping[str, Any], name: str, values: Mapping[str, Value]) -> dict[str, object]:
    return {name: {**old.get(name, {}), **values}} if name else dict(values)


def _toml(value: Value) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {count}" for key, count in value.items()) + " }"
    return json.dumps(value)  # what JSON writes of ASCII text and numbers is TOML too
