"""The evidence bundle: a folder that a data-protection officer files, and that anybody can check again.

`evidence.html` to read, `evidence.json` (the same for machines), `ledger.jsonl` (a copy), `heads.json` (the server's
records about this site, if there were any given), `statement.html` (the site's, if given) and `manifest.json`: the
SHA-256 of each, signed with the auditor's key.

A check believes none of it. Everything that follows from the ledger is derived again from the copy, with the keys that
the evidence names: compare these keys with those that you have from elsewhere.
"""

import base64
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from multimix.audit.evidence.build import heads_about
from multimix.audit.evidence.page import as_html
from multimix.audit.evidence.records import Evidence, canonical, evidence_json, read_evidence
from multimix.audit.evidence.rederived import Difference, differences
from multimix.config import Frozen
from multimix.contract.heads import HeadRecord
from multimix.contract.privacy import Base64, Sha256
from multimix.contract.signing import public_key, public_text
from multimix.errors import InputError
from multimix.files import write_atomically
from multimix.privacy.statement_accounts import Pricing
from multimix.privacy.statement_page import as_html as statement_html

EVIDENCE_FILE: Final = "evidence.json"
PAGE_FILE: Final = "evidence.html"
LEDGER_FILE: Final = "ledger.jsonl"
HEADS_FILE: Final = "heads.json"
STATEMENT_FILE: Final = "statement.html"
MANIFEST_FILE: Final = "manifest.json"
_NAMES: Final = frozenset({EVIDENCE_FILE, PAGE_FILE, LEDGER_FILE, HEADS_FILE, STATEMENT_FILE})


class Manifest(Frozen):
    """What is in a bundle, by whom."""

    format: Literal["multimix evidence bundle 1"] = "multimix evidence bundle 1"
    files: dict[str, Sha256]
    signer: Base64  # public, Ed25519
    signature: Base64  # over `text`

    def text(self) -> str:
        """What is signed."""
        return canonical(self.model_dump(exclude={"signature"}))


class Heads(Frozen):
    """The server's records about one site, oldest first."""

    records: tuple[HeadRecord, ...]


