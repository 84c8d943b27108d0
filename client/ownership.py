"""Root writes in a folder as the folder's owner, so that what it writes belongs to whoever has to read it.

A site for good has three users, and root joins, declares and separates. The connector's folder belongs to a user that
runs the server's code: with root's rights, a link planted there would be followed.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multimix.errors import SiteError
from multimix.files import write_atomically


@contextmanager
def as_owner_of(folder: Path) -> Iterator[None]:
    """Be the owner of a folder inside, with that user's groups, if this is root and the folder another's."""
    owner = folder.stat().st_uid if folder.is_dir() else 0
    if os.geteuid() or not owner:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    try:
        _become(owner)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def rewrite(file: Path, data: bytes) -> None:
    """Write a file anew with the owner, group and mode that it has; 0600 and this user's where it is new.

    Raises:
        SiteError: `not_the_owner`, where this user cannot leave the file as it is to its readers.
        OSError: it cannot be written.
    """
    with as_owner_of(file.parent):
        if not file.exists():
            write_atomically(file, data)
            return
        was, new = file.stat(), file.with_name(f".{file.name}.new")
        write_atomically(new, data)
        try:
            os.chown(new, was.st_uid, was.st_gid)
        except PermissionError:
            new.unlink()
            raise SiteError(
                "not_the_owner", f"{file.name} is read by another user, and belongs to one. Run this as root."
            ) from None
        new.chmod(stat.S_IMODE(was.st_mode))
        new.replace(file)


def _become(user: int) -> None:
    try:
        found = pwd.getpwuid(user)
    except KeyError:
        raise SiteError("user_unknown", "A folder of the site belongs to nobody whom this machine knows.") from None
    os.setgroups(os.getgrouplist(found.pw_name, found.pw_gid))
    os.setegid(found.pw_gid)
    os.seteuid(user)
