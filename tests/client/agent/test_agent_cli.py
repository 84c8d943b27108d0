"""approve, pause, resume, leave, status: decisions are kept on disk, closed to others, and shown."""

import json

import pytest
import typer
from typer.testing import CliRunner

from client.agent.activity import FILE, OLDER, Activity, ActivityLog, now, read_activity, waiting_jobs
from client.agent.cli import register
from client.agent.control import Control, change_control, check_job, read_control
from client.policy import SitePolicy
from client.settings import new_site
from multimix.errors import Refused, SiteError

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
    from client.settings import open_site

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
    line = Activity(time=now(), kind="train", job="lung-1", round=1, outcome="refused", reason="job_not_approved")
    ActivityLog(site).append(line)
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
    assert waiting_jobs(lines, ()) == []


def waiting(site, *jobs):
    for job in jobs:
        refused = {"outcome": "refused", "reason": "job_not_approved"}
        ActivityLog(site).append(Activity(time=now(), kind="train", job=job, round=1, **refused))


def test_the_one_job_that_waits_is_approved_without_its_name(site):
    waiting(site, "job-7")
    assert call(site, "approve")[0] == 0
    assert read_control(site).approved == ("job-7",)


def test_of_two_jobs_that_wait_none_is_approved_without_its_name(site):
    waiting(site, "job-7", "job-8")
    assert call(site, "approve")[0] == 2
    assert read_control(site).approved == ()


def test_what_the_agent_keeps_may_lie_in_a_folder_of_its_own(site, tmp_path):
    text = (site / "site.toml").read_text()
    (site / "site.toml").write_text(text.replace("# [agent]", f'[agent]\nfolder = "{tmp_path / "kept"}"'))
    assert call(site, "approve", "job-7")[0] == 0
    assert read_control(tmp_path / "kept").approved == ("job-7",)
    assert not (site / "control.json").exists()
