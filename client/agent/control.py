"""What the hospital decided while the agent runs: paused, left, and which jobs may train. A file in the site folder.

The site's commands write it and the agent reads it at every order, so a decision counts whether or not the agent is up.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from client.policy import SitePolicy
from multimix.config import Frozen
from multimix.contract.messages import Name, canonical_json
from multimix.errors import Refused, SiteError
from multimix.files import write_atomically

FILE: Final = "control.json"
_LOCK: Final = "control.lock"


class Control(Frozen):
    """The decisions."""

    paused: bool = False
    left: bool = False
    approved: tuple[Name, ...] = ()


def read_control(site: Path) -> Control:
    """Read the decisions; where there is no file, none were made.

    Raises:
        SiteError: `control_unusable`.
    """
    try:
        return Control.model_validate_json((site / FILE).read_bytes())
    except FileNotFoundError:
        return Control()
    except (OSError, ValidationError):
        raise SiteError(
            "control_unusable",
            f"{FILE} in the site's folder cannot be read, so nothing is trained. Remove it, then approve jobs anew.",
        ) from None


def change_control(site: Path, change: Callable[[Control], Control]) -> Control:
    """Write what `change` makes of the decisions, one writer at a time; raises as `read_control`."""
    with _alone(site):
        changed = change(read_control(site))
        write_atomically(site / FILE, canonical_json(changed).encode())
        return changed


def check_taking_part(control: Control) -> None:
    """Refused `site_left` or `site_paused`."""
    if control.left:
        raise Refused("site_left")
    if control.paused:
        raise Refused("site_paused")


def check_job(control: Control, policy: SitePolicy, job_id: str) -> None:
    """Refused as `check_taking_part`, or `job_not_approved` where policy has jobs approved and this one is not."""
    check_taking_part(control)
    if policy.approve_jobs and job_id not in control.approved:
        raise Refused("job_not_approved")


@contextmanager
def _alone(site: Path) -> Iterator[None]:
    site.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(site / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
