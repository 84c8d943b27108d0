"""Which licences the images of each source carry, for the model card."""

from pathlib import Path

from multimix.data.manifest import read_manifest


def licences_by_source(data: Path, column: str) -> dict[str, tuple[str, ...]]:
    """Return the distinct licences named in a manifest, by the column that makes the hospitals.

    Site folders name none: a hospital's own images carry no licence.
    """
    manifest = data / "manifest.csv" if data.is_dir() else data
    if data.is_dir() and not manifest.exists():
        return {}
    found: dict[str, set[str]] = {}
    for record in read_manifest(manifest):
        if record.licence:
            found.setdefault(str(getattr(record, column, None) or record.source), set()).add(record.licence)
    return {name: tuple(sorted(licences)) for name, licences in sorted(found.items())}
