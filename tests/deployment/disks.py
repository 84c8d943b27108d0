"""A folder on a disk of its own, so small that it can be filled to the last byte."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096  # tmpfs gives room in pages
_FILLING = ".filling"


def unavailable() -> str | None:
    """Return why no disk can be made here; None where one can."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", folder]
        tried = subprocess.run(command, capture_output=True, check=False)
    return "mounting a disk is not permitted here" if tried.returncode else None


@dataclass
class SmallDisk:
    """The disk under a folder."""

    folder: Path

    def fill(self, *, spare_pages: int = 0) -> None:
        """Fill it, but for some pages."""
        with (self.folder / _FILLING).open("wb", buffering=0) as file:
            try:
                while file.write(bytes(PAGE)):
                    pass
            except OSError:
                file.truncate(max(0, file.tell() - spare_pages * PAGE))
        assert self.spare_pages == spare_pages

    @property
    def spare_pages(self) -> int:
        return shutil.disk_usage(self.folder).free // PAGE

    def free(self) -> None:
        """Make room again."""
        (self.folder / _FILLING).unlink()


@contextmanager
def small_disk(folder: Path, *, pages: int) -> Iterator[SmallDisk]:
    """Put a folder with what is in it on a small disk; afterwards it lies where it lay, with what was added."""
    aside = folder.with_name(f"{folder.name}.aside")
    folder.rename(aside)
    folder.mkdir(mode=0o700)
    _do("mount", "-t", "tmpfs", "-o", f"size={pages * PAGE},mode=0700", "none", folder)
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield SmallDisk(folder)
    finally:
        shutil.rmtree(aside)
        shutil.copytree(folder, aside, ignore=shutil.ignore_patterns(_FILLING))
        _do("umount", "--lazy", folder)
        folder.rmdir()
        aside.rename(folder)


def _do(*command: object) -> None:
    subprocess.run([str(each) for each in command], check=True)
