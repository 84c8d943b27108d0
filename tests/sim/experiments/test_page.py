"""The page of an experiment: one well-formed file that says what is missing and fetches nothing."""

import html
import re
from html.parser import HTMLParser

import pytest
from sample_summary import difference, estimate, federated_summary, paper_summary, row, summary

from sim.experiments.page import duration, render, write_page
from sim.experiments.page_tables import difference_table, grid_tables, heat_map, scaling_table
from sim.experiments.strips import Strip
from tests.browser import load_in_browser

VOID = {"meta", "img", "br"}
STRIP = Strip(b"\x89PNG", "modern 100-10 on jsrt/test: best of 123 by Dice; Dice 0.979, label normal")


class _Page(HTMLParser):
    """Collects unbalanced tags, addresses and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.problems, self.addresses, self.text = [], [], [], []
        self.feed(page)
        self.problems += self.open

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in {"src", "href", "srcset", "data", "action"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.problems.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def said(page):
    return re.sub(r"\s+", " ", " ".join(_Page(page).text))


@pytest.mark.parametrize(
    "made",
    [paper_summary(), federated_summary(), summary("paper", []), summary("federated", []), summary("ablation", [])],
    ids=["paper", "federated", "no case", "no hospital", "no ablation"],
)
def test_the_page_is_well_formed_whatever_is_finished(made):
    page = render(made, [STRIP])
    assert _Page(page).problems == []
    assert not re.search(r"\bnan\b|\bNone\b", page)


def test_the_page_is_one_file_that_names_nothing_outside_itself_and_runs_nothing():
    page = render(paper_summary(), [STRIP])
    assert _Page(page).addresses == ["data:image/png;base64,iVBORw=="]
    assert not re.search(r"url\(|@import|https?://|<script", page)


def test_what_is_missing_stands_before_every_figure():
    page = render(paper_summary(missing=("modern_100-10_s2",), cases=3))
    assert "Not finished: 1 of 4 cases are missing." in said(page)
    assert page.index("modern_100-10_s2") < page.index("<main>")
    assert "Not finished" not in render(paper_summary(missing=()))


def test_of_many_missing_cases_the_number_is_open_and_the_list_folded():
    assert "<details open>" in render(paper_summary(missing=["a"] * 24))
    assert "<details>" in render(paper_summary(missing=["a"] * 25))


def test_the_page_says_what_its_figures_come_from():
    text = said(render(paper_summary()))
    for part in (
        "Research only.",
        "images of 96 x 96, width 16, 600 steps of 2 images a group",
        "0.1.0+411b2921e4400f13",
        "sha256 d0d480153095231c",
        "torch 2.13.0+cpu",
        "2.6 h",  # 9300 s
    ):
        assert part in text
    assert "10 rounds of 30 steps" in said(render(federated_summary()))


def test_cases_of_several_versions_are_announced():
    assert "The cases are of 2 versions of the code: a, b" in said(render(paper_summary(code=("a", "b"))))


def test_no_text_can_become_markup():
    attack = '"><script>alert(1)</script>'
    rows = [row(attack, "100-10", {"jsrt/test": {"dice": estimate(0.9)}})]
    private = row("epsilon-8", "without-montgomery", {}, epsilon_spent={attack: 8.0})
    for experiment, each in (("paper", rows), ("federated", [*rows, private])):
        made = summary(experiment, each, missing=[attack], code=[attack], software={attack: attack}, scale=attack)
        page = render(made, [Strip(b"", attack)])
        assert "<script" not in page
        assert _Page(page).problems == []


def test_a_table_has_the_figure_its_interval_and_what_was_published():
    (table,) = [each for each in grid_tables(paper_summary(("100-10",))) if each.heading.startswith("In-domain, mask")]
    assert table.titles == ("seeds", "jsrt Dice", "HD", "HD95", "SSIM")
    lines = {line.names[0]: line for line in table.lines}
    assert [(c.text, c.below) for c in lines["modern"].cells[:2]] == [("3", ""), ("0.912", "0.892 to 0.932")]
    published = table.lines[[line.names[0] for line in table.lines].index("paper") + 1]
    assert [cell.text for cell in published.cells] == ["", "0.954", "0.695", "\u2013", "0.938"]
    assert published.kind == "published"


def test_a_row_of_one_task_stands_in_every_cell_of_its_budget():
    tables = grid_tables(paper_summary(("100-10", "1000-10")))
    (masks,) = [table for table in tables if table.heading.startswith("In-domain, mask")]
    assert [line.names[0] for line in masks.lines].count("u-net") == 2


def test_comparisons_that_hold_after_correction_are_marked():
    made = paper_summary(differences=[difference("a", "b", -0.1, 0.001), difference("a", "c", 0.0, 0.04)])
    first, second = difference_table(made).lines
    assert (first.kind, second.kind) == ("holds", "")  # Holm: 0.002 and 0.08
    assert [cell.text for cell in first.cells] == ["−0.100", "−0.130 to −0.070", "3", "0.001", "0.002"]  # noqa: RUF001


def test_the_heat_map_is_by_column_and_what_is_not_scored_is_no_number():
    figures = [{"a/test": {"dice": estimate(value)}} for value in (0.2, 0.6, 1.0)]
    rows = [row(f"r{i}", "g", each) for i, each in enumerate(figures)]
    rows.append(row("other", "h", {"b/all": {"auroc": estimate(0.7), "dice": {"value": None}}}))
    table = heat_map(summary("federated", rows))
    assert table.titles == ("a test Dice", "b all AUROC")
    lines = [line for line in table.lines if line.cells]
    assert [line.cells[0].share for line in lines] == pytest.approx([0.0, 0.5, 1.0, None])
    assert [cell.text for cell in lines[3].cells] == ["", "0.700"]
    assert render(summary("federated", rows)).count('class="unscored"') == 4


def test_small_differences_within_a_column_are_no_contrast():
    rows = [row(f"r{i}", "g", {"a/test": {"dice": estimate(0.9 + 0.01 * i)}}) for i in range(2)]
    shares = [line.cells[0].share for line in heat_map(summary("federated", rows)).lines if line.cells]
    assert shares == pytest.approx([0.0, 0.2])  # 0.01 of at least 0.05


def test_the_file_is_readable_by_its_owner_alone(tmp_path):
    path = write_page(paper_summary(), tmp_path, [STRIP])
    assert path == tmp_path / "report.html"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("seconds", "text"), [(119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h")])
def test_a_time_has_one_unit(seconds, text):
    assert duration(seconds) == text


def test_rounds_of_many_sites_have_a_table_and_no_cells():
    taken = {"sites": 1000, "round_s": 40.0, "sites_s": 38.5, "peak_mib": 1234.4}
    made = summary("scale", [row("in-process", "1000-sites", {}, scaling=taken)], differences=[])
    assert [cell.text for cell in scaling_table(made).lines[0].cells] == [
        "1,000",
        "412,000",
        "40.0",
        "40",  # 40 s of 1000 sites
        "1.50",
        "1,234",
    ]
    assert "1,234" in said(render(made))


def test_a_figure_without_an_interval_stands_alone():
    made = summary("paper", [row("modern", "100-10", {"jsrt/test": {"dice": {"value": 0.9}}})])
    assert grid_tables(made)[0].lines[1].cells[1].below == ""
    assert "modern in 100-10: 0.900." in render(made)


@pytest.mark.browser
@pytest.mark.parametrize("made", [paper_summary, federated_summary])
def test_a_narrow_page_does_not_scroll_sideways_and_a_browser_has_no_complaint(made, tmp_path):
    page = html.escape(render(made()))
    script = (
        "const e = this.contentDocument.documentElement; document.body.dataset.wide = e.scrollWidth > e.clientWidth"
    )
    frame = f'<body><iframe style="width: 390px" srcdoc="{page}" onload="{script}"></iframe></body>'
    (tmp_path / "frame.html").write_text(frame)
    dom, console = load_in_browser(tmp_path / "frame.html", tmp_path / "profile")
    assert console == []
    assert 'data-wide="false"' in dom
