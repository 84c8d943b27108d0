"""The console: a reason and words of ours for every error, and never another's text."""

import pytest
import typer

from client.console import EXIT_INPUT, EXIT_INTERNAL, EXIT_INTERRUPTED, counting, discreet, figures, table
from multimix.data.manifest import cell_error
from multimix.errors import InputError, ManifestError, Refused, SiteError, StoreError

SECRET_WORD = "MUELLER^ANNA /data/1931-05-07.dcm"


@pytest.fixture
def printed(capfd):
    def both():
        captured = capfd.readouterr()
        return captured.out + captured.err

    return both


def exit_code(error):
    with pytest.raises(typer.Exit) as ended, discreet():
        raise error
    assert ended.value.__cause__ is None
    assert ended.value.__suppress_context__
    return ended.value.exit_code


def cell(tmp_path):
    return cell_error(
        "label_unknown", where=tmp_path, row=7, column="label", value=SECRET_WORD, problem="-", remedy=SECRET_WORD
    )


OURS = {
    "manifest_empty": ManifestError("manifest_empty", SECRET_WORD),
    "disk_full": StoreError("disk_full", SECRET_WORD),
    "key_unknown": InputError("key_unknown", SECRET_WORD),
    "cohort_too_small": Refused("cohort_too_small", SECRET_WORD),
}


@pytest.mark.parametrize("reason", OURS)
def test_an_error_whose_message_may_name_files_gives_its_reason_alone(printed, reason):
    assert exit_code(OURS[reason]) == EXIT_INPUT
    said = printed()
    assert f"({reason})" in said
    assert SECRET_WORD not in said


def test_a_mistake_in_a_manifest_is_told_by_row_and_column(printed, tmp_path):
    assert exit_code(cell(tmp_path)) == EXIT_INPUT
    said = printed()
    assert "row 7, column label" in said
    assert "MUELLER" not in said
    assert str(tmp_path) not in said


def test_an_error_of_the_site_speaks_for_itself_with_brackets_as_they_are(printed):
    assert exit_code(SiteError("pacs_not_set", "site.toml has no [pacs] section. Fill one in.")) == EXIT_INPUT
    assert "no [pacs] section" in printed()


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError, UnicodeError])
def test_an_error_that_nobody_foresaw_is_told_by_its_kind_and_place(printed, kind):
    assert exit_code(kind(SECRET_WORD)) == EXIT_INTERNAL
    said = printed()
    assert kind.__name__ in said
    assert "MUELLER" not in said
    assert "Traceback" not in said


def test_the_place_is_a_line_of_ours(printed):
    with pytest.raises(typer.Exit), discreet():
        table("t", ["one", "two"], [["a cell too few"]])
    assert "IndexError at console.py:" in printed()


def test_an_interruption_has_the_exit_code_of_its_signal(printed):
    assert exit_code(KeyboardInterrupt()) == EXIT_INTERRUPTED == 128 + 2
    assert "interrupted" in printed()


@pytest.mark.parametrize("ending", [typer.Exit(3), typer.Abort()])
def test_an_ending_that_was_meant_passes(ending):
    with pytest.raises(type(ending)) as ended, discreet():
        raise ending
    assert ended.value is ending


def test_a_cell_is_text_and_not_markup(printed):
    table("t", ["meaning"], [["pip install 'multimix[gdcm]'"]])
    assert "multimix[gdcm]" in printed()


def test_figures_go_to_standard_output_and_progress_does_not(capfd):
    figures({"images": 3, "patients": 2})
    with counting("work") as progress:
        progress(1, SECRET_WORD)
    captured = capfd.readouterr()
    assert [line.split() for line in captured.out.splitlines()] == [["images", "3"], ["patients", "2"]]
    assert captured.err.strip() == ""
