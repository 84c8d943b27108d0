"""What the commands of the audit are given: ledgers, keys, heads, a site or a site of a simulated run."""

import base64
import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from multimix.contract.heads import HeadRecord, head_records
from multimix.contract.signing import public_key
from multimix.errors import InputError, SiteError
from multimix.privacy.ledger import FILE

EXIT_FOUND: Final = 3  # something that no honest site shows

LedgerArgument = Annotated[Path, typer.Argument(help="The ledger: its folder, or a copy of ledger.jsonl.")]
KeyOption = Annotated[
    str,
    typer.Option("--key", help="Public key of the ledger, base64, or a file that holds it; got by other means."),
]
HeadsOption = Annotated[
    Path | None, typer.Option("--heads", help="The server's heads.jsonl: shows what was cut or written anew.")
]
CoordinatorOption = Annotated[
    str | None, typer.Option("--coordinator", help="Public key of the coordinator, or a file: authenticates the heads.")
]
OfficerOption = Annotated[
    str | None, typer.Option("--officer", help="Public key of the privacy officer, or a file: authenticates decisions.")
]
SiteFolderOption = Annotated[
    Path | None, typer.Option("--site", help="A hospital's site folder, on the site's machine.")
]
RunOption = Annotated[Path | None, typer.Option("--run", help="Instead of --site: the folder of a simulated run.")]
NameOption = Annotated[str, typer.Option("--name", help="With --run: which of its sites.")]
DataOption = Annotated[str, typer.Option("--data", help="With --run: the images it ran on; none for phantoms.")]
CacheOption = Annotated[str, typer.Option("--cache", help="With --run: its cache folder, with the ledgers.")]
ResultsOption = Annotated[
    Path,
    typer.Option("--out", help="Folder for the results of one site; `multimix-audit report` takes them from there."),
]
RESULTS: Final = Path("audit")
_LONGEST_PATH: Final = 4096
_LONGEST_LINE: Final = 1 << 16  # bytes; the longest entries have some 2,000
_DISCREET: Final = frozenset(  # errors of the audit whose words name no file
    {
        "auditor_key",
        "bundle_exists",
        "bundle_unreadable",
        "bundle_unwritable",
        "device_missing",
        "evidence_of_another_ledger",
        "guarantee_invalid",
        "heads_damaged",
        "image_size",
        "key_unusable",
        "patients_missing",
        "policy_names_a_path",
        "run_unreadable",
        "scores_not_finite",
        "tolerance",
    }
)


def read_ledger_bytes(path: Path) -> bytes:
    """Read a ledger; SiteError `ledger_unreadable`, also where a line is longer than any that a site writes."""
    try:
        return _lines_of(path / FILE if path.is_dir() else path)
    except OSError:
        raise SiteError(
            "ledger_unreadable", "There is no readable ledger there. Give its folder, or a copy of ledger.jsonl."
        ) from None


def _lines_of(file: Path) -> bytes:
    """Return a file of lines; OSError for what is no file, or has a line that no ledger has."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "not a file")
    with file.open("rb") as opened:
        lines = list(iter(lambda: opened.readline(_LONGEST_LINE), b""))
    if any(len(line) == _LONGEST_LINE for line in lines):
        raise OSError(errno.EINVAL, "a long line")
    return b"".join(lines)


def read_heads(path: Path | None) -> tuple[HeadRecord, ...] | None:
    """Read the server's heads.

    Raises:
        SiteError: `heads_unreadable`. InputError: `heads_damaged`.
    """
    if path is None:
        return None
    try:
        return head_records(path.read_bytes())
    except OSError:
        raise SiteError("heads_unreadable", "There is no readable heads.jsonl there. Ask the coordinator.") from None


def key_text(given: str) -> str:
    """Return a public key as base64: the text given, or the first line of the file it names.

    Raises:
        SiteError: `key_unusable`.
    """
    text = given.strip()
    try:
        if len(text) < _LONGEST_PATH and Path(text).is_file():
            text = Path(text).read_text().strip().partition("\n")[0].removeprefix("officer_key = ").strip().strip('"')
        return base64.b64encode(public_key(text).public_bytes_raw()).decode()  # one spelling of a key
    except (ValueError, OSError):
        raise SiteError(
            "key_unusable", "A public key is 44 characters of base64, or a file that holds them: Ed25519, 32 bytes."
        ) from None


def optional_key(given: str | None) -> str | None:
    """Return a public key as base64 if one is given; SiteError as `key_text`."""
    return None if given is None else key_text(given)


@contextmanager
def explained_audit() -> Iterator[None]:
    """Turn an error of the audit into a `SiteError`, whose words reach the terminal."""
    try:
        yield
    except SiteError:
        raise
    except InputError as error:
        if error.reason not in _DISCREET:
            raise
        raise SiteError(error.reason, str(error)) from None
