"""approve, pause, resume, leave, status: decisions are kept on disk, closed to others, and shown."""

import json
import math
import os
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from client.agent.activity import FILE, OLDER, Activity, ActivityLog, Repeats, now, read_activity
from client.agent.cli import register
from client.agent.control import Control, change_control, check_job, note_waiting, read_control
from client.agent.metrics import Metrics, epsilon_spent
from client.policy import SitePolicy
from client.settings import new_site, open_site
from multimix.errors import Refused, SiteError
from multimix.privacy.entries import Binding, NonPrivate, Reservation
from multimix.privacy.ledger import create_ledger, open_ledger
from tests.client.agent.agents import ROOT, wait_for
from tests.client.tiny_hospitals import DP

app = typer.Typer()
register(app)


@pytest.fixture
def site(tmp_path):
    return new_site(tmp_path / "site", "clinic", image_size=32).path


def call(site, *words):
    done = CliRunner().invoke(app, [*words, "--site", str(site)])
    return done.exit_code, done.output


def document(site):
    code, text = call(site, "status", "--json")
    return json.loads(text) | {"code": code}


def test_a_fresh_site_has_every_job_approved_first(site):
    assert open_site(site).settings.policy.approve_jobs


def test_an_approved_job_trains_until_the_approval_is_withdrawn(site):
    policy = SitePolicy(approve_jobs=True)
    assert call(site, "approve", "job-1")[0] == 0
    check_job(read_control(site), policy, "job-1")
    with pytest.raises(Refused, match="job_not_approved"):
        check_job(read_control(site), policy, "job-2")
    call(site, "approve", "job-1", "--withdraw")
    with pytest.raises(Refused, match="job_not_approved"):
        check_job(read_control(site), policy, "job-1")
    check_job(Control(), SitePolicy(), "any")


def test_pause_resume_and_leave_are_shown(site):
    call(site, "approve", "job")
    assert call(site, "pause")[0] == 0
    assert (document(site)["paused"], document(site)["approved"]) == (True, ["job"])
    call(site, "resume")
    assert not document(site)["paused"]
    call(site, "leave")
    assert (document(site)["left"], document(site)["approved"]) == (True, [])
    call(site, "resume")
    assert not document(site)["left"]
    assert (site / "control.json").stat().st_mode & 0o777 == 0o600


def test_status_without_an_agent_says_so_and_exits_with_1(site):
    code, text = call(site, "status")
    assert (code, "down: run multimix-site agent" in text) == (1, True)
    found = document(site)
    assert (found["agent"], found["running"], found["epsilon_left"], found["code"]) == (False, None, None, 1)


def test_a_job_that_waits_is_named_by_status_until_it_is_approved(site):
    note_waiting(site, "lung-1")
    _, text = call(site, "status")
    assert ("lung-1" in text, "waits for this hospital's approval" in text) == (True, True)
    assert document(site)["waiting"] == ["lung-1"]
    call(site, "approve", "lung-1")
    assert document(site)["waiting"] == []


def test_a_name_that_no_job_can_have_is_not_approved(site):
    code, text = call(site, "approve", "a/b")
    assert (code, "job_unusable" in text) == (2, True)


def test_without_a_site_every_command_says_so(tmp_path):
    for words in (("approve", "x"), ("pause",), ("resume",), ("leave",), ("status",), ("agent",)):
        assert call(tmp_path, *words)[0] == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may decide for another user")
def test_what_root_decides_belongs_to_the_agents_user(site):
    os.chown(site, 65534, 65534)
    (site / "control.json").write_text("{}")  # as root has left one before
    assert call(site, "approve", "job-1")[0] == 0
    for name in ("control.json", "control.lock"):
        found = (site / name).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65534, 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("decided", [True, False])
