"""The version, in one place beside pyproject.toml (a test compares them), and the hash of the code that runs."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Final

__version__ = "0.1.0"
_PACKAGES: Final = ("multimix", "client")  # what a site trains with


@lru_cache(maxsize=1)
def code_sha256() -> str:
    """Return the SHA-256 over names and contents of the Python files that a site trains with, in name order.

    It tells software that differs by accident. Software that lies about itself can lie about this too.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def code_version() -> str:
    """Return version and hash, as they stand in a ledger."""
    return f"{__version__}+{code_sha256()[:16]}"
