"""What monitoring may know of the agent: Prometheus text in the site's folder, without names of jobs or patients.

A file, because the agent has no network: the node exporter's textfile collector takes it in.
"""

import logging
import math
import threading
import time
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from client.settings import SiteFolder
from multimix.errors import Refused, SiteError
from multimix.files import write_atomically
from multimix.privacy.history import non_private, reservations, seeded
from multimix.privacy.ledger import read_ledger

log = logging.getLogger("multimix.agent")

FILE: Final = "metrics.prom"
_EVERY_S: Final = 1.0  # the file is written no more often


class Metrics:
    """The agent's figures since it started."""

    def __init__(self, file: Path) -> None:
        self._file, self._registry = file, CollectorRegistry()
        self._rounds = Counter(
            "multimix_agent_orders", "Orders by kind and outcome.", ("kind", "outcome"), registry=self._registry
        )
        self._seconds = Counter(
            "multimix_agent_busy_seconds", "Seconds spent on orders.", ("kind",), registry=self._registry
        )
        self._busy = Gauge("multimix_agent_busy", "1 while an order runs.", registry=self._registry)
        self._budget: Gauge | None = None
        self._lock, self._written_s = threading.Lock(), -math.inf
        self._later: threading.Timer | None = None

    def busy(self, value: bool) -> None:  # noqa: FBT001
        """Say whether an order runs; `write` or `ended` writes it."""
        self._busy.set(value)

    def ended(self, kind: str, outcome: str, seconds: float = 0.0) -> None:
        """Count an order."""
        self._rounds.labels(kind, outcome).inc()
        self._seconds.labels(kind).inc(seconds)
        self.write()

    def budget(self, used_fraction: float | None) -> None:
        """Say how much of the lifetime's budget is spent; absent where there is no ledger."""
        if used_fraction is None:
            return
        if self._budget is None:
            self._budget = Gauge(
                "multimix_agent_budget_used_ratio",
                "Epsilon spent of the lifetime's limit, as entered last; +Inf after training without privacy.",
                registry=self._registry,
            )
        self._budget.set(used_fraction)

    def write(self) -> None:
        """Write the file, at once or within a second; where it cannot be, training goes on."""
        with self._lock:
            if self._later is not None:
                return  # that will write this, too
            wait_s = self._written_s + _EVERY_S - time.monotonic()
            if wait_s > 0:
                self._later = threading.Timer(wait_s, self.close)
                self._later.daemon = True
                self._later.start()
                return
        self.close()

    def close(self) -> None:
        """Write the file now."""
        with self._lock:
            if self._later is not None:
                self._later.cancel()
            self._later, self._written_s = None, time.monotonic()
        try:
            write_atomically(self._file, generate_latest(self._registry), mode=0o644)  # it names nobody
        except OSError as error:
            log.warning("metrics_not_written: %s", type(error).__name__)


def epsilon_spent(site: SiteFolder) -> float | None:
    """Return the lifetime's epsilon as the ledger's last reservation says; None without a ledger.

    Infinity where anything was trained without privacy, or with noise that somebody knows. Only `multimix-site budget`
    prices it anew.
    """
    try:
        ledger = read_ledger(site.ledger, site=site.settings.name, population=site.population.name)
    except (Refused, SiteError):
        return None
    if non_private(ledger.entries) or seeded(ledger.entries):
        return math.inf
    return max((each.epsilon_private for each in reservations(ledger.entries)), default=0.0)
