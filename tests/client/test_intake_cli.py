"""The commands as a hospital engineer meets them: figures, exit codes, and no word of a patient."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from intake_sites import SIZE, journal_of, store_of, write_dicom
from typer.main import get_command
from typer.testing import CliRunner

from client import cli
from client.cli import app
from client.settings import open_site

SENTINEL = "SENTINELMARIE"
COMMAND = str(Path(sys.executable).parent / "multimix-site")


def call(site, *words, stdin=None):
    """Run a command in this process; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [*map(str, words), "--site", str(site)], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def call_json(site, *words, stdin=None):
    code, out, err = call(site, *words, "--json", stdin=stdin)
    assert code == 0, err
    return json.loads(out)


def set_one_worker(site):
    text = (site / "site.toml").read_text()
    (site / "site.toml").write_text(text.replace("[intake]\n", "[intake]\nworkers = 1\n"))


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site"
    assert call(path, "init", "clinic", "--image-size", SIZE)[0] == 0
    set_one_worker(path)
    return path


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / f"export-{SENTINEL}"
    for n in range(3):
        about = {"patient": f"{SENTINEL}{n}", "accession": f"{SENTINEL}A{n}", "uid": f"1.2.826.0.1.77777.{n}"}
        write_dicom(folder / f"{SENTINEL}{n}.dcm", n, **about, view="" if n == 2 else "PA", modality="CR")
    (folder / "notes.txt").write_text(SENTINEL)
    return folder


def paths_of(command, words=()):
    """Yield the words of every command there is."""
    yield words
    for name, sub in getattr(command, "commands", {}).items():
        yield from paths_of(sub, (*words, name))


@pytest.mark.parametrize("words", list(paths_of(get_command(app))), ids=" ".join)
def test_every_command_explains_itself(words):
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert len(result.output.splitlines()) > 3


def test_the_commands_are_those_of_the_documentation():
    names = {" ".join(words) for words in paths_of(get_command(app))}
    assert {"init", "intake", "receive", "review accept", "review reject", "purge", "show", "card"} <= names


def test_an_intake_tells_its_figures_and_the_second_says_unchanged(site, export):
    first = call_json(site, "intake", export)
    assert first["outcomes"] == {"stored": 2, "view_unknown": 1, "not_dicom": 1}
    assert first["holdings"]["images"] == 2
    again = call_json(site, "intake", export)
    assert (again["outcomes"], again["unchanged"]) == ({}, 4)
    assert again["holdings"] == first["holdings"]
    shown = call_json(site, "show")
    assert (shown["images"], shown["patients"], shown["image_size"]) == (2, 2, SIZE)
    assert shown["generation"] == "generation-000001"


def test_nothing_printed_or_written_names_a_patient_or_a_file(site, export):
    printed = ""
    for words in (("intake", export), ("intake", export, "--json"), ("review",), ("show",), ("review", "accept", "r9")):
        printed += "".join(call(site, *words)[1:])
    code, out, err = call(site, "purge", "--patient", stdin=f"{SENTINEL}0\n")
    assert code == 0
    printed += out + err
    assert "stored" in printed
    assert SENTINEL not in printed
    assert "77777" not in printed
    assert str(site) not in printed
    for file in site.rglob("*"):
        assert SENTINEL not in file.name
        content = file.read_bytes() if file.is_file() else b""
        assert not [word for word in (SENTINEL.encode(), b".77777.") if word in content]


MISTAKES = {
    "source_missing": ("intake", "/nowhere/SENTINELMARIE"),
    "manifest_missing": ("intake", "/nowhere/SENTINELMARIE.csv"),
    "labels_unreadable": ("intake", "--labels", "/nowhere/SENTINELMARIE.csv"),
    "pacs_not_set": ("intake", "--pacs"),
    "receiver_not_set": ("receive",),
    "purge_what": ("purge",),
    "patient_unknown": ("purge", "--patient"),
    "review_unknown": ("review", "accept", "SENTINELMARIE"),
    "store_missing": ("show",),
    "site_exists": ("init", "clinic"),
}


@pytest.mark.parametrize("reason", MISTAKES)
def test_input_that_cannot_be_used_ends_with_2_and_a_reason(site, reason):
    code, out, err = call(site, *MISTAKES[reason], stdin=f"{SENTINEL}\n")
    assert (code, out) == (2, "")
    assert f"({reason})" in err
    assert SENTINEL not in err


@pytest.mark.parametrize("words", [("intake",), ("review",), ("purge", "--everything", "--yes"), ("show",), ("card",)])
def test_where_there_is_no_site_every_command_says_so(tmp_path, words):
    code, _, err = call(tmp_path / SENTINEL, *words)
    assert code == 2
    assert "(site_missing)" in err
    assert SENTINEL not in err
    assert not (tmp_path / SENTINEL).exists()


def test_a_second_command_at_the_same_time_is_refused(site):
    folder = open_site(site)
    with journal_of(folder):
        for words in (("intake",), ("purge", "--everything", "--yes"), ("review", "accept", "--all")):
            code, _, err = call(site, *words)
            assert (code, "(intake_running)" in err) == (2, True)
    assert folder.secret.exists()


def test_an_error_that_nobody_foresaw_prints_none_of_its_text(site, export, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError(SENTINEL)

    monkeypatch.setattr(cli.intake_cli, "take_in", broken)
    code, out, err = call(site, "intake", export)
    assert (code, out) == (70, "")
    assert "RuntimeError" in err
    assert SENTINEL not in err


def test_a_purge_of_one_patient_prints_its_proof(site, export):
    call(site, "intake", export)
    proof = call_json(site, "purge", "--patient", stdin=f"{SENTINEL}1\n")
    assert (proof["images_removed"], proof["traces_found"], proof["holds"]) == (1, 0, True)
    assert len(store_of(open_site(site))) == 1


def test_a_purge_of_everything_asks_unless_told_not_to(site, export):
    call(site, "intake", export)
    assert call(site, "purge", "--everything", stdin="n\n")[0] == 130
    assert (site / "store").exists()
    removed = call_json(site, "purge", "--everything", "--yes")
    assert removed["files_removed"] > 0
    assert [path.name for path in site.iterdir()] == ["site.toml"]
    assert call_json(site, "intake", export)["outcomes"]["stored"] == 2


def test_a_damaged_site_can_be_purged(site, export):
    call(site, "intake", export)
    (site / "intake" / "journal.sqlite").write_bytes(b"damaged" * 1000)
    assert call(site, "purge", "--everything", "--yes")[0] == 0
    assert [path.name for path in site.iterdir()] == ["site.toml"]


def _as_from_a_terminal():
    """A job in the background, as CI may be, ignores Ctrl-C and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_with_130_and_what_was_finished_is_kept(site, tmp_path):
    count, finished = 400, 70
    for n in range(count):
        write_dicom(tmp_path / "export" / f"{n:04}.dcm", n, patient=f"{SENTINEL}{n}")
    process = subprocess.Popen(
        [COMMAND, "intake", str(tmp_path / "export"), "--site", str(site)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_as_from_a_terminal,  # noqa: PLW1509  (no thread runs here)
    )
    deadline = time.monotonic() + 60
    pixels = site / "intake" / "pool-1" / "images.u8"
    while not (pixels.exists() and pixels.stat().st_size >= finished * SIZE**2) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "interrupted" in printed
    assert "Traceback" not in printed
    again = call_json(site, "intake", tmp_path / "export")
    assert again["unchanged"] >= finished
    assert again["unchanged"] + again["outcomes"]["stored"] == count
    assert again["holdings"]["images"] == count
