"""The section on privacy: what was spent, rounded up, who refused and why, and what is not covered."""

import re

import pytest
from sample_results import sample_results

from server.model_card import limitations
from server.report import render
from server.report_privacy import privacy_section, refusals
from server.results import Privacy, SiteLevelPrivacy, SitePrivacy, SiteRound
from tests.browser import load_in_browser

SPENT = SitePrivacy(
    epsilon=2.3412,
    prv=2.3412,
    pld=2.3307,
    delta=0.00123,
    planned_epsilon=8.0,
    noise_multiplier=1.25,
    clip_norm=0.5,
    sampling_rate=0.064,
    declared_patients=400,
    images_per_patient=2,
    modules=("encoder", "decoder"),
    parameters="affine",
    rounds=12,
    steps=480,
)
SITES = SiteLevelPrivacy(
    epsilon=7.981,
    delta=0.02,
    planned_epsilon=7.981,
    noise_multiplier=6.5,
    clip_norm=1.0,
    sites=5,
    rounds=12,
    noise_to_signal=1188.4,
)
PATIENTS = Privacy(
    patients={"jsrt": SPENT, "kermany": SPENT}, accountants={"opacus": "1.6.0", "dp-accounting": "0.6.0"}
)


def _private(details=PATIENTS, *, status="finished", **rounds):
    """The sample run as a private one: no losses, no figures by round; `rounds` are reasons by site, from round 11."""
    results = sample_results(status=status)
    records = []
    for record in results.rounds:
        sites = {name: SiteRound(state="accepted", steps=40, update_norm=1.0) for name in record.sites}
        if record.round > 10:
            sites |= {name: SiteRound(state="refused", reason=reason) for name, reason in rounds.items()}
        records.append(record.model_copy(update={"sites": sites}))
    return results.model_copy(update={"rounds": tuple(records), "privacy_details": details, "pictures": ()})


def _text(page):
    """What a reader sees between the headings Privacy and Results by site."""
    section = page[page.index('id="privacy"') : page.index('id="by-site"')]
    return " ".join(re.sub(r"<[^>]*>", " ", section).split())


def test_a_run_that_is_not_private_has_no_section(tmp_path):
    assert privacy_section(sample_results()) is None
    assert 'id="privacy"' not in render(sample_results(), tmp_path)


def test_every_site_is_shown_with_its_guarantee_rounded_up(tmp_path):
    section = privacy_section(_private())
    row = section.patients[0]
    assert (row.name, row.epsilon, row.planned, row.delta) == ("jsrt", "2.35", "8.00", "0.0013")
    assert row.accountants == "2.35 \u00b7 2.34"
    text = _text(render(_private(), tmp_path))
    assert "jsrt 2.35 8.00 0.0013 2.35 \u00b7 2.34 1.250 0.5 0.064 400 2 12 encoder, decoder, normalisation" in text
    assert "dp-accounting 0.6.0, opacus 1.6.0" in text


def test_whole_sites_have_a_line_of_their_own(tmp_path):
    page = render(_private(Privacy(sites=SITES)), tmp_path)
    assert "every training site 7.99 7.99 0.02 6.500 1 5 12 1188" in _text(page)
    assert "not against this server" in _text(page)
    assert "sees every site's update in the clear" in _text(page).replace("&#39;", "'")


def test_while_the_run_goes_on_what_was_spent_is_a_dash(tmp_path):
    running = Privacy(patients={"jsrt": SPENT.model_copy(update={"epsilon": None, "prv": None, "pld": None})})
    assert "jsrt \u2013 8.00 0.0013 \u2013 " in _text(render(_private(running, status="running"), tmp_path))


def test_refusals_are_told_by_site_and_reason_with_their_rounds(tmp_path):
    results = _private(jsrt="dp_budget_run", cohen="dp_required")
    found = {(each.site, each.reason): (each.state, each.rounds) for each in refusals(results)}
    assert found == {
        ("jsrt", "dp_budget_run"): ("refused", "11\u201312"),
        ("cohen", "dp_required"): ("refused", "11\u201312"),
    }
    text = _text(render(results, tmp_path)).replace("&#39;", "'")
    assert "jsrt 11\u201312 refused dp_budget_run the hospital's budget for a run does not allow another round" in text


def test_a_run_that_budgets_ended_says_where_and_is_not_called_stopped_early(tmp_path):
    results = _private(PATIENTS.model_copy(update={"budget_spent": True}), jsrt="dp_budget_run", nih14="internal_error")
    text = _text(render(results, tmp_path))
    assert "ended by itself in round 12 of 12, because privacy budgets were spent at jsrt." in text
    notes = limitations(results)
    assert any(note.startswith("Ended by the sites' privacy budgets in round 12 of 12") for note in notes)
    assert not any("Stopped early" in note for note in notes)


@pytest.mark.parametrize(
    ("details", "leaves"),
    [
        (PATIENTS, "Nothing but noised weights leaves a site"),
        (Privacy(sites=SITES), "only the noised average is published"),
    ],
)
def test_the_page_says_why_there_are_no_curves(tmp_path, details, leaves):
    page = render(_private(details), tmp_path)
    assert leaves in page
    assert "Validation figures of a round are those" not in page
    assert ">Losses</h3>" not in page


@pytest.mark.browser
def test_a_browser_shows_a_private_page_without_a_complaint(tmp_path):
    details = PATIENTS.model_copy(update={"sites": SITES, "budget_spent": True})
    script = """<script>
      document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
      document.body.dataset.empty = [...document.querySelectorAll("figure")].some(f => !f.querySelector("svg, img"));
    </script></body>"""
    page = render(_private(details, jsrt="dp_budget_run"), tmp_path).replace("</body>", script)
    (tmp_path / "page.html").write_text(page)
    dom, console = load_in_browser(tmp_path / "page.html", tmp_path / "profile")
    assert console == []
    assert ">Privacy</h2>" in dom
    assert 'data-wide="false"' in dom
    assert 'data-empty="false"' in dom
