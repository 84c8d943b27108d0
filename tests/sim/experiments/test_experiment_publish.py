"""Tables into README and docs: made of the summaries alone, the rest of the documents as it was."""

import re
from pathlib import Path
from typing import get_args

import pytest
from sample_summary import federated_summary, paper_summary, row, summary

from multimix.errors import InputError
from sim.experiments.archive import FOLDER
from sim.experiments.publish import DOCUMENTS, TABLES, filled_in, published_summaries
from sim.experiments.publish import publish as publish_with
from sim.experiments.record import RECORD, SCORES
from sim.experiments.suites import ExperimentName

ROOT = Path(__file__).parents[3]
README, DOCS = DOCUMENTS
TAKEN = {"sites": 10, "round_s": 4.0, "sites_s": 3.5, "peak_mib": 800.0}
SUMMARIES = {
    "paper": paper_summary(),
    "ablation": paper_summary(("1000-50",)).model_copy(update={"experiment": "ablation"}),
    "federated": federated_summary(),
    "scale": summary("scale", [row("in-process", "10-sites", {}, scaling=TAKEN)], differences=[]),
}
PAPER = SUMMARIES["paper"]


def publish(made, root):
    """Publish a summary with cases that hold something."""
    cases = root.parent / f"{root.name}-cases"
    for name in made.case_names:
        (cases / name).mkdir(parents=True, exist_ok=True)
        for file in (RECORD, SCORES):
            (cases / name / file).write_text(f"{file} of {name}")
    publish_with(made, cases, root)


def block(name, table, old="old\n"):
    return f"<!-- experiment {name} {table} -->\n{old}<!-- end -->"


def between(text, name, table):
    """What stands in the block of a table."""
    return re.search(f"<!-- experiment {name} {table} -->\n(.*?)<!-- end -->", text, re.DOTALL)[1]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / README).write_text(f"# A\n{block('paper', 'short')}\nB\n{block('federated', 'sites')}\nC")
    (tmp_path / DOCS).write_text(f"D{block('paper', 'origin', '')} {block('paper', 'in-mask')}E\n")
    return tmp_path


def texts_in(root):
    return {path: (root / path).read_text() for path in DOCUMENTS}


def test_a_published_summary_can_be_read_again(root):
    for made in SUMMARIES.values():
        publish(made, root)
    assert published_summaries(root) == SUMMARIES
    assert {path.name for path in (root / FOLDER).glob("*.*")} == {f"{name}.json" for name in SUMMARIES}


def test_the_cases_behind_the_figures_are_published_with_them(root):
    for made in SUMMARIES.values():
        publish(made, root)
    expected = {f"{name}.zip" for made in SUMMARIES.values() for name in made.case_names}
    assert {path.name for path in (root / FOLDER / "cases").iterdir()} == expected


def test_cases_that_no_published_figure_is_made_of_are_removed(root):
    publish(PAPER, root)
    publish(SUMMARIES["federated"], root)
    fewer = paper_summary(("100-10",))
    publish(fewer, root)
    expected = {f"{name}.zip" for made in (fewer, SUMMARIES["federated"]) for name in made.case_names}
    assert {path.name for path in (root / FOLDER / "cases").iterdir()} == expected


def test_a_published_summary_can_be_read_by_all(root):
    publish(PAPER, root)
    assert {path.stat().st_mode & 0o777 for path in (root / FOLDER / "paper.json", root / README)} == {0o644}


def test_the_tables_of_the_summary_are_made_and_nothing_else_is_touched(root):
    before = texts_in(root)
    publish(PAPER, root)
    after = texts_in(root)
    for path, tables in ((README, ["short"]), (DOCS, ["origin", "in-mask"])):
        for table in tables:
            assert between(after[path], "paper", table) == TABLES[table](PAPER) + "\n"
            old = block("paper", table, between(before[path], "paper", table))
            assert before[path].count(old) == 1
            before[path] = before[path].replace(old, block("paper", table, between(after[path], "paper", table)))
    assert after == before


def test_publishing_again_changes_nothing(root):
    publish(PAPER, root)
    first = texts_in(root), (root / FOLDER / "paper.json").read_bytes()
    publish(PAPER, root)
    assert (texts_in(root), (root / FOLDER / "paper.json").read_bytes()) == first


def test_what_was_published_makes_the_same_tables_from_its_file(root):
    for made in SUMMARIES.values():
        publish(made, root)
    for text in texts_in(root).values():
        assert filled_in(text, published_summaries(root)) == text


def test_a_newer_summary_replaces_the_tables_of_the_older(root):
    publish(PAPER, root)
    publish(paper_summary(("100-10",)), root)
    text = (root / README).read_text()
    assert "| 100-10 |" in text
    assert "| 1000-50 |" not in text


