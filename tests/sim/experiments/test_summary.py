"""From finished cases to figures, comparisons and tables; all scores are written by hand."""

import numpy as np
import pytest
from experiment_fakes import keep_scores, record_of, scores_of

from sim.experiments.case import case_name
from sim.experiments.inference import Estimate, holm
from sim.experiments.inference import p_in_words as in_words
from sim.experiments.owners import LABELLED
from sim.experiments.published import beside, published
from sim.experiments.suites import cases
from sim.experiments.summary import Contrast, RowFigures, summarise, write_summary
from sim.experiments.tables import (
    IN_CLASS,
    IN_MASK,
    difference_table,
    grid_table,
    health_table,
    site_table,
    write_tables,
)

CPU = {case_name(case): case for case in cases("paper", "cpu")}
FULL = {case_name(case): case for case in cases("paper", "full")}
LABELS = [0, 1] * 10
CHEX = "chex224/test"


def answers(right: int):
    """Twenty answers, of which the first `right` are right."""
    return scores_of(
        [(0.9 if label else 0.1) if i < right else (0.1 if label else 0.9) for i, label in enumerate(LABELS)], LABELS
    )


def masks(dice: float):
    return scores_of(dice=np.linspace(dice - 0.05, dice + 0.05, 12))


@pytest.fixture
def summary_of(tmp_path):
    """Make a summary of finished cases with their scores."""

    def make(finished, *, contrasts=(), missing=(), known=CPU, experiment="paper", **fields):
        for name, scores in finished.items():
            keep_scores(tmp_path, known[name], scores)
        return summarise(
            experiment,
            "cpu",
            {name: record_of(known[name], **fields) for name in finished},
            lambda name: tmp_path / name,
            contrasts=contrasts,
            missing=missing,
            replicates=39,
        )

    return make


def test_the_seeds_of_a_row_are_one_row(summary_of):
    finished = {f"modern_1000-50_s{seed}": {CHEX: answers(right)} for seed, right in ((2, 14), (0, 16), (1, 18))}
    (row,) = summary_of(finished).rows
    assert (row.row, row.group, row.seeds) == ("modern", "1000-50", (0, 1, 2))
    assert row.figures[CHEX]["accuracy"].value == pytest.approx(16 / 20)


def test_cells_of_a_row_are_apart(summary_of):
    finished = {f"modern_{cell}_s0": {CHEX: answers(right)} for cell, right in (("1000-50", 18), ("100-10", 12))}
    found = {row.group: row.figures[CHEX]["accuracy"].value for row in summary_of(finished).rows}
    assert found == {"1000-50": pytest.approx(0.9), "100-10": pytest.approx(0.6)}


def test_a_set_without_masks_has_no_figures_of_masks_and_the_other_way_round(summary_of):
    (row,) = summary_of({"modern_1000-50_s0": {CHEX: answers(20), "jsrt/test": masks(0.9)}}).rows
    assert "dice" not in row.figures[CHEX]
    assert set(row.figures["jsrt/test"]) == {"dice", "jaccard", "hausdorff_px", "hausdorff95_px", "ssim"}


def test_a_summary_says_where_its_figures_come_from(summary_of):
    finished = {f"modern_1000-50_s{seed}": {CHEX: answers(20)} for seed in (0, 1)}
    found = summary_of(finished, train_s=20.0, score_s=2.0, pseudo_label_rate=0.5)
    assert (found.cases, found.code, found.data_sha256, found.devices) == (2, ("code",), ("data",), ("cpu",))
    assert found.compute_s == pytest.approx(44.0)
    assert (found.rows[0].train_s, found.rows[0].pseudo_label_rate) == (20.0, 0.5)


MODERN_AND_OTHERS = {
    "modern_1000-50_s0": {CHEX: answers(20), "jsrt/test": masks(0.9), "jsrt/test@zero": masks(0.4)},
    "modern_1000-50_s1": {CHEX: answers(20), "jsrt/test": masks(0.9), "jsrt/test@zero": masks(0.5)},
    "umtl_1000-50_s0": {CHEX: answers(10)},
    "umtl_1000-50_s1": {CHEX: answers(16)},
    "paper_1000-50_s0": {CHEX: answers(18)},
    "modern_100-10_s0": {CHEX: answers(12)},
}


