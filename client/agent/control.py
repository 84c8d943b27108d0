"""What the hospital decided while the agent runs: paused, left, and which jobs may train. A file in the site folder.

The site's commands write it and the agent reads it at every order, so a decision counts whether or not the agent is up.
The agent enters one thing itself: which jobs wait for a decision.

The file is the agent's user's: root may decide too, and leaves it to that user; anybody else is told who may.
"""

import fcntl
import os
import pwd
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
_MOST_WAITING: Final = 16  # jobs; the newest stay


class Control(Frozen):
    """The decisions."""

    paused: bool = False
    left: bool = False
    approved: tuple[Name, ...] = ()
    waiting: tuple[Name, ...] = ()  # jobs that were asked for with a valid signature and not approved, newest last


def read_control(site: Path) -> Control:
    """Read the decisions; where there is no file, none were made.

    Raises:
        SiteError: `control_unusable`, `wrong_user`.
    """
    try:
        return Control.model_validate_json((site / FILE).read_bytes())
    except FileNotFoundError:
        return Control()
    except (OSError, ValidationError):
        _check_user(site)
        raise SiteError(
            "control_unusable",
            f"{FILE} in the site's folder cannot be read, so nothing is trained. Remove it, then approve jobs anew.",
        ) from None


def change_control(site: Path, change: Callable[[Control], Control]) -> Control:
    """Write what `change` makes of the decisions, one writer at a time; raises as `read_control`."""
    with _alone(site):
        changed = change(read_control(site))
        write_atomically(site / FILE, canonical_json(changed).encode())
        _leave_to_owner(site / FILE)
        return changed


def note_waiting(site: Path, job_id: str) -> None:
    """Keep that a job waits for approval; raises as `change_control`."""
    if job_id not in read_control(site).waiting:
        change_control(site, lambda control: control.model_copy(update={"waiting": _waiting_with(control, job_id)}))


def _waiting_with(control: Control, job_id: str) -> tuple[str, ...]:
    return (*(each for each in control.waiting if each != job_id), job_id)[-_MOST_WAITING:]


def decide_job(control: Control, job_id: str, *, approved: bool) -> Control:
    """Return the decisions with this job approved, or with the approval taken back; it waits no longer."""
    names = {*control.approved, job_id} if approved else {*control.approved} - {job_id}
    waiting = tuple(each for each in control.waiting if each != job_id)
    return control.model_copy(update={"approved": tuple(sorted(names)), "waiting": waiting})


def check_taking_part(control: Control) -> None:
    """Refused `site_left` or `site_paused`."""
    if control.left:
        raise Refused("site_left")
    if control.paused:
        raise Refused("site_paused")


def check_job(control: Control, policy: SitePolicy, job_id: str) -> None:
    """Refused as `check_taking_part`, or `job_not_approved` where policy has jobs approved and this one is not."""
    check_taking_part(control)
    check_taken(control, policy, job_id)


def check_taken(control: Control, policy: SitePolicy, job_id: str) -> None:
    """As `check_job` for an order that was taken already: a pause lets it end."""
    if control.left:
        raise Refused("site_left")
    if policy.approve_jobs and job_id not in control.approved:
        raise Refused("job_not_approved")


@contextmanager
def _alone(site: Path) -> Iterator[None]:
    site.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_user(site)
    descriptor = os.open(site / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _leave_to_owner(site / _LOCK)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_user(site: Path) -> None:
    """SiteError `wrong_user` for whoever is neither root nor the folder's owner."""
    try:
        owner = site.stat().st_uid
    except OSError:
        return  # whatever is wrong shows elsewhere
    if os.geteuid() not in {0, owner}:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"'#{owner}'"
        raise SiteError(
            "wrong_user", f"What the agent keeps is another user's. Run this as: sudo -u {name} multimix-site ..."
        )


def _leave_to_owner(path: Path) -> None:
    """Where root wrote, give the file to the folder's owner, as whom the agent reads it."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)  # the folder is not root's: trust no link
