"""A federation of real processes, set up by the commands that people use: server, agents, connectors, phantoms.

On one machine's loopback, or with a host of its own for each (`tests.deployment.hosts`). Everything lies in one
folder; processes are stopped by the ids they were started with.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load_file

from multimix.contract.messages import weights_sha256
from multimix.contract.signing import public_text
from multimix.data.phantom import write_phantoms
from server.provision.folder import open_federation
from tests.deployment.hosts import Host, Network
from tests.deployment.processes import Program
from tests.nginx import nginx_command
from tests.orthanc import free_port

BIN = Path(sys.executable).parent
SIZE = 32
QUICK = ("rounds=2", "local-steps=2", f"image-size={SIZE}", "width=2", "images-per-group=2", "deadline-s=120")
PRIVATE = ("dp=patient", "dp-epsilon=8", "dp-delta=0.001", "dp-sampling-rate=0.5", "dp-images-per-patient=1")
PATIENTS = 24
_START_S = 90.0


def environment(**more: str) -> dict[str, str]:
    """Return what every process is told."""
    keep = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    quiet = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    return {**keep, **quiet, "PATH": f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **more}


def wait_for(what: str, true: Callable[[], object], *, within_s: float = _START_S) -> object:
    """Wait until something is true and return it."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {within_s:.0f} s: {what}")


@dataclass(frozen=True)
class Held:
    """The images of a hospital, and what it declares of them."""

    manifest: Path
    image_size: int = SIZE
    patients: int = PATIENTS
    normal: int = 10
    pneumonia: int = 10
    masks: int = 10


Images = Callable[[str], Held]


