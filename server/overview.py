"""What `multimix-server status` shows: server, certificates, sites and the newest run, for people and machines."""

from datetime import datetime
from pathlib import Path
from typing import Any

from multimix.errors import InputError
from server.live import STATUS_FILE, Status, read_status
from server.nodes import Node, is_running, list_nodes, runs_going_on
from server.provision.folder import AdmittedSite, FederationFolder
from server.provision.rotation import certificates_of


def overview(folder: FederationFolder, now: datetime) -> dict[str, Any]:
    """Return everything, as JSON takes it; a site is known by its key, whatever it calls itself."""
    up = is_running(folder)
    nodes = {node.key: node for node in list_nodes(folder)} if up else {}
    run, going_on = _newest_run(folder), {name for _, name in runs_going_on(folder)} if up else set()
    return {
        "federation": folder.settings.name,
        "address": folder.settings.address,
        "up": up,
        "certificates": _certificates(folder, now),
        "sites": {name: _site(site, nodes.get(site.flower_key)) for name, site in folder.settings.sites.items()},
        "run": None if run is None else _run(run, going_on),
    }


def lines_of(seen: dict[str, Any]) -> list[str]:
    """Return the overview in words, one line each."""
    lines = [f"server       {'up' if seen['up'] else 'NOT RUNNING: multimix-server start'}, {seen['address']}"]
    lines += [
        f"certificate  {each['name']}: {each['state']}, {each['days_left']} days" for each in seen["certificates"]
    ]
    lines += [f"site         {name}: {_standing(site)}" for name, site in seen["sites"].items()]
    run = seen["run"]
    if run is None:
        return [*lines, "run          none yet: multimix-server run"]
    state = "was killed" if run["was_killed"] else f"{run['state']}, {run['doing']}"
    lines.append(f"run          {run['name']}: {state}, round {run['round']} of {run['rounds']}")
    if run["state"] == "stopped" or run["was_killed"]:
        lines.append(f"  to go on: multimix-server resume {run['name']}")
    if run["problem"]:
        lines.append(f"  {run['problem']}")
    for name, site in run["sites"].items():
        reason = f" ({site['reason']})" if site["reason"] else ""
        left = "" if site["budget_left"] is None else f", {site['budget_left']:.0%} of its budget left"
        lines.append(f"  {name}: {site['standing']}{reason}{_last(site)}{left}")
    return lines


def why_stopped(run: Path) -> list[str]:
    """Return what the run's own files say of its early end; the log of a run that died with its process is cut off."""
    status = _readable(run)
    if status is None:
        return ["The run wrote no status: what the server said is in its own log."]
    if status.problem:
        return [status.problem]
    return [] if status.state == "finished" else [f"The run was cut off after round {status.round}."]


def _last(site: dict[str, Any]) -> str:
    """Say how a site's last round ended where it was not accepted."""
    if site["last_round"] in (None, "accepted"):
        return ""
    return f", last round {site['last_round']} ({site['last_reason']})"


def _standing(site: dict[str, Any]) -> str:
    if site["revoked"]:
        return f"revoked {site['revoked']}"
    if site["connected"]:
        return f"connected, last seen {site['last_seen']}"
    return f"away, last seen {site['last_seen']}" if site["last_seen"] else "admitted, has not connected yet"


def _site(site: AdmittedSite, node: Node | None) -> dict[str, Any]:
    return {
        "admitted": site.admitted.isoformat(timespec="seconds"),
        "revoked": site.revoked.isoformat(timespec="seconds") if site.revoked else None,
        "connected": bool(node and node.online and site.takes_part),
        "last_seen": node.seen.isoformat(timespec="seconds") if node and node.seen else None,
    }


def _certificates(folder: FederationFolder, now: datetime) -> list[dict[str, Any]]:
    try:
        return [each.model_dump(mode="json") for each in certificates_of(folder, now)]
    except InputError as error:
        return [{"name": error.reason, "state": "unusable", "days_left": 0, "needed": True, "expires": None}]


def _newest_run(folder: FederationFolder) -> tuple[str, Status] | None:
    files = sorted(folder.runs.glob(f"*/{STATUS_FILE}"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    return next(((file.parent.name, status) for file in files if (status := _readable(file.parent))), None)


def _readable(run: Path) -> Status | None:
    try:
        return read_status(run)
    except InputError:
        return None


def _run(run: tuple[str, Status], going_on: set[str]) -> dict[str, Any]:
    """A run whose process was killed could not say that it ended: the SuperLink knows after a while."""
    name, status = run
    was_killed = status.state == "running" and name not in going_on
    return {"name": name, **status.model_dump(mode="json"), "was_killed": was_killed}
