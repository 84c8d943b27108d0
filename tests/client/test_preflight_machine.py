"""`multimix-site check` on the machine: each line says what is, and how to mend what is wrong."""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from pydicom.uid import JPEG2000, JPEGExtended12Bit, JPEGLosslessSV1, RLELossless

from client.preflight.clock import (
    AHEAD_FAIL_S,
    BEHIND_FAIL_S,
    clock,
    clock_against,
    newest_install,
    read_maximum_error,
)
from client.preflight.lines import Line, exit_code
from client.preflight.machine import Gpu, Gpus, decoders, disk, gpu, memory, read_available_memory, read_gpus
from client.preflight.permissions import permissions
from client.preflight.versions import meets, packages, python_version

GIB = 2**30
NOBODY = 65534
MPEG2 = "1.2.840.10008.1.2.4.100"
PRIVATE = "1.2.826.0.1.3680043.9.7777.1"


def statuses(lines) -> list[str]:
    return [line.status for line in lines]


def the_line(lines, *words) -> Line:
    found = [line for line in lines if all(word in line.finding for word in words)]
    assert len(found) == 1, lines
    return found[0]


# Lines


def test_a_complaint_without_a_remedy_is_refused():
    with pytest.raises(ValueError, match="how to fix"):
        Line("disk", "WARN", "It is nearly full.")


@given(st.lists(st.sampled_from(["PASS", "WARN", "FAIL"])))
def test_the_exit_code_is_that_of_the_worst_line_and_never_that_of_unusable_input(given_statuses):
    worst = max([{"PASS": 0, "WARN": 1, "FAIL": 3}[status] for status in given_statuses], default=0)
    assert exit_code(Line("name", status, "finding", "fix") for status in given_statuses) == worst


# Versions


@pytest.mark.parametrize(
    ("running", "status"),
    [((3, 10, 14), "FAIL"), ((3, 11, 0), "PASS"), ((3, 13, 9), "PASS"), ((3, 14, 0), "FAIL")],
)
def test_python_is_compared_with_the_range_of_the_installed_package(running, status):
    assert python_version(running).status == status


RELEASES = st.lists(st.integers(0, 12), min_size=1, max_size=3).map(lambda numbers: ".".join(map(str, numbers)))


@given(RELEASES, RELEASES, st.sampled_from([">=", "<=", ">", "<", "!="]))
def test_bounds_on_releases_mean_what_the_packaging_library_says(version, bound, operator):
    assert meets(f"{operator}{bound}", version) == SpecifierSet(f"{operator}{bound}").contains(version)


@pytest.mark.parametrize(
    ("specifier", "version", "met"),
    [
        ("==2.13.0", "2.13.0+cpu", True),
        ("==2.13.0", "2.13.0rc1", False),
        ("<3,>=2.2", "2.4.1", True),
        ("<3,>=2.2", "3.0.0", False),
        ("~=2.2", "2.2.1", False),
        ("", "1.0", True),
    ],
)
def test_pins_are_exact_and_an_unknown_operator_is_never_met(specifier, version, met):
    assert meets(specifier, version) is met


def test_a_missing_package_fails_and_another_version_warns():
    installed = {"torch": "2.12.0", "scipy": "1.15.2"}
    lines = packages(
        ["torch==2.13.0", "flwr[simulation]==1.41.0", "scipy<2,>=1.15", 'ruff==0.17.6; extra == "dev"'],
        version_of=installed.get,
    )
    assert statuses(lines) == ["WARN", "FAIL"]
    assert lines[0].finding == "torch is 2.12.0; this release was tested with ==2.13.0."
    assert lines[1].fix == "pip install 'flwr==1.41.0'"


def test_every_requirement_of_this_release_is_understood_and_met_here():
    lines = packages()
    assert [line.finding for line in lines if line.status == "FAIL"] == []
    assert {line.name for line in lines} == {"packages"}


def test_packages_that_all_fit_make_one_line():
    assert statuses(packages(["a==1", "b>=2"], version_of={"a": "1", "b": "2.5"}.get)) == ["PASS"]


# GPU, memory, disk