@dataclass
class Deployment:
    """One federation; use `deployment()`."""

    folder: Path
    sites: tuple[str, ...]
    network: Network | None = None
    address: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    programs: dict[str, Program] = field(default_factory=dict)
    env: dict[str, dict[str, str]] = field(default_factory=dict)  # more for a host's processes
    fingerprint: str = ""

    @property
    def federation(self) -> Path:
        return self.folder / "federation"

    def site_folder(self, site: str) -> Path:
        return self.folder / site

    def host(self, name: str) -> Host | None:
        return self.network.host(name) if self.network else None

    # Commands

    def run(self, where: str, *command: str, check: bool = True, within_s: float = 300) -> subprocess.CompletedProcess:
        """Run a command on a host to its end."""
        host = self.host(where)
        line = host.command(*command) if host else list(command)
        done = subprocess.run(
            line, cwd=self.folder, env=environment(**self.env.get(where, {})), capture_output=True, text=True,
            timeout=within_s, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def server(self, *arguments: str, check: bool = True, within_s: float = 300) -> subprocess.CompletedProcess:
        command, *rest = arguments
        return self.run(
            "server", str(BIN / "multimix-server"), command, "-f", str(self.federation), *rest, check=check, within_s=within_s
        )  # fmt: skip

    def at(self, site: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run `multimix-site` at a hospital."""
        return self.run(
            site, str(BIN / "multimix-site"), *arguments, "--site", str(self.site_folder(site)), check=check
        )

    # Processes

    def start(self, name: str, where: str, *command: str) -> Program:
        """Start a process on a host, in a group of its own."""
        host, log = self.host(where), self.folder / f"{name}.log"
        line, env = list(command), environment(**self.env.get(where, {}))
        with log.open("ab") as output:
            process = subprocess.Popen(
                host.command(*line) if host else line,
                cwd=self.folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.programs[name] = Program(process, log)
        return self.programs[name]

    def start_server(self) -> Program:
        command = (str(BIN / "multimix-server"), "start", "-f", str(self.federation))
        started = self.start("server", "server", *command)
        wait_for("the server is up", lambda: "server up" in started.said.replace("\n", " "))
        if self.network and "proxy" not in self.programs:
            self.start("proxy", "proxy", *nginx_command(open_federation(self.federation), self.folder / "nginx"))
        return started

    def start_agent(self, site: str) -> Program:
        before = self._said(f"agent-{site}").count("ready")
        command = (str(BIN / "multimix-site"), "agent", "--site", str(self.site_folder(site)))
        # In a namespace without any network, as its unit says.
        started = self.start(f"agent-{site}", site, *(("unshare", "-n") if self.network else ()), *command)
        wait_for(f"the agent of {site} is ready", lambda: started.said.count("ready") > before)
        return started

    def start_connector(self, site: str) -> Program:
        return self.start(
            f"connector-{site}", site, str(BIN / "multimix-site"), "connect", "--site", str(self.site_folder(site))
        )

    def start_site(self, site: str) -> None:
        self.start_agent(site)
        self.start_connector(site)

    def start_all(self) -> None:
        self.start_server()
        for site in self.sites:
            self.start_site(site)
        self.wait_connected(len(self.sites))

    def _said(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def connected(self) -> int:
        """Return how many sites the server says are connected."""
        status = json.loads(self.server("status", "--json", check=False).stdout)
        return sum(bool(site.get("connected")) for site in status["sites"].values())

    def wait_connected(self, count: int, *, within_s: float = 120) -> None:
        wait_for(f"{count} sites are connected", lambda: self.connected() == count, within_s=within_s)

    # Runs

    def run_job(self, name: str, *options: str, check: bool = True, within_s: float = 600) -> dict[str, object]:
        """Run a job to its end and return results.json."""
        self.server("run", "--name", name, *_options(options), check=check, within_s=within_s)
        return self.results(name)

    def begin_job(self, name: str, *options: str) -> Program:
        """Begin a job in the background."""
        command = (str(BIN / "multimix-server"), "run", "-f", str(self.federation), "--name", name)
        return self.start(f"run-{name}", "server", *command, *_options(options))

    def begin_resume(self, name: str) -> Program:
        """Go on with a job in the background, once the server is up again."""
        wait_for("the server is up", lambda: self.server("status", check=False).returncode == 0)
        command = (str(BIN / "multimix-server"), "resume", "-f", str(self.federation), name)
        return self.start(f"run-{name}", "server", *command)

    def results(self, name: str) -> dict[str, object]:
        return json.loads((self.federation / "runs" / name / "results.json").read_text())

    def model(self, name: str) -> str:
        """Return the hash of the final weights; the file's own may differ in the order of its remarks."""
        return weights_sha256(load_file(self.federation / "runs" / name / "model.safetensors"))

    def verified(self, site: str) -> dict[str, object]:
        """Verify a site's ledger as an auditor does, with the coordinator's heads; AssertionError on a violation."""
        ledger = self.site_folder(site) / "ledger"
        first = json.loads((ledger / "ledger.jsonl").read_text().splitlines()[0])
        key = json.loads(first["document"])["body"]["public_key"]
        folder = open_federation(self.federation)
        coordinator = public_text(folder.signing_key())
        done = self.run(site, str(BIN / "multimix-audit"), "verify", str(ledger), "--key", key,
                        "--heads", str(folder.heads), "--coordinator", coordinator, "--json")  # fmt: skip
        return json.loads(done.stdout)

    def close(self) -> None:
        """Stop what runs: sites first, so that they say goodbye."""
        for name in sorted(self.programs, key=lambda name: name.startswith("server")):
            self.programs[name].stop()
        for program in self.programs.values():
            program.kill()


def _options(values: tuple[str, ...]) -> list[str]:
    return [argument for value in values for argument in ("-c", value)]


@contextmanager
def deployment(
    folder: Path,
    sites: tuple[str, ...],
    *,
    network: Network | None = None,
    private: bool = True,
    images: Images | None = None,
) -> Iterator[Deployment]:
    """Set a federation up, from nothing to sites that can be started, and stop what was started.

    In a network the server is behind nginx on a host of its own. Hospitals hold phantoms unless `images` says where each one's are.
    """
    made = Deployment(folder, sites, network)
    if network:
        made.address = network.host("proxy").address
    try:
        set_up_server(made)
        images = images or phantoms(folder / "phantoms", len(sites))
        for site in sites:
            set_up_site(made, site, images(site), private=private)
        yield made
    finally:
        made.close()


def phantoms(folder: Path, hospitals: int) -> Images:
    """Draw the images of small hospitals."""
    manifest = write_phantoms(folder, hospitals=hospitals, patients=PATIENTS, image_size=64, seed=0)
    return lambda site: Held(rows_of(manifest, site))


def set_up_server(made: Deployment) -> None:
    where = f"{made.address}:{made.port}"
    server = made.host("server")
    bind = ("--bind-port", str(made.port))
    if server:  # nobody else is in that network
        bind = (*bind, "--bind-host", server.address, "--expose-superlink")
    made.fingerprint = json.loads(made.server("init", where, *bind, "--json").stdout)["fingerprint"]


def set_up_site(made: Deployment, site: str, held: Held, *, private: bool) -> None:
    """Kit, join, images, admission; a site that trains openly has its officer's signature."""
    kit = made.folder / f"{site}.kit.zip"
    made.server("kit", site, "--out", str(kit))
    declared = ("--declared-patients", str(held.patients), "--declared-normal", str(held.normal),
                "--declared-pneumonia", str(held.pneumonia), "--declared-masks", str(held.masks),
                "--epsilon-per-run", "50", "--epsilon-lifetime", "50", "--delta", "0.001")  # fmt: skip
    officer = folder_of_officer(made, site)
    made.at(site, "join", str(kit), "--fingerprint", made.fingerprint, "--image-size", str(held.image_size), *declared,
            "--officer-key", officer)  # fmt: skip
    relax(made.site_folder(site), private=private)
    if not private:
        key = made.folder / f"{site}.officer"
        made.at(site, "officer", "allow", "non-private", "--key", str(key), "--text", "Synthetic images.", "--yes")
    made.at(site, "intake", str(held.manifest))
    made.server("admit", site, str(made.site_folder(site) / "connector" / "node.pub"))


def folder_of_officer(made: Deployment, site: str) -> str:
    """Make the officer's key; return its public half."""
    done = made.run(site, str(BIN / "multimix-site"), "officer", "key", "--out", str(made.folder / f"{site}.officer"))
    return next(word.strip('"') for word in done.stdout.split() if word.startswith('"'))


def relax(site: Path, *, private: bool) -> None:
    """Let a hospital of two dozen synthetic patients take part without a person who approves."""
    text = (site / "site.toml").read_text()
    text = text.replace("approve_jobs = true", "approve_jobs = false")
    text = text.replace("minimum_cohort = 10", "minimum_cohort = 1").replace(
        "# minimum_expected_patients = 10 ", "minimum_expected_patients = 1 "
    )
    if not private:
        text = text.replace("# allow_non_private = false", "allow_non_private = true")
        text = text.replace("# release_evaluation = false", "release_evaluation = true")
    (site / "site.toml").write_text(text)


def rows_of(manifest: Path, site: str) -> Path:
    """Write the rows of one phantom hospital beside the manifest of all."""
    with manifest.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    column = header.index("source")
    out = manifest.with_name(f"{site}.csv")
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([header, *(row for row in rows if row[column] == site)])
    return out
