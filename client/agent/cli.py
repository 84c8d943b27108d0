"""`multimix-site agent`, `approve`, `pause`, `resume`, `leave`, `status`: training here, and who decides about it."""

import json
import logging
import math
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from client.agent.activity import Activity, read_activity
from client.agent.control import change_control, decide_job, read_control
from client.agent.metrics import epsilon_spent
from client.console import discreet, figures, out
from client.intake.cli import HERE, JsonOption, SiteOption
from client.remedies import REMEDIES
from client.settings import SiteFolder, open_site
from multimix.contract.messages import NAME_PATTERN
from multimix.errors import SiteError

SocketOption = Annotated[
    Path | None, typer.Option(envvar="MULTIMIX_SOCKET", help="The agent's socket; as site.toml says unless given.")
]
JobArgument = Annotated[
    str | None, typer.Argument(help="The job's name, as `multimix-site status` shows it; the one that waits if none.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (agent, approve, pause, resume, leave, status):
        app.command()(command)


def agent(site: SiteOption = HERE, socket: SocketOption = None) -> None:
    """Train here for the coordinator of site.toml, without a network, until told to stop (SIGTERM, Ctrl-C).

    Exit codes: 0 stopped, 2 it cannot start.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read once, by the import of grpc
    from client.agent.process import run_agent  # noqa: PLC0415  (imports torch)

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    log = logging.getLogger("multimix.agent")
    with discreet():
        folder = open_site(site)
        ended = run_agent(folder, _socket(folder, socket), ready=lambda: log.info("ready"))
    if not ended:
        log.warning("stopped within a step; what was reserved stays reserved")
        os._exit(0)  # the thread that trains would hold the process; the ledger is on disk


def approve(
    job: JobArgument = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take the approval back.")] = False,
    site: SiteOption = HERE,
) -> None:
    """Let a job train here, or take that back: then it ends, and no answer of it leaves.

    Exit codes: 0 done, 2 no site here, no such name, or several jobs wait.
    """
    with discreet():
        folder = open_site(site)
        name = _the_one_that_waits(folder) if job is None and not withdraw else job or ""
        if not re.fullmatch(NAME_PATTERN, name):
            raise SiteError("job_unusable", "That is no name of a job: letters, digits, . _ - and at most 64 of them.")
        change_control(folder.agent, lambda control: decide_job(control, name, approved=not withdraw))
        out.print(f"{'withdrawn' if withdraw else 'approved'}: {name}", highlight=False)
        if not folder.settings.policy.approve_jobs:
            out.print("policy.approve_jobs is false: every job of this coordinator may train here", style="yellow")


def _the_one_that_waits(folder: SiteFolder) -> str:
    waiting = read_control(folder.agent).waiting
    if len(waiting) != 1:
        names = ", ".join(waiting) or "none"
        raise SiteError("job_unclear", f"Name the job to approve; those that wait here: {names}.")
    return waiting[0]


def pause(site: SiteOption = HERE) -> None:
    """Take no further order; one that runs is finished. Exit codes: 0 done, 2 no site here."""
    _decide(site, {"paused": True}, "paused: orders are refused (site_paused) until multimix-site resume")


def resume(site: SiteOption = HERE) -> None:
    """Take orders again, after `pause` or `leave`. Exit codes: 0 done, 2 no site here."""
    _decide(site, {"paused": False, "left": False}, "taking orders")


def leave(site: SiteOption = HERE, socket: SocketOption = None) -> None:
    """Leave the federation: end what runs, forget all jobs, refuse everything. The ledger stays.

    Exit codes: 0 done, 2 no site here.
    """
    _decide(site, {"left": True, "approved": (), "waiting": ()}, "left: everything is refused (site_left)")
    with discreet():
        from client.agent.remote import cancel_order  # noqa: PLC0415  (imports grpc)

        if cancel_order(_socket(open_site(site), socket)):
            out.print("what ran is cancelled")


def status(site: SiteOption = HERE, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Show whether the agent is up, what it does, which jobs wait for approval, and what budget is left.

    Exit codes: 0 the agent is up, 1 it is not, 2 no site here.
    """
    with discreet():
        folder = open_site(site)
        document = status_of(folder, _socket(folder, socket))
        typer.echo(json.dumps(document)) if as_json else _show(document)
        raise typer.Exit(0 if document["agent"] else 1)


def status_of(site: SiteFolder, socket: Path) -> dict[str, object]:
    """Return what `status` shows; SiteError as `read_control`.

    Epsilon that is infinite has no number in JSON: `epsilon_infinite` says so, and nothing is left.
    """
    from client.agent.remote import agent_progress  # noqa: PLC0415  (imports grpc)

    control, lines = read_control(site.agent), read_activity(site.agent)
    doing = agent_progress(socket)
    running = None
    if doing is not None and doing.busy:
        running = {
            "kind": doing.kind,
            "job": doing.job_id,
            "round": doing.round,
            "step": doing.step,
            "steps": doing.steps,
        }
    spent, population = epsilon_spent(site), site.settings.population
    infinite, left = spent == math.inf, None
    if spent is not None and population is not None:
        left = max(0.0, population.epsilon_lifetime - spent)
    return {
        "site": site.settings.name,
        "agent": doing is not None,
        "running": running,
        "paused": control.paused,
        "left": control.left,
        "approved": list(control.approved),
        "waiting": list(control.waiting) if site.settings.policy.approve_jobs else [],
        "last_activity": lines[-1].model_dump(mode="json") if lines else None,
        "epsilon_spent": None if infinite else spent,
        "epsilon_infinite": infinite,
        "epsilon_left": left,
    }


def _show(document: dict[str, object]) -> None:
    running, last = document["running"], document["last_activity"]
    doing = "idle"
    if isinstance(running, dict):
        doing = "{kind} of {job}, round {round}, step {step} of {steps}".format_map(running)
    taking = "left the federation" if document["left"] else "paused" if document["paused"] else "taking part"
    shown = {
        "site": str(document["site"]),
        "agent": doing if document["agent"] else "down: run multimix-site agent",
        "federation": taking,
        "approved": _listed(document["approved"]),
        "waiting": _listed(document["waiting"]),
        "last": _line(Activity.model_validate(last)) if last else "nothing yet",
        "epsilon left": _left(document),
    }
    figures(shown)
    reason = str(last.get("reason")) if isinstance(last, dict) else ""
    if document["waiting"]:
        reason = "job_not_approved"
    elif reason == "job_not_approved":  # it is, by now
        reason = ""
    if reason in REMEDIES:
        out.print(REMEDIES[reason], style="yellow", markup=False, highlight=False, soft_wrap=True)


def _left(document: dict[str, object]) -> str:
    if document["epsilon_infinite"]:
        return "none: training without privacy, or with known noise, has spent infinity"
    return "no ledger" if document["epsilon_left"] is None else f"{document['epsilon_left']:.3f}"


def _line(activity: Activity) -> str:
    what = f"{activity.kind} {activity.job}".strip()
    more = f"({activity.repeats} more like it)" if activity.repeats else ""
    return " ".join(f"{activity.time:%Y-%m-%d %H:%M} {what}: {activity.outcome} {activity.reason} {more}".split())


def _listed(names: object) -> str:
    return ", ".join(names) if isinstance(names, list) and names else "none"


def _decide(site: Path, update: dict[str, object], said: str) -> None:
    with discreet():
        change_control(open_site(site).agent, lambda control: control.model_copy(update=update))
        out.print(said, highlight=False)


def _socket(site: SiteFolder, given: Path | None) -> Path:
    return (given or site.socket).absolute()