def test_a_cell_is_text_whatever_stands_in_it():
    odd = summary("paper", [], scale=r"\1 \g<0> |", missing=[], code=[r"\n"])
    assert r"--scale \1 \g<0> |`" in filled_in(block("paper", "origin"), {"paper": odd})


@pytest.mark.parametrize(
    ("name", "table", "titles"),
    [
        (
            "paper",
            "short",
            "chex Acc | bAcc | AUROC | jsrt Dice | montgomery Dice | shenzhen Dice | nih14 Acc | AUROC |",
        ),
        ("paper", "in-class", "chex Acc | F1-N | F1-P | bAcc | AUROC |"),
        ("paper", "in-mask", "jsrt Dice | HD | HD95 | SSIM |"),
        ("paper", "cross-class", "nih14 Acc | F1-N | F1-P | bAcc | AUROC |"),
        ("paper", "cross-mask", "montgomery Dice | HD | HD95 | SSIM | shenzhen Dice |"),
        (
            "paper",
            "health",
            "chex224 spread | chex224 ECE | nih14 spread | nih14 ECE | pseudo-labels accepted | training s |",
        ),
        ("paper", "differences", "difference (95 % interval) | p | p, Holm |"),
        ("federated", "sites", "kermany AUROC | nih14 AUROC | jsrt Dice |"),
        ("federated", "convergence", "before the last round | rounds to 95 % | MiB sent until then |"),
        ("scale", "scaling", "of the round, server s | peak MiB |"),
    ],
)
def test_a_block_has_the_table_that_it_names(name, table, titles):
    made = between(filled_in(block(name, table), SUMMARIES), name, table)
    assert f"| {titles}" in made.splitlines()[0]


def test_a_table_of_an_experiment_that_is_not_published_stays_as_it_is():
    text = block("paper", "short", "| by | hand |\n")
    assert filled_in(text, {"federated": SUMMARIES["federated"]}) == text


@pytest.mark.parametrize("missing", DOCUMENTS, ids=str)
def test_outside_a_checkout_nothing_is_written(root, missing):
    (root / missing).unlink()
    before = {path: path.read_text() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=re.escape(str(root))) as caught:
        publish(PAPER, root)
    assert caught.value.reason == "not_a_checkout"
    assert {path: path.read_text() for path in root.rglob("*") if path.is_file()} == before


def test_a_checkout_without_summaries_has_none(tmp_path):
    assert published_summaries(tmp_path) == {}


def documents():
    return {str(path): (ROOT / path).read_text() for path in DOCUMENTS}


def markers():
    found = [
        (name, table)
        for text in documents().values()
        for name, table in re.findall(r"<!-- experiment (\S+) (\S+) -->\n", text)
    ]
    assert found
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_no_table_of_this_checkout_was_written_by_hand(path):
    text = documents()[str(path)]
    assert filled_in(text, published_summaries(ROOT)) == text


def test_every_summary_of_this_checkout_is_of_the_experiment_it_is_named_after():
    for name, made in published_summaries(ROOT).items():
        assert made.experiment == name
        assert name in get_args(ExperimentName)


def test_every_block_of_this_checkout_names_a_table_and_an_experiment():
    for name, table in markers():
        assert name in get_args(ExperimentName)
        assert table in TABLES


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_every_block_of_this_checkout_ends_before_the_next_begins(path):
    text = documents()[str(path)]
    assert len(re.findall("experiment [a-z]+ [a-z-]+ -->", text)) == text.count("<!-- end")
    kinds = re.findall(r"^<!-- (experiment|end)(?: [a-z]+ [a-z-]+)? -->$", text, re.MULTILINE)
    assert kinds == ["experiment", "end"] * (len(kinds) // 2)
    assert len(kinds) == text.count("<!-- e") == text.count("<!--")


def test_no_table_stands_twice_in_a_document_of_this_checkout():
    for text in documents().values():
        found = re.findall(r"<!-- experiment (\S+) (\S+) -->", text)
        assert len(set(found)) == len(found)


def test_every_table_of_this_checkout_can_be_made_of_its_experiment():
    for name, table in markers():
        made = TABLES[table](SUMMARIES[name])
        assert made.count("\n") >= 2 or table in {"origin", "differences"}
        assert not re.search(r"\bnan\b|\bNone\b", made)


def test_every_table_of_this_checkout_can_be_made_before_a_case_is_finished():
    for name, table in markers():
        assert TABLES[table](summary(name, [], differences=[], missing=["all"], software={}))


def test_the_documents_of_this_checkout_can_be_published_into(tmp_path):
    for path, text in documents().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    for made in SUMMARIES.values():
        publish(made, tmp_path)
    for path, text in documents().items():
        blank = re.compile(r"(<!-- experiment .*?-->\n).*?(<!-- end -->)", re.DOTALL)
        assert blank.sub(r"\1\2", (tmp_path / path).read_text()) == blank.sub(r"\1\2", text)
