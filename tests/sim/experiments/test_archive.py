"""Cases in the repository: the same bytes again, taken over only where they fit, and what was published is made of them."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from experiment_fakes import answers_of_every_case

from multimix.errors import InputError
from sim.experiments.archive import archive_cases, archive_path, prune, read_archive, take_over
from sim.experiments.case import EnsembleCase, case_name, needs
from sim.experiments.publish import published_summaries
from sim.experiments.record import RECORD, SCORES, CaseRecord, read_record, write_record
from sim.experiments.scores import ScoreFile
from sim.experiments.suites import cases
from sim.experiments.summary import summarise
from sim.experiments.work import Place

ROOT = Path(__file__).parents[3]
FEDERATED = cases("federated", "smoke")
ENSEMBLE = next(case for case in FEDERATED if isinstance(case, EnsembleCase))


@pytest.fixture
def place(data, cache, tmp_path):
    return Place(data=data, out=tmp_path / "out", cache=cache)


@pytest.fixture
def root(place, tmp_path):
    """A checkout that keeps every case of the federated experiment."""
    elsewhere, fingerprint = tmp_path / "elsewhere", place.fingerprint(FEDERATED[0])
    answers_of_every_case(elsewhere, FEDERATED, fingerprint)
    root = tmp_path / "checkout"
    archive_cases({case_name(case): elsewhere / case_name(case) for case in FEDERATED}, root)
    return root


def names(chosen):
    return {case_name(case) for case in chosen}


def test_every_case_is_taken_over_where_none_is_finished(root, place):
    assert set(take_over(FEDERATED, place, root)) == names(FEDERATED)
    for case in FEDERATED:
        assert place.finished(case).case == case
        assert set(ScoreFile.load(place.folder(case) / SCORES).scores) == {"chex224/test"}


def test_what_is_finished_here_stays(root, place):
    answers_of_every_case(place.out, FEDERATED[:2], place.fingerprint(FEDERATED[0]))
    before = {path: path.stat().st_mtime_ns for path in place.out.glob("*/*")}
    assert set(take_over(FEDERATED, place, root)) == names(FEDERATED[2:])
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


def test_taking_over_twice_takes_nothing_the_second_time(root, place):
    take_over(FEDERATED, place, root)
    assert take_over(FEDERATED, place, root) == ()


def test_what_was_begun_of_a_case_goes(root, place):
    old = place.folder(FEDERATED[0]) / "run" / "model.safetensors"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of another configuration")
    take_over(FEDERATED, place, root)
    assert not old.exists()


def test_a_case_of_other_data_is_not_taken_over(root, place):
    case = FEDERATED[0]
    folder = root / "again"
    shutil.unpack_archive(archive_path(root, case_name(case)), folder)
    write_record(folder, read_record(folder).model_copy(update={"data_sha256": "other"}))
    archive_cases({case_name(case): folder}, root)
    assert case_name(case) not in take_over(FEDERATED, place, root)
    assert place.finished(case) is None


def test_a_case_of_another_configuration_is_not_taken_over(root, place):
    case = FEDERATED[0].model_copy(update={"row": "mean-mask"})
    assert case_name(case) in names(FEDERATED)
    other = FEDERATED[0]
    shutil.copy(archive_path(root, case_name(other)), archive_path(root, case_name(case)))
    assert take_over([case], place, root) == ()


def test_a_model_that_another_case_still_needs_is_trained(root, place):
    archive_path(root, case_name(ENSEMBLE)).unlink()
    taken = set(take_over(FEDERATED, place, root))
    others = [case for case in FEDERATED if isinstance(case, EnsembleCase) and case != ENSEMBLE]
    assert taken == names(FEDERATED) - {case_name(ENSEMBLE)} - set(needs(ENSEMBLE))
    assert names(others) <= taken


@pytest.mark.parametrize("damage", [b"", b"PK", b"nothing"])
def test_a_damaged_case_is_refused(root, place, damage):
    archive_path(root, case_name(FEDERATED[0])).write_bytes(damage)
    with pytest.raises(InputError) as caught:
        take_over(FEDERATED, place, root)
    assert caught.value.reason == "archive_unreadable"
    assert not place.out.exists()


def test_a_case_without_its_record_is_refused(root, place):
    path = archive_path(root, case_name(FEDERATED[0]))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(SCORES, b"")
    with pytest.raises(InputError, match=path.name):
        take_over(FEDERATED, place, root)


def test_other_files_of_an_archive_are_not_unpacked(root, place):
    with zipfile.ZipFile(archive_path(root, case_name(FEDERATED[0])), "a") as packed:
        packed.writestr("../../outside", b"")
    take_over(FEDERATED, place, root)
    assert {path.name for path in place.folder(FEDERATED[0]).iterdir()} == {RECORD, SCORES}


def test_a_checkout_that_keeps_nothing_gives_nothing(place, tmp_path):
    assert take_over(FEDERATED, place, tmp_path / "empty") == ()


def test_the_same_case_makes_the_same_bytes_and_is_not_written_again(root, place):
    take_over(FEDERATED, place, root)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in archive_path(root, "*").parent.iterdir()}
    archive_cases({case_name(case): place.folder(case) for case in FEDERATED}, root)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before


def test_pruning_leaves_the_named_ones(root):
    kept = case_name(FEDERATED[0])
    prune([kept], root)
    assert [path.stem for path in archive_path(root, "*").parent.iterdir()] == [kept]


WITHOUT_CASES = {"paper"}  # published before cases were kept
PUBLISHED = {name: made for name, made in published_summaries(ROOT).items() if name not in WITHOUT_CASES}


def published_cases():
    return sorted(archive_path(ROOT, "*").parent.glob("*.zip"))


def test_every_published_figure_of_this_checkout_has_its_case():
    expected = {name for made in PUBLISHED.values() for name in made.case_names}
    assert {path.stem for path in published_cases()} == expected


@pytest.mark.parametrize("path", published_cases(), ids=lambda path: path.stem)
def test_a_published_case_names_no_path_and_keeps_its_promises(path):
    files = read_archive(path)
    record = CaseRecord.model_validate_json(files[RECORD])
    assert case_name(record.case) == path.stem
    assert not [text for text in strings(json.loads(files[RECORD])) if text.startswith("/")]


def strings(document):
    if isinstance(document, dict | list):
        for each in document.values() if isinstance(document, dict) else document:
            yield from strings(each)
    elif isinstance(document, str):
        yield document


@pytest.mark.parametrize("made", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_published_figures_of_this_checkout_are_those_of_its_cases(made, tmp_path):
    records = {}
    for name in made.case_names:
        files = read_archive(archive_path(ROOT, name))
        (tmp_path / name).mkdir()
        (tmp_path / name / SCORES).write_bytes(files[SCORES])
        records[name] = CaseRecord.model_validate_json(files[RECORD])
    again = summarise(
        made.experiment, made.scale, records, lambda name: tmp_path / name, contrasts=(), missing=(), replicates=10
    )
    assert without_intervals(again.rows) == without_intervals(made.rows)
    assert (again.code, again.data_sha256, again.compute_s) == (made.code, made.data_sha256, made.compute_s)


def without_intervals(rows):
    """What of rows does not depend on how often patients were drawn."""
    return {
        (each.row, each.group): (
            each.seeds,
            each.parameters,
            {name: {metric: found.value for metric, found in of.items()} for name, of in each.figures.items()},
        )
        for each in rows
    }
