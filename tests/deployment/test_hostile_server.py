"""A server that is the enemy: with the coordinator's key and an app of its own it gets what policy allows, no more.

The app in `evil_app/` is run by `flwr run` on the federation's SuperLink, so that its ClientApp runs in the hospital's
connector and attacks the agent over its socket. Every attack ends in a reason code, and the ledger stays whole.
"""

import json
import subprocess
from pathlib import Path

import pytest

from multimix.privacy.entries import Reservation
from multimix.privacy.ledger import read_ledger
from server.provision.folder import open_federation
from server.running import CONNECTION, flower_environment
from tests.deployment.federation import BIN, deployment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

APP = Path(__file__).parent / "evil_app"
SITE = "phantom-a"
LIFETIME = 50.0  # epsilon that the hospital declared
MIB = 1 << 20
REFUSED = {
    "unsigned": "plan_signature",
    "foreign key": "plan_signature",
    "foreign countersignature": "countersignature_invalid",
    "plan of an unknown protocol": "protocol_unknown",
    "call of an unknown protocol": "protocol_unknown",
    "pickle": "request_malformed",
    "other weights": "weights_hash",
    "without privacy": "dp_required",
    "over the budget": "dp_budget_run",
    "too large an epsilon": "dp_epsilon",
    "too little noise": "dp_noise",
    "too large a clip norm": "dp_clip_norm",
    "more patients than there are": "dp_declared_patients",
    "more images of a patient": "dp_images_per_patient",
    "too wide a network": "network_too_wide",
    "exact figures": "evaluation_not_released",
    "the same round with another plan": "plan_changed",
    "an older round": "plan_replayed",
    "other privacy in a later round": "dp_changed",
    "later again with other weights": "weights_hash",
}

CALLS = (
    *(f"/multimix.agent.v1.Agent/{name}" for name in ("Approve", "Pause", "Resume", "Leave")),
    *(f"/multimix.agent.v1.Agent/{name}" for name in ("Cancel", "Progress", "Ledger", "Files")),
    *(f"/multimix.agent.v1.Local/{name}" for name in ("Cancel", "Progress")),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with deployment(tmp_path_factory.mktemp("hostile"), (SITE,)) as made:
        made.start_all()
        yield made


@pytest.fixture(scope="module")
def memory(federation):
    """Outcomes of the attacks on memory, and by how much the agent's peak grew; before anything else grows it."""
    before = peak_bytes(federation)
    outcomes = attacked(federation, "memory")
    return outcomes, peak_bytes(federation) - before


@pytest.fixture(scope="module")
def outcomes(federation, memory):
    return attacked(federation, "orders")


def attacked(federation, attacks):
    """Run the hostile app; return what came of each attack."""
    out = federation.folder / f"{attacks}.json"
    folder = open_federation(federation.federation)
    given = [argument for key, value in (("attacks", attacks), ("out", out)) for argument in ("-c", f'{key}="{value}"')]
    done = subprocess.run(
        [str(BIN / "flwr"), "run", str(APP), CONNECTION, "--stream", *given],
        cwd=APP, env=flower_environment(folder), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert out.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())[SITE]


def peak_bytes(federation):
    """Return the most memory that the agent ever had."""
    status = Path(f"/proc/{federation.programs[f'agent-{SITE}'].process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def ledger(federation):
    return federation.site_folder(SITE) / "ledger"


def reservations(federation):
    return [entry.body for entry in read_ledger(ledger(federation)).entries if isinstance(entry.body, Reservation)]


def audit(federation, command, *more):
    done = federation.run(SITE, str(BIN / "multimix-audit"), command, str(ledger(federation)), *more, "--json")
    return json.loads(done.stdout)


def test_ten_declared_gigabytes_are_refused_from_their_header(memory):
    assert memory[0]["10 GB"] == "message_too_large"


def test_bytes_that_are_declared_and_never_sent_are_refused(memory):
    assert memory[0]["all that is allowed, never sent"] == "request_malformed"


def test_declared_sizes_do_not_take_the_agents_memory(memory):
    assert memory[1] < 64 * MIB


@pytest.mark.parametrize("name", REFUSED)
def test_an_attack_is_refused_for_its_reason(outcomes, name):
    assert outcomes[name] == REFUSED[name]


def test_a_pickle_is_not_opened(federation, outcomes):
    assert outcomes["pickle"] == "request_malformed"
    assert not list(federation.folder.rglob("opened"))


def test_the_socket_has_no_call_for_what_the_hospital_decides(outcomes):
    calls = {name: outcome for name, outcome in outcomes.items() if name.startswith("/")}
    assert calls == dict.fromkeys(CALLS, "UNIMPLEMENTED")


def test_an_order_asked_again_gets_the_same_bytes_whatever_weights_come_with_it(outcomes):
    again = [outcomes[name] for name in ("allowed", "again", "again with other weights", "later again")]
    assert again[0].startswith("answered ")
    assert again == again[:1] * 4


def test_orders_under_ever_new_names_end_where_the_lifetime_budget_does(outcomes):
    drained = [value.split()[0] for name, value in outcomes.items() if name.startswith("drain")]
    answered = drained.count("answered")
    assert 0 < answered < len(drained)
    assert drained == ["answered"] * answered + ["dp_budget_lifetime"] * (len(drained) - answered)


def test_the_ledger_has_lost_what_was_answered_and_no_more_and_verifies(federation, outcomes):
    answers = {value for value in outcomes.values() if value.startswith("answered ")}
    spent = reservations(federation)
    assert len(spent) == len(answers)
    assert spent[-1].epsilon_lifetime <= LIFETIME
    key = read_ledger(ledger(federation)).entries[0].body.public_key
    found = audit(federation, "verify", "--key", key)["findings"]
    assert [finding["reason"] for finding in found if finding["severity"] == "violation"] == []
    assert audit(federation, "recompute")["agrees"]


def test_an_app_cannot_approve_its_own_job(federation, outcomes):
    settings = federation.site_folder(SITE) / "site.toml"
    text = settings.read_text()
    assert "approve_jobs = false" in text
    settings.write_text(text.replace("approve_jobs = false", "approve_jobs = true"))
    before = len(reservations(federation))
    tried = attacked(federation, "unapproved")
    assert tried == {
        "unapproved": "job_not_approved", "approving": "UNIMPLEMENTED", "still unapproved": "job_not_approved",
    }  # fmt: skip
    assert len(reservations(federation)) == before
