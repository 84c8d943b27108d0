"""One line of `multimix-site check`, and the exit code that many of them make.

A line is read by a hospital engineer and may be mailed to the coordinator: it holds counts, versions and names of
techniques, and never a path, a file name or anything of a patient.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["PASS", "WARN", "FAIL"]
EXIT_PASS = 0
EXIT_WARN = 1
EXIT_FAIL = 3


@dataclass(frozen=True)
class Line:
    """What was checked, how it stands, what was found, and what to do about it.

    `fix` may be empty only where `status` is PASS: ValueError otherwise.
    """

    name: str
    status: Status
    finding: str
    fix: str = ""

    def __post_init__(self) -> None:
        """Refuse a complaint without a remedy."""
        if self.status != "PASS" and not self.fix:
            raise ValueError("a line that does not pass says how to fix it")


def exit_code(lines: Iterable[Line]) -> int:
    """Return 0 when all pass, 1 when some warn and none fails, 3 when some fail.

    2 is reserved for input that cannot be used: no check was made then.
    """
    statuses = {line.status for line in lines}
    if "FAIL" in statuses:
        return EXIT_FAIL
    return EXIT_WARN if "WARN" in statuses else EXIT_PASS