def test_a_third_user_is_told_who_may_decide(site, decided):
    if decided:
        change_control(site, lambda control: control)
    for path in (site, *site.parents[:3]):
        path.chmod(0o711)
    code = (
        "import sys; from pathlib import Path; import os; from client.agent.control import *; from multimix.errors import *\n"
        "site = os.open(sys.argv[1], os.O_PATH); os.setegid(65534); os.seteuid(65534); os.fchdir(site)\n"
        "try: change_control(Path('.'), lambda control: control)\n"
        "except SiteError as error: print(error.reason, error)"
    )
    done = subprocess.run([sys.executable, "-c", code, site], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("wrong_user "), done.stderr
    assert "sudo -u root multimix-site" in done.stdout


@pytest.mark.parametrize("text", ["", "{", '{"paused": "maybe"}', '{"unknown": 1}', '{"approved": ["a/b"]}'])
def test_decisions_that_are_not_understood_are_refused(site, text):
    (site / "control.json").write_text(text)
    with pytest.raises(SiteError, match="approve jobs anew"):
        read_control(site)
    with pytest.raises(SiteError):
        change_control(site, lambda control: control)


def test_the_activity_log_is_bounded_and_skips_a_line_that_was_cut(site):
    log = ActivityLog(site, most_bytes=1000)
    for number in range(100):
        log.append(Activity(time=now(), kind="train", job="job", round=number, outcome="answered", seconds=1.0))
    assert (site / FILE).stat().st_size + (site / OLDER).stat().st_size <= 2000
    with (site / FILE).open("ab") as file:
        file.write(b'{"time": "20')
    lines = read_activity(site)
    assert [line.round for line in lines] == list(range(lines[0].round, 100))
    assert (site / FILE).stat().st_mode & 0o777 == 0o600


def happened(reason="plan_signature", outcome="refused", **fields):
    return Activity(time=now(), kind="train", outcome=outcome, reason=reason, **fields)


def test_of_refusals_without_a_signed_plan_one_line_a_minute_is_written_and_tells_of_the_others():
    clock = [0.0]
    repeats = Repeats(lambda: clock[0])
    lines = []
    for second in range(150):
        clock[0] = float(second)
        lines.append(repeats.admit(happened("plan_signature" if second % 2 else "request_malformed")))
    written = {second: line.repeats for second, line in enumerate(lines) if line}
    assert written == {0: 0, 60: 59, 120: 59}
    assert [line.repeats for line in repeats.rest()] == [28]  # 29 calls: the line, and 28 like it
    assert repeats.rest() == []


def test_a_signed_plan_has_its_line_whatever_else_is_asked_and_every_answer_has_one():
    repeats = Repeats(lambda: 0.0)
    assert repeats.admit(happened())
    assert repeats.admit(happened("plan_replayed", plan_sha256="a"))
    assert repeats.admit(happened("plan_replayed", plan_sha256="b"))
    assert repeats.admit(happened("plan_replayed", plan_sha256="a")) is None
    for _ in range(3):
        assert repeats.admit(happened("", "answered", plan_sha256="a"))


def test_the_metrics_file_is_written_once_a_second_at_most_and_has_the_last_word(tmp_path):
    written, calls, began = [], 0, time.monotonic()
    file = tmp_path / "metrics.prom"
    metrics = Metrics(file)
    while time.monotonic() < began + 1.5:
        metrics.ended("train", "refused")
        calls += 1
        written += [file.stat().st_ino] if file.stat().st_ino not in written[-1:] else []
    assert 1 < len(written) <= time.monotonic() - began + 1 < calls
    metrics.ended("train", "answered")
    metrics.close()
    assert 'outcome="answered"} 1.0' in file.read_text()


def test_the_metrics_file_is_written_though_nothing_more_happens(tmp_path):
    metrics = Metrics(tmp_path / "metrics.prom")
    metrics.write()
    metrics.ended("train", "answered")
    wait_for(lambda: 'outcome="answered"} 1.0' in (tmp_path / "metrics.prom").read_text())


BINDING = Binding(job_id="job", round=1, plan_sha256="a" * 64, weights_sha256="b" * 64, data_fingerprint="c")


def reserved(*, seeded):
    return Reservation(
        binding=BINDING, commitment="d" * 64, seeded=seeded, dp=DP, steps=1, total_steps=1, epsilon_run=1.0,
        epsilon_lifetime=1.0, epsilon_private=1.0, prv=1.0, pld=1.0, limit_run=3.0, limit_lifetime=4.0, delta=0.01,
        code="x", method_sha256="e" * 64,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bodies", "spent"),
    [
        ([], 0.0),
        ([reserved(seeded=False)], 1.0),
        ([NonPrivate(binding=BINDING, steps=1)], math.inf),
        ([reserved(seeded=True)], math.inf),
    ],
)
def test_training_without_privacy_has_spent_infinity_and_leaves_nothing(site, bodies, spent):
    text = (site / "site.toml").read_text()
    table = "[population]\ndeclared_patients = 8\nepsilon_per_run = 3.0\nepsilon_lifetime = 4.0\ndelta = 0.01\n"
    (site / "site.toml").write_text(text.replace("# [population]", table))
    create_ledger(site / "ledger", site="clinic", population="patients")
    with open_ledger(site / "ledger", site="clinic", population="patients") as ledger:
        for body in bodies:
            ledger.append(body)
    assert epsilon_spent(open_site(site)) == spent
    found, (_, shown) = document(site), call(site, "status")
    infinite = spent == math.inf
    assert (found["epsilon_infinite"], found["epsilon_left"]) == (infinite, 0.0 if infinite else 4.0 - spent)
    assert found["epsilon_spent"] == (None if infinite else spent)
    assert ("has spent infinity" in " ".join(shown.split())) == infinite
    metrics = Metrics(site / "metrics.prom")
    metrics.budget(spent / 4.0)
    metrics.close()
    told = "+Inf" if infinite else str(spent / 4.0)
    assert f"multimix_agent_budget_used_ratio {told}" in (site / "metrics.prom").read_text()


def test_the_one_job_that_waits_is_approved_without_its_name(site):
    note_waiting(site, "job-7")
    assert call(site, "approve")[0] == 0
    assert (read_control(site).approved, read_control(site).waiting) == (("job-7",), ())


def test_of_two_jobs_that_wait_both_are_named_and_none_is_approved_without_its_name(site):
    for job in ("job-7", "job-8"):
        note_waiting(site, job)
    code, text = call(site, "approve")
    assert (code, "job-7, job-8" in text) == (2, True)
    assert read_control(site).approved == ()


def test_which_job_waits_does_not_depend_on_the_activity_log(site):
    note_waiting(site, "job-7")
    for name in (FILE, OLDER):
        (site / name).unlink(missing_ok=True)
    assert document(site)["waiting"] == ["job-7"]


def test_of_jobs_that_wait_the_newest_are_kept_each_once(site):
    for number in (*range(20), 19):
        note_waiting(site, f"job-{number}")
    assert read_control(site).waiting == tuple(f"job-{number}" for number in range(4, 20))


def test_a_job_whose_approval_was_taken_back_waits_only_once_it_is_asked_for_again(site):
    note_waiting(site, "job-7")
    call(site, "approve", "job-7")
    call(site, "approve", "job-7", "--withdraw")
    assert document(site)["waiting"] == []
    note_waiting(site, "job-7")
    call(site, "leave")
    assert document(site)["waiting"] == []


def test_what_the_agent_keeps_may_lie_in_a_folder_of_its_own(site, tmp_path):
    text = (site / "site.toml").read_text()
    (site / "site.toml").write_text(text.replace("# [agent]", f'[agent]\nfolder = "{tmp_path / "kept"}"'))
    assert call(site, "approve", "job-7")[0] == 0
    assert read_control(tmp_path / "kept").approved == ("job-7",)
    assert not (site / "control.json").exists()
