"""The kit of a site: one zip file of what it needs to join. The same federation and site give the same bytes."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Final

from multimix.config import Frozen
from multimix.contract.kit import AUTHORITY, HINTS, KIT, Kit, signed_sums
from multimix.errors import InputError
from multimix.files import write_atomically
from server.provision.admission import checked_name
from server.provision.folder import FederationFolder

SUFFIX: Final = ".kit.zip"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file knows
_REGULAR_FILE: Final = 0o100644 << 16


def kit_bytes(folder: FederationFolder, site: str) -> bytes:
    """Return a site's kit; InputError `site_name`, and as `signing_key`."""
    authorities = folder.ca.read_bytes()
    kit = Kit(
        federation=folder.settings.name,
        site=checked_name(site),
        address=folder.settings.address,
        coordinator_key=folder.coordinator_key(),
        ca_sha256=hashlib.sha256(authorities).hexdigest(),
    )
    files = {KIT: _json(kit), AUTHORITY: authorities, HINTS: _hints(kit).encode("ascii")}
    return _zipped({**files, **signed_sums(files, folder.signing_key())})


def write_kit(folder: FederationFolder, site: str, file: Path | None) -> tuple[Path, Kit]:
    """Write a site's kit, to SITE.kit.zip in the current folder unless given; InputError `kit_unwritable`, as above."""
    data = kit_bytes(folder, site)
    file = file or Path(f"{site}{SUFFIX}")
    try:
        write_atomically(file, data, mode=0o644)
    except OSError:
        raise InputError("kit_unwritable", f"{file} cannot be written. Give another --out.") from None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return file, Kit.model_validate_json(archive.read(KIT))


def _json(value: Frozen) -> bytes:
    return (value.model_dump_json(indent=1) + "\n").encode("ascii")


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, on whatever machine the kit is made
            entry.external_attr = _REGULAR_FILE
            archive.writestr(entry, data)
    return buffer.getvalue()


def _hints(kit: Kit) -> str:
    return f"""\
# What `multimix-site join {kit.site}{SUFFIX}` writes into the site's site.toml.
# [server]
# address = "{kit.address}"
# ca_file = "coordinator-ca.pem"
# coordinator_key = "{kit.coordinator_key}"

# What the hospital decides with its privacy officer: options of `join`, or by hand.
# [population]
# declared_patients = 1000                # --declared-patients: about so many patients are trained on
# epsilon_per_run = 3.0                   # --epsilon-per-run: the most that one run may cost each patient
# epsilon_lifetime = 8.0                  # --epsilon-lifetime: the most that all runs together may cost
"""
