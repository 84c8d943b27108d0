"""Is this machine fit to train: GPU, memory, disk and the decoders of the images it holds?

Each check reads one thing and judges it. What was read can be given instead, so that a test needs no patching.
Findings hold numbers and technical names only, never a path or a file name.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydicom import config
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from client.preflight.lines import Line

_GIB = 2**30
_GPU_FREE_BYTES = 2 * _GIB  # a rule of thumb, not a measurement
_GDCM = "pip install 'multimix[gdcm]'"
_OPENJPEG = "pip install pylibjpeg pylibjpeg-openjpeg"
_INSTALL: Mapping[str, str] = {
    JPEGBaseline8Bit: "pip install pillow",
    JPEGExtended12Bit: _GDCM,
    JPEGLossless: _GDCM,
    JPEGLosslessSV1: _GDCM,
    JPEGLSLossless: "pip install pyjpegls",
    JPEGLSNearLossless: "pip install pyjpegls",
    JPEG2000Lossless: _OPENJPEG,
    JPEG2000: _OPENJPEG,
    HTJ2KLossless: _OPENJPEG,
    HTJ2KLosslessRPCL: _OPENJPEG,
    HTJ2K: _OPENJPEG,
    RLELossless: "pip install pylibjpeg pylibjpeg-rle",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Gpus:
    """What torch and the NVIDIA driver say: they may differ, and that is what goes wrong."""

    cuda_build: bool  # torch was built for a GPU
    driver_count: int  # GPUs the driver shows
    usable: tuple[Gpu, ...]


def read_gpus(driver_folder: Path = Path("/proc/driver/nvidia/gpus")) -> Gpus:
    """Ask torch and the driver; ImportError or OSError when torch does not load."""
    import torch  # noqa: PLC0415  (seconds to load, and the other checks do not need it)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old driver makes torch warn on stderr; the line says it instead
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        usable = tuple(_read_gpu(index) for index in range(count))
    shown = len(list(driver_folder.glob("*")))
    return Gpus(torch.version.cuda is not None or torch.version.hip is not None, shown, usable)


def _read_gpu(index: int) -> Gpu:
    import torch  # noqa: PLC0415

    properties = torch.cuda.get_device_properties(index)
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    except RuntimeError:  # held by another program in exclusive mode
        free_bytes, total_bytes = 0, properties.total_memory
    return Gpu(properties.name, free_bytes, total_bytes)


def gpu(seen: Gpus | None = None, *, need_bytes: int = _GPU_FREE_BYTES) -> list[Line]:
    """Return a line for each usable GPU, or one that says why there is none."""
    if seen is None:
        try:
            seen = read_gpus()
        except (ImportError, OSError):
            return [Line("gpu", "FAIL", "torch does not load.", "Install multimix again into a new environment.")]
    if seen.usable:
        return [_usable(one, need_bytes) for one in seen.usable]
    return [_no_gpu(seen)]


def _usable(one: Gpu, need_bytes: int) -> Line:
    free = f"{one.name}: {_gib(one.free_bytes)} of {_gib(one.total_bytes)} free"
    if one.free_bytes >= need_bytes:
        return Line("gpu", "PASS", f"{free}.")
    return Line(
        "gpu", "WARN", f"{free}; {_gib(need_bytes)} are wanted.", "End other programs on this GPU, or train on the CPU."
    )


def _no_gpu(seen: Gpus) -> Line:
    if seen.driver_count and not seen.cuda_build:
        return Line(
            "gpu",
            "WARN",
            f"The driver shows {seen.driver_count} GPU(s), but the installed torch is built for the CPU only.",
            "Install the CUDA build of the same torch version.",
        )
    if seen.driver_count:
        return Line(
            "gpu",
            "WARN",
            f"The driver shows {seen.driver_count} GPU(s), but torch cannot use any of them.",
            "Update the NVIDIA driver, or give this user access to the GPU devices.",
        )
    return Line(
        "gpu",
        "WARN",
        "No GPU is visible to this program. Training on the CPU works, but is much slower.",
        "Nothing to do if that is intended; otherwise install the GPU's driver and the CUDA build of torch.",
    )


def read_available_memory(
    meminfo: Path = Path("/proc/meminfo"), control_group: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return MemAvailable of the kernel in bytes, or what a container's limit leaves where that is less."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        available = int(fields["MemAvailable"].split()[0]) * 1024  # the kernel writes KiB as "kB"
    except (OSError, KeyError, ValueError, IndexError):
        return None
    try:
        limit = int((control_group / "memory.max").read_text())
        used = int((control_group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or the limit is "max"
        return available
    return min(available, max(limit - used, 0))


def memory(need_bytes: int, *, read: Callable[[], int | None] = read_available_memory) -> Line:
    """Compare the memory that programs can still take, within a container's limit, with `need_bytes`."""
    have = read()
    if have is None:
        return Line("memory", "WARN", "The free memory could not be read.", f"See that {_gib(need_bytes)} are free.")
    if have >= need_bytes:
        return Line("memory", "PASS", f"{_gib(have)} of memory are free; {_gib(need_bytes)} are needed.")
    return Line(
        "memory",
        "FAIL",
        f"{_gib(have)} of memory are free; {_gib(need_bytes)} are needed.",
        "End other programs, use fewer workers, or give this machine or container more memory.",
    )


