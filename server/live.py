"""What a run of real sites is doing now: `status.json` for machines, `index.html` for people, in the run folder.

Rewritten at every change, also while a round is under way. No figure of a site's work is in it: under differential
privacy not even how long a site took.
"""

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import AwareDatetime, ValidationError

from multimix.config import Frozen
from multimix.contract.run_config import RunConfig
from multimix.errors import InputError
from server.checkpoint import JobState
from server.exchange import WAITING, Errand, Post, waiting_for
from server.federation import Federation
from server.log import log
from server.report import REPORT_FILE
from server.results import RunStatus, SiteState, replace_file

STATUS_FILE: Final = "status.json"
PAGE_FILE: Final = "index.html"
_EVERY_S: Final = 1.0  # at most so often
_AT_LEAST_EVERY_S: Final = 15.0
_REFRESH_S: Final = 5
_OLD_S: Final = 120
# A killed run cannot say that it is dead: the page looks at its own age.
_SAY_WHEN_OLD: Final = f"""
const age = Date.now() - Date.parse(document.body.dataset.written);
document.getElementById("old").hidden = !(age > {1000 * _OLD_S});
"""

Doing = Literal["gathering", "training", "comparing", "scoring", "nothing"]
Standing = Literal[
    "not-connected", "idle", "asked", "answered", "held-back", "silent", "on-probation", "declined", "revoked"
]


class SiteStatus(Frozen):
    """One site now, and how it fared in the last finished round."""

    standing: Standing
    connected: bool
    reason: str | None = None
    last_seen: AwareDatetime | None = None  # its connector's last heartbeat
    seconds: float | None = None  # from order to answer, in the exchange under way or the last one; not under privacy
    last_round: SiteState | None = None
    last_reason: str | None = None
    budget_left: float | None = None  # share of the lifetime's epsilon when its card came, where it tells


class Status(Frozen):
    """The whole of `status.json`."""

    schema_version: Literal[1] = 1
    job: str | None  # none before the sites are gathered
    title: str
    state: RunStatus
    doing: Doing
    round: int  # finished
    rounds: int
    sites: dict[str, SiteStatus]
    private: bool
    started: AwareDatetime
    written: AwareDatetime
    deadline: AwareDatetime | None = None  # of what the sites are asked now
    estimated_end: AwareDatetime | None = None
    problem: str | None = None  # what ended the run before its end, in words with a reason code

    @property
    def answered(self) -> int:
        """How many sites have answered what they were asked."""
        return sum(site.standing == "answered" for site in self.sites.values())

    @property
    def asked(self) -> int:
        """How many sites were asked, or are held back."""
        return sum(site.standing in ("asked", "answered", "held-back") for site in self.sites.values())


def read_status(folder: Path) -> Status:
    """Read the status of a run; InputError `status_unreadable` where there is none, or of another schema."""
    try:
        return Status.model_validate_json((folder / STATUS_FILE).read_bytes())
    except (OSError, ValidationError):
        raise InputError("status_unreadable", f"The run has no {STATUS_FILE} that this version reads.") from None


