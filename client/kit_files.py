"""Reading a kit, from its zip file or the folder it was unpacked to. Nothing of it is ever written under its own name.

A kit may come by mail from anyone: only the few names that a kit has are looked at, each once, as a plain file, and up
to a size. So a path that leads elsewhere, a link, and a file that unpacks to gigabytes are refused unread.
"""

import io
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Final

from multimix.contract.kit import FILES
from multimix.errors import SiteError

MOST_BYTES: Final = 64 << 10  # of one file of a kit; ca.pem is the largest, with 2 KiB
_MOST_ARCHIVE_BYTES: Final = 1 << 20
_ENCRYPTED: Final = 0x1  # of a zip entry's flags


def read_kit_files(path: Path) -> dict[str, bytes]:
    """Return the files of a kit by name; what they say is not checked here.

    Raises:
        SiteError: `kit_missing`, `kit_unreadable`, `kit_incomplete`, `kit_name`, `kit_link`, `kit_too_large`.
    """
    try:
        return _from_folder(path) if path.is_dir() else _from_archive(path)
    except FileNotFoundError:
        raise SiteError(
            "kit_missing", "There is no kit there. Give the file SITE.kit.zip of the coordinator."
        ) from None
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError):
        raise SiteError(
            "kit_unreadable", "This is no kit, or it is damaged. Ask the coordinator for it again."
        ) from None


def _from_folder(path: Path) -> dict[str, bytes]:
    if not all((path / name).exists() or (path / name).is_symlink() for name in FILES):
        raise SiteError("kit_incomplete", f"The folder of a kit holds {', '.join(FILES)}.")
    return {name: _plain_file(path / name, MOST_BYTES, name, link=os.O_NOFOLLOW) for name in FILES}


def _from_archive(path: Path) -> dict[str, bytes]:
    data = _plain_file(path, _MOST_ARCHIVE_BYTES, "the kit")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        for entry in entries:
            _check(entry)
        if sorted(entry.filename for entry in entries) != sorted(FILES):
            raise SiteError("kit_incomplete", f"A kit holds exactly {', '.join(FILES)}, each once.")
        return {entry.filename: _unpacked(archive, entry) for entry in entries}


def _check(entry: zipfile.ZipInfo) -> None:
    if entry.filename not in FILES:
        raise SiteError("kit_name", f"The archive holds something besides {', '.join(FILES)}: this is no kit.")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or entry.flag_bits & _ENCRYPTED:
        raise SiteError("kit_link", f"{entry.filename} of the kit is not a plain file.")
    if entry.file_size > MOST_BYTES:
        raise _too_large(entry.filename, MOST_BYTES)


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read an entry, and no more of it than is allowed, whatever size it declares."""
    with archive.open(entry) as opened:
        data = opened.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise _too_large(entry.filename, MOST_BYTES)
    return data


def _plain_file(path: Path, most: int, name: str, *, link: int = 0) -> bytes:
    """Read a file that is no device, no pipe and not too large; with O_NOFOLLOW, no link either."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | link)
    except OSError:
        if link and path.is_symlink():
            raise SiteError("kit_link", f"{name} of the kit is a link.") from None
        raise
    with os.fdopen(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SiteError("kit_link", f"{name} is not a plain file.")
        if found.st_size > most:
            raise _too_large(name, most)
        return opened.read(most)


def _too_large(name: str, most: int) -> SiteError:
    return SiteError("kit_too_large", f"{name} is larger than the {most} bytes that a kit's may have: this is no kit.")