@pytest.mark.parametrize(
    ("seen", "status", "word"),
    [
        (Gpus(True, 1, (Gpu("H200", 100 * GIB, 139 * GIB),)), "PASS", "100.0 GiB of 139.0 GiB"),
        (Gpus(True, 1, (Gpu("H200", GIB, 139 * GIB),)), "WARN", "1.0 GiB of 139.0 GiB"),
        (Gpus(False, 2, ()), "WARN", "built for the CPU only"),
        (Gpus(True, 2, ()), "WARN", "cannot use any"),
        (Gpus(True, 0, ()), "WARN", "No GPU is visible"),
        (Gpus(False, 0, ()), "WARN", "No GPU is visible"),
    ],
)
def test_the_gpu_line_tells_a_cpu_build_an_unusable_and_an_absent_gpu_apart(seen, status, word):
    (line,) = gpu(seen, need_bytes=2 * GIB)
    assert line.status == status
    assert word in line.finding


def test_the_gpus_that_the_driver_shows_are_counted(tmp_path):
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
    assert read_gpus(tmp_path).driver_count == 2


def test_checking_the_rest_of_the_machine_does_not_load_torch():
    code = "import sys, client.preflight.machine, client.preflight.network; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("available", "status"), [(4 * GIB, "PASS"), (4 * GIB - 1, "FAIL")])
def test_memory_is_compared_with_the_need(available, status):
    assert memory(4 * GIB, read=lambda: available).status == status


def test_a_containers_limit_counts_where_it_is_below_the_machines_memory(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       9000000 kB\nMemAvailable:   8000000 kB\n")
    assert read_available_memory(meminfo, tmp_path) == 8_000_000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert read_available_memory(meminfo, tmp_path) == 8_000_000 * 1024
    (tmp_path / "memory.max").write_text("5000000\n")
    assert read_available_memory(meminfo, tmp_path) == 4_000_000


def test_memory_that_cannot_be_read_is_not_taken_for_enough(tmp_path):
    assert read_available_memory(tmp_path / "absent") is None
    assert memory(0, read=lambda: None).status == "WARN"


@pytest.mark.parametrize(("free", "status"), [(20, "PASS"), (19, "WARN"), (10, "WARN"), (9, "FAIL")])
def test_the_disk_must_hold_the_store_and_better_two_generations(tmp_path, free, status):
    assert disk(tmp_path, 10 * GIB, free_bytes=free * GIB).status == status


def test_the_disk_of_a_site_folder_that_is_not_there_yet_is_that_of_its_parent(tmp_path):
    assert disk(tmp_path / "not" / "yet", 1).status == "PASS"
    line = disk(tmp_path / "not" / "yet", 2**62)
    assert line.status == "FAIL"
    assert "not" not in line.finding.split()


# Clock


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("seconds_off", "status"),
    [(0, "PASS"), (2, "PASS"), (3, "WARN"), (7, "FAIL"), (-30, "PASS"), (-31, "WARN"), (-300, "WARN"), (-301, "FAIL")],
)
def test_the_clock_may_be_behind_the_servers_by_minutes_and_ahead_by_seconds_only(seconds_off, status):
    line = clock_against(formatdate(NOW, usegmt=True), now=NOW + seconds_off)
    assert line.status == status
    assert f"{abs(seconds_off)} s" in line.finding


def test_what_fails_of_a_clock_is_what_flower_refuses():
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert AHEAD_FAIL_S == SYSTEM_TIME_TOLERANCE + 1  # the server's Date leaves out up to a second
    assert SYSTEM_TIME_TOLERANCE + TIMESTAMP_TOLERANCE >= BEHIND_FAIL_S


def test_a_clock_that_is_wrong_is_told_with_both_times():
    line = clock_against(formatdate(NOW, usegmt=True), now=NOW + 3600)
    assert "2027-01-15 09:00:00 UTC here, 2027-01-15 08:00:00 UTC there (clock_wrong)" in line.finding


@pytest.mark.parametrize("date", ["", "Thu", "yesterday", "Thu, 99 Jan 2027 00:00:00 GMT", "1, 1 Jan 99999999 0:0:0 Z"])
def test_a_date_that_is_none_warns_and_is_not_repeated(date):
    line = clock_against(date)
    assert line.status == "WARN"
    assert not date or date not in line.finding


@pytest.mark.parametrize(
    ("now", "installed", "status"), [(0.0, 0.0, "FAIL"), (NOW, NOW + 301, "FAIL"), (NOW, NOW + 300, "PASS")]
)
def test_a_clock_of_1970_or_before_the_newest_package_fails(now, installed, status):
    assert clock(now=now, installed=installed, maximum_error_microseconds=0)[0].status == status


