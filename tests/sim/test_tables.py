from datetime import UTC, datetime

from rich.console import Console

from server.results import ConventionResult, Results, SiteCounts, SiteResult
from sim.tables import markdown, results_table, rows

FIGURES = {"accuracy": 0.8, "majority_accuracy": 0.6, "dice": 0.9, "mean_mask_dice": 0.7, "masked_images": 12.0}


def _site(role="train", **fields):
    return SiteResult(role=role, counts=SiteCounts(images=20, patients=15), metrics=FIGURES, **fields)


def _results(title="A run", **fields):
    return Results(
        job_id="job-1",
        title=title,
        status="finished",
        synthetic=fields.pop("synthetic", False),
        privacy="none",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        rounds_planned=1,
        config={},
        software={},
        **fields,
    )


def _printed(results):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(results_table(results))
    return captured.get()


def test_every_site_stands_above_its_trivial_answers():
    header, model, baseline = rows(_results(sites={"jsrt": _site(mask_conventions=("behind_heart",))}))
    assert header == ["site", "role", "masks drawn", "test images", "row", "Acc", "bAcc", "AUROC", "Dice", "HD95 px"]
    assert model == ["jsrt", "train", "behind_heart", "12", "model", "0.800", "-", "-", "0.900", "-"]
    assert baseline == ["", "", "", "", "majority / mean mask", "0.600", "-", "-", "0.700", "-"]


def test_the_local_model_stands_between_where_there_is_one():
    table = rows(_results(sites={"jsrt": _site(local_only={"dice": 0.5, "auroc": None})}))
    assert [line[4] for line in table[1:]] == ["model", "local only", "majority / mean mask"]
    assert table[2][7:9] == ["-", "0.500"]


def test_held_out_sites_come_last():
    table = rows(_results(sites={"a": _site("held-out"), "b": _site(), "c": _site()}))
    assert [line[0] for line in table[1:] if line[0]] == ["b", "c", "a"]


def test_dice_is_shown_by_convention_with_whether_it_was_learned():
    conventions = {
        "expert": ConventionResult(metrics=FIGURES, sites=("jsrt",), learned=False),
        "behind_heart": ConventionResult(metrics=FIGURES, sites=("jsrt",), learned=True),
    }
    table = rows(_results(conventions=conventions))
    assert [line[:3] for line in table[1:] if line[0]] == [
        ["all", "learned", "behind_heart"],
        ["all", "not learned", "expert"],
    ]


def test_markdown_has_one_line_a_row_and_as_many_columns_in_each():
    results = _results(sites={"jsrt": _site()})
    lines = markdown(results).splitlines()
    assert len(lines) == len(rows(results)) + 1
    assert lines[1] == "|" + " --- |" * len(rows(results)[0])
    assert len({line.count("|") for line in lines}) == 1


def test_phantoms_are_called_synthetic_above_the_table():
    assert "SYNTHETIC" in _printed(_results(synthetic=True))
    assert "SYNTHETIC" not in _printed(_results())


def test_brackets_in_a_title_are_text_and_no_markup():
    assert "[/x] [bold] trial" in _printed(_results(title="[/x] [bold] trial", sites={"jsrt": _site()}))