def test_rows_are_compared_over_the_seeds_that_both_have_in_the_cells_that_both_have(summary_of):
    contrasts = [Contrast("modern", "umtl", ((CHEX, "accuracy"),)), Contrast("modern", "paper", ((CHEX, "accuracy"),))]
    found = summary_of(MODERN_AND_OTHERS, contrasts=contrasts).differences
    assert [(each.second, each.first_group, each.seeds) for each in found] == [
        ("umtl", "1000-50", (0, 1)),
        ("paper", "1000-50", (0,)),
    ]
    assert [each.comparison.difference for each in found] == pytest.approx([1.0 - (0.5 + 0.8) / 2, 0.1])


def test_a_control_is_compared_with_the_row_as_it_was_trained(summary_of):
    contrast = Contrast("modern", "modern", (("jsrt/test", "dice"),), control="@zero")
    (found,) = summary_of(MODERN_AND_OTHERS, contrasts=[contrast]).differences
    assert (found.second, found.set, found.seeds) == ("modern@zero", "jsrt/test", (0, 1))
    assert found.comparison.difference == pytest.approx((0.5 + 0.4) / 2)


def test_rows_of_two_named_cells_are_compared(summary_of):
    contrast = Contrast("modern", "modern", ((CHEX, "accuracy"),), groups=("1000-50", "100-10"))
    (found,) = summary_of(MODERN_AND_OTHERS, contrasts=[contrast]).differences
    assert (found.first_group, found.second_group) == ("1000-50", "100-10")
    assert found.comparison.difference == pytest.approx(1.0 - 0.6)


def test_a_comparison_of_what_is_not_finished_is_left_out(summary_of):
    contrasts = [
        Contrast("modern", "enc", ((CHEX, "accuracy"),)),
        Contrast("modern", "umtl", (("nih14/test", "auroc"),)),
    ]
    assert summary_of(MODERN_AND_OTHERS, contrasts=contrasts).differences == ()


def test_p_values_are_corrected_over_all_comparisons_of_the_file(summary_of):
    contrasts = [Contrast("modern", name, ((CHEX, "accuracy"), (CHEX, "auroc"))) for name in ("umtl", "paper")]
    found = summary_of(MODERN_AND_OTHERS, contrasts=contrasts).differences
    p = [each.comparison.p for each in found]
    assert len(set(p)) > 1
    assert [each.p_holm for each in found] == holm(p)


def test_the_summary_s_file_holds_it(summary_of, tmp_path):
    found = summary_of(MODERN_AND_OTHERS, missing=["enc_1000-0_s0"])
    path = write_summary(found, tmp_path)
    assert type(found).model_validate_json(path.read_bytes()) == found


def test_the_published_row_is_of_the_same_model_in_the_same_cell():
    # Table 2 of Haque et al.: MultiMix with 1000 labels and 50 masks has accuracy 0.825 and Dice 0.970.
    found = beside("paper", "1000-50")
    assert (found.model, found.labels, found.masks) == ("MultiMix", "1000", "50")
    assert (found.in_domain["accuracy"], found.in_domain["dice"]) == (0.825, 0.97)


@pytest.mark.parametrize(
    ("row", "group", "model"), [("u-net", "0-50", "U-Net"), ("enc", "100-0", "Enc"), ("umtls", "Full-Full", "UMTLS")]
)
def test_rows_with_one_task_and_full_cells_have_their_published_row(row, group, model):
    assert (beside(row, group).model, beside(row, group).group) == (model, group)


def test_a_row_or_cell_that_the_paper_does_not_have_stands_alone():
    assert beside("modern-supervised", "1000-50") is None
    assert beside("paper", "8-4") is None


def test_every_cell_of_the_full_grid_was_published():
    assert len({(each.model, each.group) for each in published()}) == len(published())
    for case in FULL.values():
        if case.row in ("u-net", "enc", "enc-ssl", "umtl", "umtls", "paper"):
            assert beside(case.row, case.group) is not None, case_name(case)


def lines_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_a_published_row_stands_below_ours(summary_of):
    found = summary_of({"paper_1000-50_s0": {CHEX: answers(18)}, "modern_1000-50_s0": {CHEX: answers(20)}})
    ours, theirs, modern = lines_of(grid_table(found, IN_CLASS))
    assert ours[:4] == ["paper", "1000-50", "1", "0.900"]
    assert (theirs[0], theirs[3]) == ("*published*", "0.825")
    assert modern[:4] == ["modern", "1000-50", "1", "1.000"]


FOUR_CELLS = {
    f"modern_{cell}_s0": {CHEX: answers(20), "jsrt/test": masks(0.9)} for cell in ("100-10", "100-50", "1000-10")
}


