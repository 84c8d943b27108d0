import re
import time
from html.parser import HTMLParser

import pytest
from sample_results import ROUNDS, SITES, draw_pictures, sample_results

from server.report import render, write_report
from server.report_tables import duration, key_figures, ranges, site_block, site_order, taught_table
from tests.browser import load_in_browser

VOID = {"meta", "img", "br", "line", "circle", "rect", "path"}


class _Tags(HTMLParser):
    """Collects unbalanced tags, external addresses and the text of headings."""

    def __init__(self, page):
        super().__init__()
        self.open, self.problems, self.addresses = [], [], []
        self.feed(page)
        self.problems += self.open

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in {"src", "href", "srcset", "data", "action"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.problems.append(tag)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    draw_pictures(sample_results(), folder)
    return folder


def _row(block, kind):
    return next(row for row in block.rows if row.kind == kind)


@pytest.mark.parametrize(("status", "rounds"), [("finished", ROUNDS), ("stopped", 5), ("running", 1), ("running", 0)])
def test_the_page_is_well_formed_at_every_stage_of_a_run(run_folder, status, rounds):
    assert _Tags(render(sample_results(status=status, rounds=rounds), run_folder)).problems == []


def test_the_page_is_one_file_that_names_nothing_outside_itself(run_folder):
    page = render(sample_results(), run_folder)
    addresses = _Tags(page).addresses
    assert len(addresses) == 4  # the four pictures
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_page_says_how_the_sites_were_averaged(run_folder):
    results = sample_results()
    plain = results.model_copy(update={"config": {**results.config, "weighting": "plain"}})
    assert "averaged by who taught it" in render(results, run_folder)
    assert "one share for the whole model" in render(plain, run_folder)


def test_an_undefined_figure_is_a_dash_and_the_page_says_so(run_folder):
    page = render(sample_results(), run_folder)
    assert 'title="undefined">\u2013<' in page
    assert "undefined: the site has no such labels" in page
    assert not re.search(r"\bnan\b|\bNone\b", page)


def test_phantoms_are_announced_and_real_data_is_not_called_synthetic(run_folder):
    assert "SYNTHETIC PHANTOMS, not patients" in render(sample_results(synthetic=True), run_folder)
    assert "SYNTHETIC" not in render(sample_results(), run_folder)


def test_privacy_status_and_purpose_are_on_the_page(run_folder):
    page = render(sample_results(), run_folder)
    assert "No differential privacy: epsilon = infinity." in page
    assert "Research only." in page


def test_only_a_running_page_reloads_itself(run_folder):
    assert 'http-equiv="refresh"' in render(sample_results(status="running", rounds=2), run_folder)
    assert 'http-equiv="refresh"' not in render(sample_results(), run_folder)


def test_text_from_a_site_cannot_become_markup(run_folder):
    attack = '"><script>alert(1)</script>'
    results = sample_results()
    sites = {attack: results.sites["jsrt"], **results.sites}
    first = results.rounds[0]
    site = first.sites["jsrt"].model_copy(update={"reason": attack})
    rounds = (first.model_copy(update={"sites": {attack: site, **first.sites}}), *results.rounds[1:])
    page = render(results.model_copy(update={"sites": sites, "rounds": rounds, "title": attack}), run_folder)
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in page


def test_a_missing_picture_is_said_to_be_missing(tmp_path):
    assert "pictures/jsrt.png is missing" in render(sample_results(), tmp_path)


def test_rewriting_the_page_after_a_round_takes_less_than_a_second(run_folder):
    results = sample_results()
    longer = results.model_copy(update={"rounds": (*results.rounds, *results.rounds[:3])})
    began = time.perf_counter()
    path = write_report(longer, run_folder)
    assert time.perf_counter() - began < 1.0
    assert path.name == "report.html"


def test_training_sites_come_first_and_held_out_ones_last():
    assert site_order(sample_results()) == ["jsrt", "shenzhen", "cohen", "kermany", "nih14", "montgomery"]


def test_the_model_stands_above_its_baselines_and_the_local_model():
    block = site_block("kermany", sample_results())
    assert [row.kind for row in block.rows] == ["model", "baseline", "local"]
    values = [cell.value for cell in (_row(block, kind).cells[0] for kind in ("model", "baseline", "local"))]
    assert values == [0.921, 0.5, 0.87]


def test_a_model_that_loses_to_always_guessing_is_marked():
    cells = _row(site_block("jsrt", sample_results()), "model").cells
    assert cells[2].worse  # accuracy 0.81 where the majority class scores 1.0
    assert not cells[6].worse  # Dice 0.957 against 0.772


def test_a_smaller_distance_than_the_baselines_is_not_worse():
    hausdorff95 = _row(site_block("jsrt", sample_results()), "model").cells[8]
    assert hausdorff95.value == 4.6
    assert not hausdorff95.worse


def test_before_the_end_a_site_shows_its_latest_validation_and_says_so():
    results = sample_results(status="running", rounds=5)
    assert site_block("jsrt", results).rows[0].label == "validation, round 5"
    assert site_block("cohen", results).rows[0].label == "validation, round 4"  # refused round 5
    assert site_block("montgomery", results).rows[0].label == "not scored yet"


def test_at_the_end_a_site_that_released_no_figures_is_shown_as_such():
    results = sample_results(rounds=5)
    site = results.sites["montgomery"].model_copy(update={"metrics": {}})
    results = results.model_copy(update={"sites": {**results.sites, "montgomery": site}})
    assert site_block("montgomery", results).rows[0].label == "gave no figures"


def test_key_figures_name_the_hospital_that_was_never_seen():
    tile = next(tile for tile in key_figures(sample_results()) if "unseen" in tile.label)
    assert (tile.label, tile.value, tile.context) == ("Dice, montgomery (unseen)", "0.918", "mean mask 0.772")


def test_auroc_is_given_site_by_site_and_never_pooled():
    tile = next(tile for tile in key_figures(sample_results()) if tile.label.startswith("AUROC"))
    assert tile.value == "0.684\u20130.921"
    assert tile.context == "2 of 6 sites have both classes"


def test_a_module_that_nobody_taught_is_named_with_its_rounds():
    kept = {module: rounds for module, _, rounds in taught_table(sample_results(), list(SITES))}
    assert kept == {"encoder": "", "decoder": "", "classifier": "1"}


def test_held_out_sites_have_no_column_in_who_taught_what():
    _, row, _ = taught_table(sample_results(), list(SITES))[0]
    assert [name for name, _ in row] == ["jsrt", "shenzhen", "cohen", "kermany", "nih14"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (12.3, "12 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.9, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_a_length_of_time_reads_as_a_person_says_it(seconds, text):
    assert duration(seconds) == text


def test_runs_of_rounds_are_joined():
    assert ranges([1, 3, 4, 5, 9]) == "1, 3\u20135, 9"


def _in_browser(page, folder):
    """Return the page's DOM after loading, and what the browser wrote to its console."""
    (folder / "page.html").write_text(page)
    return load_in_browser(folder / "page.html", folder / "profile")


@pytest.mark.browser
def test_a_browser_shows_the_page_without_a_complaint_or_a_request(run_folder, tmp_path):
    script = """<script>
      document.querySelectorAll(".sort")[0].click();
      document.querySelector("#curves ~ .legend button").click();
      document.body.dataset.first = document.querySelector(".sites tbody th").firstChild.textContent.trim();
      document.body.dataset.dimmed = document.querySelectorAll("[aria-labelledby=curves] .dim").length > 0;
      document.body.dataset.fetched = performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length;
      document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
      document.body.dataset.drawn = [...document.images].every(i => i.complete && i.naturalWidth > 300);
    </script></body>"""
    page = render(sample_results(), run_folder).replace("</body>", script)
    dom, console = _in_browser(page, tmp_path)
    assert console == []
    for heading in (
        "Results by site",
        "Curves",
        "Predictions on sample images",
        "Who taught what",
        "Sites, round by round",
        "Where the time went",
        "Configuration and software",
    ):
        assert f">{heading}</h2>" in dom
    assert dom.count("<table") == 10
    assert 'data-first="kermany"' in dom  # sorted by AUROC, best first
    assert 'data-dimmed="true"' in dom
    assert 'data-fetched="0"' in dom
    assert 'data-wide="false"' in dom
    assert 'data-drawn="true"' in dom


@pytest.mark.browser
def test_the_pages_own_policy_stops_anything_from_outside(run_folder, tmp_path):
    page = render(sample_results(), run_folder)
    _, console = _in_browser(page.replace("</main>", '<img src="https://example.invalid/x.png"></main>'), tmp_path)
    assert any("Content Security Policy" in line for line in console)