def problem_of(error: BaseException | None) -> str | None:
    """Put what ended a run into words: our own ones, or the kind of error alone."""
    if isinstance(error, InputError):
        return f"{error.reason}: {error}"
    return type(error).__name__ if error else None


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Live:
    """Writes the status of one run; does nothing where there is no network. Close it to say how the run ended."""

    folder: Path
    config: RunConfig
    post: Post | None
    federation: Federation | None = None
    state: JobState | None = None
    doing: Doing = "gathering"
    now: Callable[[], datetime] = _now
    _began: datetime = field(init=False)
    _problem: str | None = None
    _seen: dict[str, datetime] = field(default_factory=dict)
    _written: Status | None = None
    _due_s: float = 0.0

    @property
    def _post(self) -> Post:
        if self.post is None:
            raise RuntimeError("a simulation has no status")
        return self.post

    def __enter__(self) -> Self:
        self._began = self.now()
        if self.post is not None:
            self.post.watch = self.tick
        self._write("running")
        return self

    def __exit__(self, _type: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        self.doing = "nothing"
        self._problem = problem_of(error)
        self._write("stopped" if error else "finished")

    def begin(self, doing: Doing, state: JobState) -> None:
        """Say what comes now, and what is finished."""
        self.doing, self.state = doing, state
        self._write("running")

    def tick(self) -> None:
        """Write what changed, at most once a second."""
        if time.monotonic() >= self._due_s:
            self._write("running")
            self._due_s = time.monotonic() + _EVERY_S

    def status(self, run: RunStatus) -> Status:
        """Return how things are now."""
        now, state, post = self.now(), self.state, self._post
        left = None if post.ends_s is None else timedelta(seconds=post.ends_s - post.clock())
        return Status(
            job=state.job_id if state else None,
            title=self.config.title,
            state=run,
            doing=self.doing,
            round=state.round if state else 0,
            rounds=self.config.rounds,
            sites={name: self._site(name, node) for name, node in sorted(self._nodes().items())},
            private=self.config.dp != "none",
            started=datetime.fromisoformat(state.started) if state else self._began,
            written=now,
            deadline=now + left if left is not None and run == "running" else None,
            estimated_end=self._estimated_end(now) if run == "running" else None,
            problem=self._problem,
        )

    def _estimated_end(self, now: datetime) -> datetime | None:
        state = self.state
        if state is None or not state.rounds:
            return None
        return now + timedelta(seconds=(self.config.rounds - state.round) * state.seconds / len(state.rounds))

    def _nodes(self) -> dict[str, int | None]:
        """Return every site that is admitted or takes part, with its node; and nodes that are nobody's."""
        nodes: dict[str, int | None] = dict.fromkeys(self._post.roster.admitted())
        nodes |= {self._post.site_of(node): node for node in self._post.keys}
        return nodes | (dict(self.federation.nodes) if self.federation else {})

    def _site(self, name: str, node: int | None) -> SiteStatus:
        post = self._post
        if node is None:
            return SiteStatus(standing="not-connected", connected=False)
        if node in post.online:
            self._seen[name] = datetime.fromtimestamp(post.online[node].seen_s, UTC)
        errand = post.errands.get(node)
        standing, reason = self._standing(name, node, errand)
        took = errand.answered_s - errand.began_s if errand and errand.answered_s is not None else None
        last = self.state.rounds[-1].sites.get(name) if self.state and self.state.rounds else None
        return SiteStatus(
            standing=standing,
            connected=node in post.online,
            reason=reason,
            last_seen=self._seen.get(name),
            seconds=took if self.config.dp == "none" and standing == "answered" else None,
            last_round=last.state if last else None,
            last_reason=last.reason if last else None,
            budget_left=self._budget_left(name),
        )

    def _budget_left(self, name: str) -> float | None:
        card = self.federation.cards.get(name) if self.federation else None
        return card.budget_left if card else None

    def _standing(self, name: str, node: int, errand: Errand | None) -> tuple[Standing, str | None]:
        if (outside := self._outside(name, node)) is not None:
            return outside
        if errand is not None and errand.held_by is not None and errand.answered_s is None:
            return "held-back", waiting_for(errand.held_by)
        post = self._post
        if node in post.away:
            return _AWAY[post.away[node].kind]
        is_under_way = errand is not None and post.ends_s is not None
        if is_under_way and errand is not None and errand.reply is not None:
            return "answered", None
        if node not in post.online:
            return "not-connected", None
        return ("asked" if is_under_way else "idle"), None

    def _outside(self, name: str, node: int) -> tuple[Standing, str | None] | None:
        """Return how a node stands that has no part in the job; None for one that has."""
        federation = self.federation
        if federation is None:
            return None
        if name in federation.nodes:
            return None if name in self._post.roster.admitted() else ("revoked", None)
        return ("declined", federation.declined[str(node)]) if str(node) in federation.declined else None

    def _write(self, run: RunStatus) -> None:
        """Write both files where anything changed; a full disk stops no run."""
        if self.post is None:
            return
        status, before = self.status(run), self._written
        if before is not None and _same(status, before):
            return
        try:
            replace_file(self.folder / STATUS_FILE, status.model_dump_json(indent=1).encode())
            replace_file(self.folder / PAGE_FILE, page(status, has_report=self._has_report()).encode())
        except InputError as error:
            log.warning("the status was not written (%s)", error.reason)
        self._written = status

    def _has_report(self) -> bool:
        return (self.folder / REPORT_FILE).exists()


def _same(status: Status, before: Status) -> bool:
    """Whether nothing but the clock differs, and not for long."""
    moving = {"written": before.written, "deadline": before.deadline, "estimated_end": before.estimated_end}
    young = status.written - before.written < timedelta(seconds=_AT_LEAST_EVERY_S)
    return young and status.model_copy(update=moving) == before


def page(status: Status, *, has_report: bool) -> str:
    """Return the page for people: one file that fetches nothing and loads itself anew while the run goes on."""
    return _TEMPLATE.render(
        status=status,
        report=REPORT_FILE if has_report else None,
        refresh_s=_REFRESH_S,
        words=_WORDS | WAITING,
        shares=any(site.budget_left is not None for site in status.sites.values()),
        script=_SAY_WHEN_OLD,
        script_hash=base64.b64encode(hashlib.sha256(_SAY_WHEN_OLD.encode()).digest()).decode(),
    )


_AWAY: Final[dict[str, tuple[Standing, str | None]]] = {
    "silent": ("silent", None),
    "held": ("held-back", "site_error"),
    "probation": ("on-probation", None),
}

_WORDS: Final = {
    "not-connected": "its connector is not here",
    "idle": "connected",
    "asked": "asked, no answer yet",
    "answered": "has answered",
    "held-back": "held back",
    "silent": "silent: not waited for until it shows life",
    "on-probation": "was silent again and again: asked, not waited for until it has answered a few orders in time",
    "declined": "does not take part",
    "revoked": "revoked",
    "gathering": "waiting for the sites",
    "training": "training",
    "comparing": "training each site alone, for comparison",
    "scoring": "scoring the final model",
    "nothing": "over",
    "site_error": "its app fails again and again",
}


def _moment(value: datetime | None) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if value else "-"


def _template() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["moment"] = _moment
    return environment


_TEMPLATE = _template().get_template("live.html.md")
