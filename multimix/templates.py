"""A folder of text templates, filled in and written to another folder: service units and the files beside them."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from multimix.files import write_atomically

SUFFIX = ".md"  # of every template: the app bundle takes few kinds of file


def fill_in(templates: Path, out: Path, values: Mapping[str, object]) -> list[Path]:
    """Write each template under its own name and return the files; a value that a template needs must be there.

    A template that comes out empty is for another case than this one: no file is written, and an older one removed.

    Raises:
        jinja2.UndefinedError: a value is missing.
        OSError: the folder cannot be written.
    """
    # The texts are for systemd and the like, where HTML's escapes would be wrong.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(templates), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    names = sorted(path.name for path in templates.glob(f"*{SUFFIX}"))
    texts = {out / name.removesuffix(SUFFIX): environment.get_template(name).render(values) for name in names}
    wanted = {path: text for path, text in texts.items() if text.strip()}
    for path in texts.keys() - wanted.keys():
        path.unlink(missing_ok=True)
    for path, text in wanted.items():
        write_atomically(path, text.encode(), mode=0o644)
    return list(wanted)