def disk(folder: Path, need_bytes: int, *, free_bytes: int | None = None) -> Line:
    """Compare the free space where the site folder lies, or will lie, with `need_bytes`; WARN below twice that."""
    try:
        have = shutil.disk_usage(_existing(folder)).free if free_bytes is None else free_bytes
    except OSError:
        return Line("disk", "FAIL", "The disk of the site folder cannot be read.", "See that it is mounted.")
    found = f"{_gib(have)} are free on the disk of the site folder; {_gib(need_bytes)} are needed."
    if have >= 2 * need_bytes:
        return Line("disk", "PASS", found)
    if have >= need_bytes:
        # A new generation of the store is written beside the old one, which training may still read.
        return Line("disk", "WARN", f"{found} A second generation will not fit.", "Free space, or use a larger disk.")
    return Line("disk", "FAIL", found, "Free space, or put the site folder on a larger disk.")


def _existing(folder: Path) -> Path:
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  (no link is resolved: the disk of the link's target counts)
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


def decoders(present: Mapping[str, int], *, find: Callable[[UID], Decoder] = get_decoder) -> list[Line]:
    """Say for each transfer syntax present whether its pixels can be decoded here.

    Args:
        present: Number of files for each transfer syntax UID.
        find: pydicom's decoder for a transfer syntax; NotImplementedError where it knows none.
    """
    uids = {_uid(text): count for text, count in sorted(present.items())}
    lines = [_decoder(uid, count, find) for uid, count in uids.items() if uid.type == "Transfer Syntax"]
    unknown = sum(count for uid, count in uids.items() if uid.type != "Transfer Syntax")
    if unknown:
        # A private UID can name the institution that registered it, so it is not shown.
        lines.append(_undecodable("a private or unknown transfer syntax", unknown))
    return lines


def _uid(text: str) -> UID:
    return UID(text, validation_mode=config.IGNORE)  # pydicom would log a text that is no UID


def _decoder(uid: UID, count: int, find: Callable[[UID], Decoder]) -> Line:
    try:
        decoder = find(uid)
    except NotImplementedError:
        return _undecodable(uid.name, count)
    install = _INSTALL.get(uid, "Install multimix again into a new environment.")
    if not decoder.is_available:
        return Line("decoder", "FAIL", f"{uid.name}: {count} file(s), and nothing installed decodes them.", install)
    if uid == JPEGExtended12Bit:
        fix = "If those of 12 bits are radiographs, have the PACS send them as Explicit VR Little Endian."
        return Line("decoder", "WARN", f"{uid.name}: {count} file(s); only those of 8 bits can be decoded.", fix)
    return Line("decoder", "PASS", f"{uid.name}: {count} file(s) can be decoded.")


def _undecodable(name: str, count: int) -> Line:
    """Warn only: films and the like are in every archive, and intake sets them aside."""
    return Line(
        "decoder",
        "WARN",
        f"{name}: {count} file(s); no decoder for it exists here, and intake will set them aside.",
        "If they are radiographs, have the PACS send them as Explicit VR Little Endian.",
    )


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