@pytest.mark.parametrize(("error", "status"), [(15_999_999, "PASS"), (16_000_000, "WARN")])
def test_a_clock_that_nothing_synchronises_warns(error, status):
    assert clock(now=NOW, installed=0, maximum_error_microseconds=error)[1].status == status


@pytest.mark.skipif(sys.platform != "linux", reason="adjtimex is Linux's")
def test_the_kernel_is_asked_for_its_error_without_any_privilege():
    error = read_maximum_error()
    assert error is None or 0 <= error <= 16_000_000  # None in a sandbox that forbids the call


def test_the_newest_install_is_the_newest_metadata_file(tmp_path):
    for name, seconds in (("old", 1_000_000), ("new", 2_000_000)):
        metadata = tmp_path / f"{name}-1.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.touch()
        os.utime(metadata, (seconds, seconds))
    assert newest_install([str(tmp_path), str(tmp_path / "absent.zip")]) == 2_000_000
    assert 0 < newest_install() <= time.time()


# Decoders


class FakeDecoder:
    """A decoder of pydicom's with the plugins given."""

    def __init__(self, *plugins: str):
        self.available_plugins = plugins
        self.is_available = bool(plugins)


@pytest.mark.parametrize(
    ("uid", "name", "install"),
    [
        (JPEGLosslessSV1, "JPEG Lossless, Non-Hierarchical, First-Order", "pip install 'multimix[gdcm]'"),
        (JPEGExtended12Bit, "JPEG Extended", "pip install 'multimix[gdcm]'"),
        (JPEG2000, "JPEG 2000", "pip install pylibjpeg pylibjpeg-openjpeg"),
    ],
)
def test_a_missing_decoder_fails_with_the_techniques_name_and_the_package(uid, name, install):
    (line,) = decoders({uid: 7}, find=lambda _: FakeDecoder())
    assert line.status == "FAIL"
    assert line.finding.startswith(name)
    assert "7 file(s)" in line.finding
    assert line.fix == install


def test_jpeg_extended_warns_because_nothing_decodes_its_12_bits():
    for plugins in (("pillow",), ("gdcm", "pillow")):
        assert (
            decoders({JPEGExtended12Bit: 1}, find=lambda _, plugins=plugins: FakeDecoder(*plugins))[0].status == "WARN"
        )


def test_a_private_transfer_syntax_is_counted_and_never_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pydicom would repeat a bad UID in a warning
        lines = decoders({PRIVATE: 2, "no uid at all": 1, RLELossless: 4})
    assert statuses(lines) == ["PASS", "WARN"]
    assert "3 file(s)" in lines[1].finding
    assert PRIVATE not in repr(lines)


def test_films_are_set_aside_and_do_not_fail():
    (line,) = decoders({MPEG2: 1})
    assert line.status == "WARN"
    assert line.finding.startswith("MPEG2")