class BundleCheck(Frozen):
    """What is wrong with a bundle; each reason is a code, with the file concerned behind a colon if there is one.

    `notes` are no faults: `signer_not_given`; `software_other` and `accountants_other` name what the bundle says it was
    made with, which may be why something differs. What this software does not derive does not hold, whatever they say.
    """

    signer: str | None  # as the manifest says
    evidence: Evidence | None  # as read, where it can be
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong and all was derived again; what the evidence itself says is in its judgement."""
        return not self.reasons


def write_bundle(
    folder: Path, evidence: Evidence, raw: bytes, *, heads: Sequence[HeadRecord] | None, key: Ed25519PrivateKey
) -> Manifest:
    """Write and sign a bundle into a new folder (0700): all of it or nothing; the same inputs make the same bytes.

    Args:
        folder: That does not exist yet, or is empty.
        evidence: Of these bytes and these heads.
        raw: `ledger.jsonl`.
        heads: The server's records; those about other sites are left out.
        key: The auditor's.

    Raises:
        InputError: `auditor_key`, `evidence_of_another_ledger`, `bundle_exists`, `bundle_unwritable`.
    """
    if public_text(key) != evidence.keys.auditor:
        raise InputError("auditor_key", "The evidence names another auditor's key than the one that shall sign it.")
    if hashlib.sha256(raw).hexdigest() != evidence.ledger_sha256 or evidence.heads_given != (heads is not None):
        raise InputError("evidence_of_another_ledger", "The evidence was made of another ledger, or with other heads.")
    text = evidence_json(evidence)
    evidence = read_evidence(text)  # the pages are made of what a reader of the text will have
    files = {
        EVIDENCE_FILE: text.encode(),
        PAGE_FILE: as_html(evidence).encode(),
        LEDGER_FILE: raw,
    }
    if heads is not None:
        records = Heads(records=heads_about(heads, evidence.verification))
        files[HEADS_FILE] = canonical(records.model_dump(mode="json")).encode()
    if evidence.statement:
        files[STATEMENT_FILE] = statement_html(evidence.statement).encode()
    manifest = _signed({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, key)
    _write(folder, files | {MANIFEST_FILE: _manifest_text(manifest).encode()})
    return manifest


def _signed(files: dict[str, str], key: Ed25519PrivateKey) -> Manifest:
    unsigned = Manifest(files=files, signer=public_text(key), signature="AA==")
    signature = base64.b64encode(key.sign(unsigned.text().encode())).decode()
    return unsigned.model_copy(update={"signature": signature})


def _manifest_text(manifest: Manifest) -> str:
    return canonical(manifest.model_dump())


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write beside the folder, then rename: nobody sees half a bundle."""
    try:
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise InputError("bundle_exists", "The folder for the bundle exists and is not empty: name a new one.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))  # 0700
        try:
            for name, data in files.items():
                write_atomically(beside / name, data)
            beside.replace(folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError:
        raise InputError(
            "bundle_unwritable", "The bundle could not be written: check the disk and its rights."
        ) from None


def check_bundle(folder: Path, signer_key: str | None, *, price: Pricing | None = None) -> BundleCheck:
    """Check a bundle: who signed it, that nothing was changed, and that the ledger in it says what the evidence says.

    Args:
        folder: Of the bundle.
        signer_key: The auditor's public key (base64) as got from elsewhere; None: whoever signed.
        price: Prices the statement anew; the trainer's accountants unless given.

    Raises:
        InputError: `bundle_unreadable`; `key_unusable`.
    """
    files, faults = _read(folder)
    manifest = _manifest(files.get(MANIFEST_FILE))
    if manifest is None:
        missing = MANIFEST_FILE not in files
        faults.append("manifest_missing" if missing else "manifest_damaged")
        return BundleCheck(signer=None, evidence=None, reasons=tuple(faults), notes=())
    faults += _signature_faults(manifest, signer_key)
    faults += _file_faults(manifest, files)
    notes = [] if signer_key else ["signer_not_given"]
    evidence = None
    if not faults:
        try:
            evidence, heads = _evidence(files)
            found = _derived(evidence, heads, files, manifest, price)
            faults, notes = found.faults, [*notes, *found.notes]
        except InputError as error:
            faults.append("evidence_unreadable" if error.reason == "key_unusable" else error.reason)
    return BundleCheck(signer=manifest.signer, evidence=evidence, reasons=tuple(faults), notes=tuple(notes))


def _read(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return the files that belong to a bundle, and the fault of any other."""
    try:
        places = sorted(folder.iterdir())
        known = [place for place in places if place.name in _NAMES | {MANIFEST_FILE}]
        files = {place.name: place.read_bytes() for place in known if place.is_file() and not place.is_symlink()}
    except OSError:
        raise InputError("bundle_unreadable", "The folder of the bundle cannot be read.") from None
    return files, ["file_extra"] * (len(places) > len(files))  # its name could be anything: it is not repeated


def _manifest(text: bytes | None) -> Manifest | None:
    """Return the manifest; None where there is none, or it is not spelled as it was written."""
    try:
        manifest = Manifest.model_validate_json(text or b"")
    except ValidationError:
        return None
    return manifest if _manifest_text(manifest).encode() == text else None


def _signature_faults(manifest: Manifest, signer_key: str | None) -> list[str]:
    try:
        given = public_key(signer_key) if signer_key else None
    except ValueError:
        raise InputError("key_unusable", "The auditor's key is not the base64 text of an Ed25519 public key.") from None
    try:
        signature = base64.b64decode(manifest.signature, validate=True)
        spelled = base64.b64encode(signature).decode() == manifest.signature
        signer = public_key(manifest.signer)
        signer.verify(signature, manifest.text().encode())
    except (InvalidSignature, ValueError):
        return ["signature_wrong"]
    faults = [] if spelled else ["signature_wrong"]
    if given and given.public_bytes_raw() != signer.public_bytes_raw():
        faults.append("signer_other")
    return faults


def _file_faults(manifest: Manifest, files: dict[str, bytes]) -> list[str]:
    faults = [f"file_missing: {name}" for name in sorted(manifest.files.keys() & _NAMES - files.keys())]
    if manifest.files.keys() - _NAMES or not {EVIDENCE_FILE, PAGE_FILE, LEDGER_FILE} <= manifest.files.keys():
        faults.append("manifest_damaged")
    for name, data in files.items():
        if name == MANIFEST_FILE:
            continue
        if name not in manifest.files:
            faults.append(f"file_extra: {name}")
        elif hashlib.sha256(data).hexdigest() != manifest.files[name]:
            faults.append(f"file_changed: {name}")
    return faults


def _evidence(files: dict[str, bytes]) -> tuple[Evidence, tuple[HeadRecord, ...] | None]:
    """Read the evidence and the heads; InputError where one of them cannot be."""
    try:
        evidence = read_evidence(files[EVIDENCE_FILE].decode())
        heads = Heads.model_validate_json(files[HEADS_FILE]).records if HEADS_FILE in files else None
    except ValueError:  # pydantic's, and bytes that are no text
        raise InputError("evidence_unreadable", "evidence.json or heads.json cannot be read.") from None
    return evidence, heads


def _derived(
    evidence: Evidence,
    heads: tuple[HeadRecord, ...] | None,
    files: dict[str, bytes],
    manifest: Manifest,
    price: Pricing | None,
) -> Difference:
    found = differences(evidence, files[LEDGER_FILE], heads, price=price)
    if evidence.keys.auditor != manifest.signer:
        found.faults.append("signer_not_auditor")
    if found.faults:
        return found  # a page of what the ledger does not give says nothing, and may not even be drawn
    pages = {PAGE_FILE: as_html(evidence)}
    if evidence.statement:
        pages[STATEMENT_FILE] = statement_html(evidence.statement)
    changed = [name for name, text in pages.items() if files.get(name) != text.encode()]
    if STATEMENT_FILE in files and not evidence.statement:
        changed.append(STATEMENT_FILE)
    found.faults += [f"page_differs: {name}" for name in changed]
    return found
