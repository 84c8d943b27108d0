"""Every error a person can meet, in one tree.

    MultiMixError
    |-- InputError          something the user gave is wrong: file, row, key, value, bound, what to do
    |   |-- ManifestError   the CSV or a file it names
    |   |-- StoreError      the decoded store on disk
    |   |-- SiteError       something at a hospital; its message names no path, value or identifier
    |   |-- RunConfigError  a run configuration key
    |   `-- CheckpointError a checkpoint that cannot be resumed from
    `-- Refused             a site's policy or the server's admission says no, with a reason code

Messages of `InputError` are for the person who owns the data and may name files and rows. They stay on the
machine where they arise. What crosses a wire or reaches a log is `reason` alone.
"""


class MultiMixError(Exception):
    """Root of the tree."""


class InputError(MultiMixError):
    """A one-paragraph message that names the thing, the value, the bound and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep a short machine-readable `reason` beside the message for the person."""
        super().__init__(message)
        self.reason = reason


class ManifestError(InputError):
    """The manifest or a file named in it is unusable; `cell` is (row, column) where one is to blame."""

    cell: tuple[int, str] | None = None


class StoreError(InputError):
    """The decoded store is missing, damaged or cannot be written."""


class SiteError(InputError):
    """Something at a hospital cannot be used; the message may go into a ticket: no path, value or identifier."""


class RunConfigError(InputError):
    """A run configuration key is unknown or its value out of range."""


class CheckpointError(InputError):
    """A checkpoint is missing, truncated or belongs to another job."""


class Refused(MultiMixError):  # noqa: N818  (a decision, not a failure)
    """A site's policy or the server's admission said no.

    Only `reason` and the numbers in `detail` (bounds and values that the other side sent) may travel.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        """Keep the reason code and a detail free of anything private."""
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