def test_without_gdcm_the_real_pydicom_fails_jpeg_lossless_and_still_decodes_rle():
    code = (
        "import sys; sys.modules['gdcm'] = None; sys.modules['libjpeg'] = None\n"
        "from client.preflight.machine import decoders\n"
        f"print([line.status for line in decoders({{'{RLELossless}': 1, '{JPEGLosslessSV1}': 1}})])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Sorted by UID: ...4.70 is JPEG lossless, ...5 is RLE.
    assert done.stdout.strip() == "['FAIL', 'PASS']"


# Permissions


@pytest.fixture
def site(tmp_path):
    """A site folder as intake leaves it where no group trains."""
    folder = tmp_path / "PATIENT-NAME"
    store = folder / "store" / "generation"
    store.mkdir(parents=True)
    for path in (folder / "site.secret", folder / "site.toml", store / "pixels.u8"):
        path.touch(0o600)
    for path in (folder, folder / "store", store):
        path.chmod(0o700)
    return folder


@pytest.fixture
def group_site(site):
    """The same where the agent's group reads the store."""
    site.chmod(0o710)
    (site / "store").chmod(0o750)
    (site / "store" / "generation").chmod(0o750)
    (site / "store" / "generation" / "pixels.u8").chmod(0o640)
    return site


def test_a_private_folder_passes_every_line_with_its_counts(site):
    lines = permissions(site, group_readable=False)
    assert set(statuses(lines)) == {"PASS"}
    assert "3 folder(s) and 3 file(s)" in lines[0].finding


def test_a_store_that_the_group_may_read_passes_only_where_that_is_meant(group_site):
    assert set(statuses(permissions(group_site, group_readable=True))) == {"PASS"}
    line = the_line(permissions(group_site, group_readable=False), "Other users")
    assert line.status == "FAIL"
    assert "3 folder(s) and 1 file(s)" in line.finding


def test_a_store_that_the_group_cannot_reach_warns_with_the_count(group_site):
    group_site.chmod(0o700)
    (group_site / "store" / "generation" / "pixels.u8").chmod(0o600)
    line = the_line(permissions(group_site, group_readable=True), "group cannot use")
    assert line.status == "WARN"
    assert "1 folder(s) and 1 file(s)" in line.finding


@given(place=st.sampled_from([".", "store", "store/generation"]), bit=st.sampled_from([0o01, 0o02, 0o04, 0o20]))
def test_a_folder_open_to_the_world_or_writable_by_the_group_always_fails(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("site")
    (folder / "store" / "generation").mkdir(parents=True)
    for inside in (".", "store", "store/generation"):
        (folder / inside).chmod(0o710 if inside == "." else 0o750)
    assert exit_code(permissions(folder, group_readable=True)) == 0
    (folder / place).chmod((folder / place).stat().st_mode | bit)
    assert exit_code(permissions(folder, group_readable=True)) == 3


def test_settings_may_be_the_groups_to_read_and_not_to_write(group_site):
    (group_site / "site.toml").chmod(0o640)
    assert set(statuses(permissions(group_site, group_readable=True))) == {"PASS"}
    (group_site / "site.toml").chmod(0o660)
    assert "1 file(s)" in the_line(permissions(group_site, group_readable=True), "Other users").finding


def test_another_file_outside_the_store_is_never_the_groups(group_site):
    (group_site / "notes").touch()
    (group_site / "notes").chmod(0o640)
    assert "1 file(s)" in the_line(permissions(group_site, group_readable=True), "Other users").finding


def test_a_secret_that_others_can_read_fails_on_a_line_of_its_own(site):
    (site / "site.secret").chmod(0o640)
    assert the_line(permissions(site, group_readable=False), "secret").status == "FAIL"
    (site / "site.secret").unlink()
    assert [line for line in permissions(site, group_readable=False) if line.name == "secret"] == []


def test_a_secret_that_is_a_link_fails(site, tmp_path):
    (site / "site.secret").rename(tmp_path / "elsewhere")
    (site / "site.secret").symlink_to(tmp_path / "elsewhere")
    lines = permissions(site, group_readable=False)
    assert the_line(lines, "secret").status == "FAIL"
    assert the_line(lines, "1 link(s)", "not checked").status == "WARN"


def test_what_another_user_owns_fails(site):
    line = the_line(permissions(site, group_readable=False, user=os.geteuid() + 1), "another user")
    assert line.status == "FAIL"
    assert "3 folder(s) and 3 file(s)" in line.finding


def test_a_folder_above_that_everyone_may_change_fails_unless_it_is_sticky(site):
    above = site.parent
    above.chmod(0o777)
    assert the_line(permissions(site, group_readable=False), "above the site folder").status == "FAIL"
    above.chmod(0o1777)
    assert set(statuses(permissions(site, group_readable=False))) == {"PASS"}


def test_a_folder_that_cannot_be_looked_into_fails():
    with tempfile.TemporaryDirectory() as name, as_ordinary_user(name):
        (Path(name) / "closed").mkdir(0)
        assert the_line(permissions(Path(name), group_readable=False), "1 folder(s) could not").status == "FAIL"


@contextmanager
def as_ordinary_user(folder):
    """Give up root for a while, which could look into every folder."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(folder, NOBODY, -1)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_site_folder_that_is_not_there_fails(tmp_path):
    assert statuses(permissions(tmp_path / "absent", group_readable=False)) == ["FAIL"]


def test_no_line_shows_a_path_or_a_file_name(site):
    for path in (site, *site.rglob("*")):
        path.chmod(0o777)
    shown = repr(permissions(site, group_readable=True)) + repr(disk(site, 2**62))
    assert "PATIENT-NAME" not in shown
    assert "pixels" not in shown
    assert str(site.parent) not in shown
