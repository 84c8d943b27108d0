"""Who can read the site folder? Only this user, and the training agent's group its store.

Counts and kinds only: a file name in here may name a patient.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.preflight.lines import Line
from multimix.data.store import CURRENT, IMAGES, MASKS

STORE = "store"
SOCKET = "socket"  # of the agent, for the group of the connector
_FOR_THE_AGENT = {"site.toml", "coordinator-ca.pem"}  # files that another user's agent reads
_NAME = "permissions"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class _Entry:
    """A file or folder, and the bits of its group that are wanted or may be; no other of group and world may be."""

    kind: str  # "file", "folder" or "link"
    mode: int
    owner: int
    group_bits: int
    group_may: int = 0


def permissions(
    folder: Path,
    *,
    group_readable: bool,
    secret_name: str = "site.secret",  # noqa: S107  (the name of a file)
    user: int | None = None,
) -> list[Line]:
    """Judge owner and mode of everything in the site folder.

    Folders are 0700 and files 0600 or stricter. With `group_readable` the store (`store/`) is 0750 and 0640, and the
    site folder itself 0710, so that the group can pass through to the store and list nothing else; `site.toml` and the
    coordinator's certificates may be 0640. Access-control lists show in the group's bits and are judged with them. What
    a link points to is not followed.

    Args:
        folder: The site folder.
        group_readable: The training agent runs as another user of this user's group.
        secret_name: File in `folder` that pseudonyms are made with; never readable by the group. No line if absent.
        user: Id that must own everything; the current user unless given.
    """
    if not folder.is_dir():
        return [Line(_NAME, "FAIL", "The site folder does not exist.", "Make it, with mode 0700.")]
    unreadable: list[OSError] = []
    entries = list(_entries(folder, group_readable=group_readable, unreadable=unreadable))
    judged = [
        _modes(entries),
        _group(entries) if group_readable else None,
        _owners(entries, os.geteuid() if user is None else user),
        _secret(folder / secret_name),
        _parents(folder),
        _links(entries),
        _unreadable(len(unreadable)),
    ]
    return [line for line in judged if line is not None]


def _entries(folder: Path, *, group_readable: bool, unreadable: list[OSError]) -> Iterator[_Entry]:
    for root, folders, files in os.walk(folder, onerror=unreadable.append):
        here = Path(root)
        in_store = group_readable and here.relative_to(folder).parts[:1] == (STORE,)
        passage = stat.S_IXGRP if group_readable and here == folder else 0
        if here == folder / SOCKET:
            continue  # the agent sees to its modes each time it starts
        yield from _entry(here, stat.S_IRGRP | stat.S_IXGRP if in_store else passage)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in (*files, *links):
            if here == folder / STORE and name == CURRENT:
                continue  # points to the newest generation beside it
            shared = group_readable and name in {IMAGES, MASKS}  # links of the store's own, below a closed folder
            given = stat.S_IRGRP if group_readable and here == folder and name in _FOR_THE_AGENT else 0
            yield from _entry(here / name, stat.S_IRGRP if in_store or shared else 0, given)


def _entry(path: Path, group_bits: int, group_may: int = 0) -> Iterator[_Entry]:
    try:
        found = path.lstat()
    except FileNotFoundError:  # removed while we looked
        return
    kind = "link" if stat.S_ISLNK(found.st_mode) else "folder" if stat.S_ISDIR(found.st_mode) else "file"
    yield _Entry(kind, found.st_mode, found.st_uid, group_bits, group_may)


def _modes(entries: list[_Entry]) -> Line:
    real = [entry for entry in entries if entry.kind != "link"]
    if open_ones := [entry for entry in real if entry.mode & _OTHERS & ~(entry.group_bits | entry.group_may)]:
        return Line(
            _NAME,
            "FAIL",
            f"Other users of this machine can use {_count(open_ones)} of the site folder.",
            "Run `chmod -R u=rwX,go=` on the site folder; if a group trains, then `chmod -R u=rwX,g=rX,o=` on its "
            "store and `chmod 0710` on the site folder itself.",
        )
    return Line(_NAME, "PASS", f"{_count(real)} are closed to everyone they should be closed to.")


def _group(entries: list[_Entry]) -> Line | None:
    closed = [entry for entry in entries if entry.kind != "link" and entry.group_bits & ~entry.mode]
    if not closed:
        return None
    return Line(
        _NAME,
        "WARN",
        f"The training agent's group cannot use {_count(closed)} that it needs.",
        "Run `chmod -R u=rwX,g=rX,o=` on the store and `chmod 0710` on the site folder itself.",
    )


def _owners(entries: list[_Entry], user: int) -> Line:
    foreign = [entry for entry in entries if entry.owner != user]
    if not foreign:
        return Line("owner", "PASS", "Everything in the site folder belongs to the user who runs this check.")
    return Line(
        "owner",
        "FAIL",
        f"{_count(foreign)} of the site folder belong to another user than the one who runs this check.",
        "Run this check as the user of intake, or `chown -R` the site folder to that user.",
    )


def _secret(path: Path) -> Line | None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None
    if stat.S_ISREG(mode) and not mode & _OTHERS:
        return Line("secret", "PASS", "The site's secret is readable by its owner only.")
    return Line(
        "secret",
        "FAIL",
        "The site's secret is not a plain file that its owner alone can read; who has it can undo the pseudonyms.",
        "Run `chmod 0600` on it. If another person may have read it, purge the store and start with a new secret.",
    )


def _parents(folder: Path) -> Line | None:
    """Whoever may rename things in a folder above can put another site folder in place of this one."""
    above = [parent.stat().st_mode for parent in folder.resolve().parents]
    if not any(mode & stat.S_IWOTH and not mode & stat.S_ISVTX for mode in above):
        return None
    return Line(
        _NAME,
        "FAIL",
        "A folder above the site folder can be changed by every user of this machine.",
        "Move the site folder to a place that only the administrator can change, such as /srv or /var/lib.",
    )


def _links(entries: list[_Entry]) -> Line | None:
    links = [entry for entry in entries if entry.kind == "link"]
    if not links:
        return None
    finding = f"The site folder holds {_count(links)}; what they point to was not checked."
    return Line(_NAME, "WARN", finding, "Put the real files in the site folder.")


def _unreadable(count: int) -> Line | None:
    if not count:
        return None
    return Line(_NAME, "FAIL", f"{count} folder(s) could not be looked into.", "Run this check as the user of intake.")


def _count(entries: list[_Entry]) -> str:
    kinds = [entry.kind for entry in entries]
    parts = [f"{kinds.count(kind)} {kind}(s)" for kind in ("folder", "file", "link") if kind in kinds]
    return " and ".join(parts)
