import json
from datetime import UTC, datetime

import pytest
from fake_network import FakeNetwork, roster_of
from fake_sites import PLAN_KEY, FakeSite, card, refuses, tiny_run

from multimix.errors import InputError
from server.exchange import Post
from server.job import Job, run_job
from server.live import PAGE_FILE, STATUS_FILE, SiteStatus, Status, page, read_status
from server.production import Production
from tests.browser import load_in_browser


@pytest.fixture(autouse=True)
def _clock_by_hand(monkeypatch):
    monkeypatch.setattr("server.job.Post", lambda grid, roster: Post(grid, roster, clock=grid.clock, sleep=grid.sleep))
    monkeypatch.setattr("server.live._EVERY_S", 0.0)


@pytest.fixture
def run(tmp_path):
    def run(network, *, rounds=2, after_round=lambda _state: None, **config):
        roster = roster_of(site.card.site for site in network.sites)
        fields = {"rounds": rounds, "deadline_s": 60.0} | config
        job = Job(tiny_run(**fields), tmp_path / "run", PLAN_KEY, {}, Production(roster, tmp_path / "heads.jsonl"))
        return run_job(network, job, after_round=after_round)

    return run


def _network(names="ab"):
    return FakeNetwork([FakeSite(card(name)) for name in names])


def _status(**fields):
    now = datetime(2026, 11, 1, tzinfo=UTC)
    document = {"job": "job", "title": "Lungs", "state": "running", "doing": "training", "round": 1, "rounds": 3}
    return Status(**document | {"sites": {}, "private": False, "started": now, "written": now} | fields)


def test_a_finished_run_says_so_and_links_its_report(run, tmp_path):
    run(_network())
    status = read_status(tmp_path / "run")
    assert (status.state, status.doing, status.round, status.rounds) == ("finished", "nothing", 2, 2)
    assert {site.last_round for site in status.sites.values()} == {"accepted"}
    html = (tmp_path / "run" / PAGE_FILE).read_text()
    assert 'href="report.html"' in html
    assert 'http-equiv="refresh"' not in html


def test_a_stopped_run_says_so(run, tmp_path):
    def interrupt(_state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(_network(), after_round=interrupt)
    assert read_status(tmp_path / "run").state == "stopped"


def test_while_a_round_is_under_way_the_status_tells_who_has_answered(run, tmp_path):
    network, seen = _network(), []
    network.node("b").takes_s = 20.0
    network.at(30.0, lambda: seen.append(read_status(tmp_path / "run")))
    run(network)
    (status,) = seen
    assert (status.doing, status.round) == ("training", 0)
    assert {name: site.standing for name, site in status.sites.items()} == {"a": "answered", "b": "asked"}
    assert (status.answered, status.asked) == (1, 2)
    assert status.deadline is not None
    assert status.sites["a"].last_seen is not None


def test_a_site_that_is_held_back_is_shown_with_its_reason(run, tmp_path):
    network, seen = _network(), []
    network.node("b").site.misbehaves[1] = lambda site, message: (
        site.train(message) if seen else refuses("job_not_approved")(site, message)
    )
    network.at(20.0, lambda: seen.append(read_status(tmp_path / "run")))
    run(network)
    assert (seen[0].sites["b"].standing, seen[0].sites["b"].reason) == ("held-back", "job_not_approved")


def test_before_the_sites_are_gathered_the_page_names_those_that_are_missing(run, tmp_path):
    network, seen = _network(), []
    network.leaves("b")
    network.at(5.0, lambda: seen.append((tmp_path / "run" / PAGE_FILE).read_text()))
    network.at(6.0, lambda: network.returns("b"))
    run(network)
    assert "its connector is not here" in seen[0]
    assert 'http-equiv="refresh"' in seen[0]


def test_how_long_a_site_took_is_withheld_under_privacy(run, tmp_path):
    network, seen = _network(), []
    network.node("b").takes_s = 20.0
    network.at(30.0, lambda: seen.append(read_status(tmp_path / "run")))
    run(network, dp="site", dp_accept=True)
    assert seen[0].private
    assert seen[0].sites["a"].standing == "answered"
    assert all(site.seconds is None for site in seen[0].sites.values())


def test_text_in_the_page_is_escaped_and_nothing_is_fetched():
    html = page(_status(title="<script>alert(1)</script>"), has_report=False)
    assert html.count("<script>") == 1  # its own, by its hash
    assert "&lt;script&gt;alert(1)" in html
    assert "default-src 'none'" in html
    assert "http://" not in html.replace("http-equiv", "")


def test_the_page_puts_reasons_into_words():
    held = SiteStatus(standing="held-back", connected=True, reason="site_paused")
    assert "its people have paused it" in page(_status(sites={"a": held}), has_report=False)


def test_a_status_that_is_missing_or_of_another_schema_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"status\.json"):
        read_status(tmp_path)
    document = json.loads(_status().model_dump_json()) | {"schema_version": 2}
    (tmp_path / STATUS_FILE).write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"status\.json"):
        read_status(tmp_path)


def test_a_status_that_cannot_be_written_stops_no_run(run, tmp_path):
    (tmp_path / "run" / STATUS_FILE).mkdir(parents=True)  # nothing can be renamed over a folder
    assert run(_network()).status == "finished"


def test_the_budget_that_a_site_shares_is_shown_and_no_column_where_none_does(run, tmp_path):
    shared = FakeSite(card("a").model_copy(update={"budget_left": 0.62}))
    run(FakeNetwork([shared, FakeSite(card("b"))]))
    assert read_status(tmp_path / "run").sites["a"].budget_left == 0.62
    assert "62 %" in (tmp_path / "run" / PAGE_FILE).read_text()
    assert "Budget left" not in page(
        _status(sites={"b": SiteStatus(standing="idle", connected=True)}), has_report=False
    )


def test_a_run_that_too_few_sites_could_train_for_says_why(run, tmp_path):
    network = FakeNetwork([FakeSite(card(name), misbehaves={1: refuses("dp_delta")}) for name in "ab"])
    with pytest.raises(InputError):
        run(network)
    assert "a: dp_delta, b: dp_delta" in read_status(tmp_path / "run").problem
    assert "dp_delta" in (tmp_path / "run" / PAGE_FILE).read_text()


def _in_browser(status, folder):
    (folder / PAGE_FILE).write_text(page(status, has_report=False))
    return load_in_browser(folder / PAGE_FILE, folder / "profile")


@pytest.mark.browser
def test_a_browser_shows_the_page_without_complaint(tmp_path):
    sites = {"<b>site</b>": SiteStatus(standing="held-back", connected=True, reason="job_not_approved")}
    dom, console = _in_browser(_status(sites=sites, written=datetime.now(UTC)), tmp_path)
    assert console == []
    assert '<dd id="rounds">1 of 3</dd>' in dom
    assert "&lt;b&gt;site&lt;/b&gt;" in dom
    assert "its people have not approved this job yet" in dom
    assert 'id="old" class="bad" hidden=""' in dom


@pytest.mark.browser
def test_the_page_of_a_killed_run_says_in_a_browser_that_nothing_was_written(tmp_path):
    dom, _ = _in_browser(_status(), tmp_path)
    assert 'id="old" class="bad">' in dom
