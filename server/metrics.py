"""`/health`, and `/metrics` in Prometheus' text format: counts and reason codes, no name of a site, no key, no address.

On the loopback only. Every figure is read at the moment it is asked for.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from multimix.errors import InputError
from server.nodes import is_running, list_nodes
from server.provision.folder import FederationFolder, open_federation
from server.provision.rotation import certificates_of
from server.reasons import REASONS
from server.results import RESULTS_FILE, Results, read_results

_HIGHEST_PORT: Final = 0xFFFF


class FederationCollector(Collector):
    """The federation's figures."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        """Read them."""
        try:
            folder = open_federation(self._path)
        except InputError:
            yield _gauge("multimix_server_up", "1 while the SuperLink answers.", 0)
            return
        up = is_running(folder)
        yield _gauge("multimix_server_up", "1 while the SuperLink answers.", up)
        yield _gauge("multimix_sites_admitted", "Sites that may take part.", len(folder.settings.admitted))
        if up:
            yield _gauge("multimix_sites_connected", "Admitted sites that are online.", _connected(folder))
        yield from _certificates(folder)
        results = newest_results(folder)
        if results is not None:
            yield _gauge("multimix_run_round", "Rounds done in the newest run.", len(results.rounds))
            yield _gauge("multimix_run_rounds_planned", "Rounds of the newest run.", results.rounds_planned)
            yield _gauge("multimix_run_finished", "1 once the newest run has its model.", results.status == "finished")
            yield _outcomes(results)


def newest_results(folder: FederationFolder) -> Results | None:
    """Return the results of the run that wrote last, if there is one that can be read."""
    run = newest_run(folder)
    try:
        return read_results(run) if run else None
    except InputError:
        return None


def newest_run(folder: FederationFolder) -> Path | None:
    """Return the folder of the run that wrote last."""
    files = [file for file in folder.runs.glob(f"*/{RESULTS_FILE}") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_mtime_ns).parent if files else None


@contextmanager
def serve_metrics(path: Path, port: int) -> Iterator[None]:
    """Answer /health and /metrics on the loopback meanwhile; InputError `port_taken`, `metrics_port`."""
    if port > _HIGHEST_PORT:
        raise InputError(
            "metrics_port", f"There is no port {port} for /health and /metrics. Give another with --metrics-port."
        )
    registry = CollectorRegistry()
    registry.register(FederationCollector(path))

    class Handler(BaseHTTPRequestHandler):
        """Two pages, and nothing of who asked in any log."""

        def do_GET(self) -> None:
            """Answer."""
            if self.path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry))
            elif self.path == "/health":
                up = _healthy(path)
                self._answer(200 if up else 503, "application/json", b'{"up": %s}\n' % (b"true" if up else b"false"))
            else:
                self._answer(404, "text/plain", b"")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError:
        raise InputError(
            "port_taken", f"Port {port}, for /health and /metrics, is taken. Give another with --metrics-port."
        ) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _healthy(path: Path) -> bool:
    try:
        return is_running(open_federation(path))
    except InputError:
        return False


def _connected(folder: FederationFolder) -> int:
    keys = {site.flower_key for site in folder.settings.admitted.values()}
    try:
        return sum(node.online and node.key in keys for node in list_nodes(folder))
    except InputError:
        return 0


def _certificates(folder: FederationFolder) -> Iterator[Metric]:
    try:
        needed = [each for each in certificates_of(folder, datetime.now(UTC)) if each.needed]
    except InputError:
        return
    left_s = min((each.expires - datetime.now(UTC)).total_seconds() for each in needed)
    yield _gauge("multimix_certificate_expiry_seconds", "Until the first certificate in use expires.", left_s)


def _outcomes(results: Results) -> Metric:
    family = GaugeMetricFamily(
        "multimix_run_site_rounds", "Answers of sites in the newest run.", labels=("state", "reason")
    )
    answers = (site for done in results.rounds for site in done.sites.values())
    counted = Counter((site.state, _known(site.reason or "")) for site in answers)
    for labels, count in sorted(counted.items()):
        family.add_metric(labels, count)
    return family


def _known(reason: str) -> str:
    """Return a reason that the software has; a site chooses its words, and they may be anything."""
    return reason if not reason or reason in REASONS else "other"


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=float(value))
