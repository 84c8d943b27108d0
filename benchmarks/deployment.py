"""What a round costs beyond compute, with real processes, TLS and node authentication: ours, and a plain Flower app.

Two sites on this machine's loopback. Of ours the seconds that the slower site spent on its order are taken off. Of the
plain app also how much memory Flower's processes take for the weights that pass through them.
"""

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from benchmarks.plain_flower import PlainFlower, plain_flower
from multimix.processes import descendants
from tests.deployment.federation import QUICK, Deployment, deployment

ROUNDS = 6
_FIRST_LEFT_OUT = 1  # round: what is imported, priced and compiled once
SITES = ("phantom-a", "phantom-b")
_PAYLOAD = 256 << 20  # bytes of weights that pass through Flower


def round_overhead_plain_flower_s(plain: PlainFlower) -> float:
    """Return the median seconds of a round of the plain app."""
    rounds = [after - before for before, after in pairwise(plain.run(rounds=ROUNDS))]
    return statistics.median(rounds[_FIRST_LEFT_OUT:])


def flower_memory_ratios(plain: PlainFlower) -> dict[str, float]:
    """Return by how much 256 MiB of weights raise the peak memory of Flower's processes, over 256 MiB.

    Of all processes at the server (SuperLink, ServerApp) and at one site (SuperNode, ClientApp) together, against a
    run of the same app in the same SuperLink and SuperNodes on next to no weights. The server has those of two sites.
    """
    with _watched(plain) as without:
        plain.run(rounds=1)
    with _watched(plain) as peaks:
        plain.run(rounds=1, floats=_PAYLOAD // 4)
    return {f"flower_memory_ratio_{name}": (peaks[name] - without[name]) / _PAYLOAD for name in peaks}


@contextmanager
def _watched(plain: PlainFlower) -> Iterator[dict[str, int]]:
    """Look at the most memory (bytes) that the server's and a site's processes take at once, until the end."""
    peaks = {"server": 0, "site": 0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for name, parent in zip(peaks, plain.pids, strict=False):
                peaks[name] = max(peaks[name], sum(map(_resident_bytes, (parent, *descendants(parent)))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        over.set()
        watcher.join()


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # it has ended
        return 0


def round_overhead_s(base: Path) -> float:
    """Return the median seconds of a round of ours, through agents, less what the slower site spent on its order."""
    base.mkdir()
    with deployment(base, SITES, private=False) as made:
        made.start_all()
        made.run_job("overhead", *QUICK, f"rounds={ROUNDS}", "pictures=0")
        return statistics.median(_overheads(made)[_FIRST_LEFT_OUT:])


def _overheads(made: Deployment) -> list[float]:
    spent: dict[int, float] = {}
    for site in made.sites:
        for line in (made.site_folder(site) / "activity.jsonl").read_text().splitlines():
            order = json.loads(line)
            if order["kind"] == "train":
                spent[order["round"]] = max(spent.get(order["round"], 0.0), order["seconds"])
    rounds = made.results("overhead")["rounds"]
    return [each["seconds"] - spent[each["round"]] for each in rounds]  # type: ignore[attr-defined]


def figures() -> dict[str, float]:
    """Return all, measured one after the other, and how busy the machine was with other things before."""
    with tempfile.TemporaryDirectory() as folder:
        load = os.getloadavg()[0]
        began = time.perf_counter()
        ours = round_overhead_s(Path(folder) / "ours")
        with plain_flower(Path(folder) / "plain", SITES) as flower:
            plain = round_overhead_plain_flower_s(flower)
        seconds = time.perf_counter() - began
        with plain_flower(Path(folder) / "memory", SITES) as flower:
            memory = flower_memory_ratios(flower)
        return {
            "round_overhead_s": ours,
            "round_overhead_plain_flower_s": plain,
            "round_overhead_load_before": load,
            "round_overhead_benchmark_s": seconds,
            **memory,
        }
