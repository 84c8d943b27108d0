"""`multimix-site agent`, `approve`, `pause`, `resume`, `leave`, `status`: training here, and who decides about it."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Final

import typer

from client.agent.activity import Activity, read_activity, waiting_jobs
from client.agent.control import Control, change_control, read_control
from client.agent.metrics import epsilon_spent
from client.agent.remote import agent_progress, cancel_order
from client.console import discreet, figures, out
from client.intake.cli import HERE, JsonOption, SiteOption
from client.remedies import REMEDIES
from client.settings import SiteFolder, open_site
from multimix.contract.messages import NAME_PATTERN
from multimix.errors import SiteError

SOCKET: Final = Path("socket") / "agent.sock"
SocketOption = Annotated[
    Path | None, typer.Option(envvar="MULTIMIX_SOCKET", help="The agent's socket; in the site's folder unless given.")
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
    """Let a job train here, or take that back. Exit codes: 0 done, 2 no site here or no such name."""
    with discreet():
        folder = open_site(site)
        job = _the_one_that_waits(folder) if job is None and not withdraw else job or ""
        if not re.fullmatch(NAME_PATTERN, job):
            raise SiteError("job_unusable", "That is no name of a job: letters, digits, . _ - and at most 64 of them.")

        def change(control: Control) -> Control:
            approved = {*control.approved, job} - ({job} if withdraw else set())
            return control.model_copy(update={"approved": tuple(sorted(approved))})

        change_control(folder.agent, change)
        out.print(f"{'withdrawn' if withdraw else 'approved'}: {job}", highlight=False)
        if not folder.settings.policy.approve_jobs:
            out.print("policy.approve_jobs is false: every job of this coordinator may train here", style="yellow")


def _the_one_that_waits(folder: SiteFolder) -> str:
    waiting = waiting_jobs(read_activity(folder.agent), read_control(folder.agent).approved)
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
    """Leave the federation: end what runs, forget all approvals, refuse everything. The ledger stays.

    Exit codes: 0 done, 2 no site here.
    """
    _decide(site, {"left": True, "approved": ()}, "left: everything is refused (site_left)")
    with discreet():
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
    """Return what `status` shows; SiteError `control_unusable`."""
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
    return {
        "site": site.settings.name,
        "agent": doing is not None,
        "running": running,
        "paused": control.paused,
        "left": control.left,
        "approved": list(control.approved),
        "waiting": waiting_jobs(lines, control.approved) if site.settings.policy.approve_jobs else [],
        "last_activity": lines[-1].model_dump(mode="json") if lines else None,
        "epsilon_spent": spent,
        "epsilon_left": None if spent is None or population is None else population.epsilon_lifetime - spent,
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
        "epsilon left": "no ledger" if document["epsilon_left"] is None else f"{document['epsilon_left']:.3f}",
    }
    figures(shown)
    reason = str(last.get("reason")) if isinstance(last, dict) else ""
    if document["waiting"]:
        reason = "job_not_approved"
    elif reason == "job_not_approved":  # it is, by now
        reason = ""
    if reason in REMEDIES:
        out.print(REMEDIES[reason], style="yellow", markup=False, highlight=False, soft_wrap=True)


def _line(activity: Activity) -> str:
    what = f"{activity.kind} {activity.job}".strip()
    return f"{activity.time:%Y-%m-%d %H:%M} {what}: {activity.outcome} {activity.reason}".strip()


def _listed(names: object) -> str:
    return ", ".join(names) if isinstance(names, list) and names else "none"


def _decide(site: Path, update: dict[str, object], said: str) -> None:
    with discreet():
        change_control(open_site(site).agent, lambda control: control.model_copy(update=update))
        out.print(said, highlight=False)


def _socket(site: SiteFolder, given: Path | None) -> Path:
    return (given or site.path / SOCKET).absolute()
