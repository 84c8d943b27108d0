"""An append-only file of records of one length: pixels are added at its end and never moved.

What is appended counts only once the journal names it; whatever lies beyond is cut off at the next start. So a
crash at any moment leaves index and pixels in agreement.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Self


class Records:
    """The file, open for appending; `count` records are valid."""

    def __init__(self, path: Path, *, record_bytes: int, count: int, mode: int = 0o600) -> None:
        """Open or create it and cut off what a crash left behind the valid records.

        Raises:
            ValueError: the file is shorter than `count` records.
        """
        self.count, self.record_bytes = count, record_bytes
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        size = os.fstat(self._file).st_size
        if size < count * record_bytes:
            os.close(self._file)
            raise ValueError(f"{size} bytes for {count} records of {record_bytes}")
        os.ftruncate(self._file, count * record_bytes)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        os.close(self._file)

    def append(self, record: bytes) -> int:
        """Add a record and return its number."""
        if len(record) != self.record_bytes:
            raise ValueError(f"a record of {len(record)} bytes in a file of {self.record_bytes}")
        view, offset = memoryview(record), self.count * self.record_bytes
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written
        self.count += 1
        return self.count - 1

    def read(self, number: int) -> bytes:
        """Return a record."""
        if not 0 <= number < self.count:
            raise IndexError(f"record {number} of {self.count}")
        return os.pread(self._file, self.record_bytes, number * self.record_bytes)

    def sync(self) -> None:
        """Flush to the disk."""
        os.fsync(self._file)