def test_a_row_without_masks_stands_in_all_cells_of_its_number_of_labels(summary_of):
    found = summary_of({**FOUR_CELLS, "enc_100-0_s0": {CHEX: answers(15)}}, known=FULL)
    lines = lines_of(grid_table(found, IN_CLASS))
    assert [line[1] for line in lines if line[0] == "enc"] == ["100-10", "100-50"]


def test_a_row_without_labels_stands_in_all_cells_of_its_number_of_masks(summary_of):
    found = summary_of({**FOUR_CELLS, "u-net_0-10_s0": {"jsrt/test": masks(0.7)}}, known=FULL)
    lines = lines_of(grid_table(found, IN_MASK))
    assert [line[1] for line in lines if line[0] == "u-net"] == ["100-10", "1000-10"]


def test_a_row_has_no_line_in_the_table_of_a_task_that_it_does_not_have(summary_of):
    found = summary_of({**FOUR_CELLS, "enc_100-0_s0": {CHEX: answers(15)}}, known=FULL)
    assert "enc" not in {line[0] for line in lines_of(grid_table(found, IN_MASK))}


def test_every_line_of_a_table_has_as_many_cells(summary_of):
    found = summary_of(MODERN_AND_OTHERS, contrasts=[Contrast("modern", "umtl", ((CHEX, "accuracy"),))])
    for table in (
        grid_table(found, IN_CLASS, intervals=True),
        health_table(found),
        difference_table(found),
        site_table(found),
    ):
        assert len(table.splitlines()) > 2
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_difference_is_printed_with_its_sign_its_interval_and_both_p_values(summary_of):
    contrasts = [Contrast("umtl", "modern", ((CHEX, "accuracy"), (CHEX, "auroc")))]
    found = summary_of(MODERN_AND_OTHERS, contrasts=contrasts)
    (line, _), first = lines_of(difference_table(found)), found.differences[0]
    low, high = first.comparison.low, first.comparison.high
    assert line[:4] == ["umtl - modern", "1000-50", "chex224/test accuracy", "2"]
    assert line[4] == f"-0.350 ({low:+.3f} to {high:+.3f})"
    assert line[5:] == [in_words(first.comparison.p), in_words(first.p_holm)]


def test_a_small_p_is_never_printed_as_zero():
    assert (in_words(0.00005), in_words(0.0005), in_words(0.04)) == ("<0.001", "0.001", "0.040")


def hospitals(group, **figures):
    """A row of a federation: figures by source and split, AUROC for those with labels and Dice for those with masks."""
    made = {}
    for name, value in figures.items():
        source, split = name.split("_")
        metric = "auroc" if source in LABELLED else "dice"
        made[f"{source}/{split}"] = {metric: Estimate(value=value, low=value - 0.1, high=value + 0.1)}
    given = {"parameters": 7, "train_s": 1.0, "pseudo_label_rate": None, "convergence": {}}
    return RowFigures(row="fedavg", group=group, seeds=(0,), figures=made, **given)


TESTED = {"kermany_test": 0.9, "nih14_test": 0.6, "jsrt_test": 0.95, "shenzhen_test": 0.93, "montgomery_test": 0.91}


def test_the_hospitals_table_tells_the_worst_and_the_one_held_out(summary_of):
    row = hospitals("without-montgomery", **TESTED, montgomery_all=0.92)
    found = summary_of({}).model_copy(update={"rows": (row,)})
    (line,) = lines_of(site_table(found))
    assert line[:3] == ["fedavg", "montgomery", "1"]
    assert line[3:8] == ["0.900", "0.600", "0.950", "0.930", "0.910"]
    assert line[8:] == ["0.600", "0.910", "0.920 (0.820 to 1.020)"]


def test_a_row_without_a_figure_has_no_worst_hospital_and_one_of_a_hospital_alone_none_held_out(summary_of):
    row = hospitals("local", **{name: value for name, value in TESTED.items() if name != "nih14_test"})
    (line,) = lines_of(site_table(summary_of({}).model_copy(update={"rows": (row,)})))
    assert line[1] == "-"
    assert line[8:] == ["-", "0.910", "-"]


def test_the_file_of_tables_names_the_cases_that_are_missing(summary_of, tmp_path):
    text = write_tables(summary_of(MODERN_AND_OTHERS, missing=["enc_1000-0_s0", "u-net_0-50_s0"]), tmp_path).read_text()
    assert "Not finished: 2 cases" in text
    assert "enc_1000-0_s0, u-net_0-50_s0" in text


def test_the_file_of_tables_of_a_finished_experiment_says_nothing_of_missing_cases(summary_of, tmp_path):
    assert "Not finished" not in write_tables(summary_of(MODERN_AND_OTHERS), tmp_path).read_text()
