"""Checks of the images, labels and decoders of a site: does what was taken in look like what training needs?"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from client.intake.generation import Join, joined
from client.intake.journal import Image, Journal
from client.intake.reasons import FLAGS, JOIN, Reason
from client.preflight.lines import Line, Status
from client.preflight.machine import decoders
from client.settings import SiteFolder

MANY_IMAGES: Final = 50  # of one patient: more likely a placeholder for several
WRONG_SHARE: Final = 0.02  # of images that look wrong: the check's own false alarms stay below


def data_lines(site: SiteFolder, journal: Journal) -> Iterator[Line]:
    """Yield the checks of what was taken in."""
    yield from _decoders(journal)
    images = journal.kept_images("accept", "review")
    if not images:
        yield Line("images", "FAIL", "Nothing was taken in yet.", "Run multimix-site intake.")
        return
    found = joined(site, journal)
    yield _splits(found)
    yield from _classes(site, found)
    yield _views(found)
    yield from _joins(found.problems)
    yield _queue(images)
    yield from _looks(images)
    yield _crowds(found)
    shared = journal.shared_numbers()
    if shared:
        fix = "If they are one person, have the PACS send one issuer: else splits and privacy treat them as two."
        yield Line("issuers", "WARN", f"{shared} patient identifiers come from several issuers.", fix)


def _decoders(journal: Journal) -> list[Line]:
    """Judge the decoders of every syntax met, also of files set aside for want of one."""
    present = {syntax: count for syntax, count in journal.counts("syntax").items() if syntax}
    return decoders(present) if present else []


def _splits(found: Join) -> Line:
    """Check what no intake should let happen: a patient, or the same pixels, in two splits."""
    of_patient: dict[str, set[str]] = {}
    of_pixels: dict[str, set[str]] = {}
    for entry in found.entries:
        of_patient.setdefault(entry.patient, set()).add(entry.split)
        of_pixels.setdefault(entry.content_hash, set()).add(entry.split)
    torn = sum(len(splits) > 1 for splits in (*of_patient.values(), *of_pixels.values()))
    counts = Counter(entry.split for entry in found.entries)
    shown = ", ".join(f"{counts[name]} {name}" for name in ("train", "validation", "test"))
    if torn:
        return Line(
            "splits", "FAIL", f"{torn} patients or images are in two splits.", "Report this: intake forbids it."
        )
    if not counts["train"] or not counts["test"]:
        return Line("splits", "WARN", f"A split is empty: {shown}.", "Take more patients in, or name splits in labels.")
    return Line("splits", "PASS", f"No patient is in two splits: {shown} images.")


def _classes(site: SiteFolder, found: Join) -> Iterator[Line]:
    people = {name: {e.patient for e in found.entries if e.label == name} for name in ("normal", "pneumonia")}
    counts = ", ".join(f"{len(patients)} {name}" for name, patients in people.items())
    minimum = site.settings.policy.minimum_cohort
    if min(len(patients) for patients in people.values()) < minimum:
        fix = f"Label at least {minimum} patients of both classes; with fewer the site does not teach the classifier."
        yield Line("labels", "WARN", f"Labelled patients: {counts}.", fix)
    else:
        yield Line("labels", "PASS", f"Labelled patients: {counts}.")
    both = people["normal"] & people["pneumonia"]
    if both:
        fix = "Fine if the illness came or went; else correct the labels file."
        yield Line("label conflicts", "WARN", f"{len(both)} patients have images of both classes.", fix)
    masks = sum(entry.mask_row is not None for entry in found.entries)
    if masks:
        yield Line("masks", "PASS", f"{masks} images have a lung mask.")
    else:
        yield Line("masks", "WARN", "No image has a lung mask.", "Without masks the site does not teach segmentation.")


def _views(found: Join) -> Line:
    counts = Counter(entry.view for entry in found.entries)
    shown = ", ".join(f"{count} {view}" for view, count in sorted(counts.items()))
    if not found.entries:
        return Line("views", "FAIL", "No image is accepted.", "Look at the review queue: multimix-site review.")
    return Line("views", "PASS", f"Frontal views: {shown}.")


def _joins(problems: Mapping[str, int]) -> list[Line]:
    return [
        Line("label map", "WARN", f"{count} {JOIN[name].meaning}.", f"{JOIN[name].remedy.capitalize()}.")
        for name, count in problems.items()
    ] or [Line("label map", "PASS", "Every row of the labels files met its image.")]


def _queue(images: Sequence[Image]) -> Line:
    waiting = sum(image.decision == "review" for image in images)
    if waiting:
        return Line("review", "WARN", f"{waiting} images wait for a person.", "Run multimix-site review.")
    return Line("review", "PASS", "No image waits for a person.")


def _looks(images: Sequence[Image]) -> Iterator[Line]:
    """Judge images that look wrong by their share: single ones may be false alarms."""
    counts = Counter(flag for image in images for flag in image.flags)
    if not counts:
        yield Line("appearance", "PASS", "No image looks inverted, rotated, black or full of text.")
    for flag, count in sorted(counts.items()):
        share = count / len(images)
        status: Status = "FAIL" if flag == "looks_inverted" and share > 0.5 else "WARN"  # noqa: PLR2004
        often = "" if share > WRONG_SHARE else ", as few as false alarms can be"
        known = FLAGS.get(flag, Reason(flag, "look at them"))
        finding = f"{count} of {len(images)} images: {known.meaning}{often}."
        yield Line("appearance", status, finding, f"Look at them (multimix-site page); {known.remedy}.")


def _crowds(found: Join) -> Line:
    most = max(Counter(entry.patient for entry in found.entries).values(), default=0)
    if most > MANY_IMAGES:
        fix = "Check whether one identifier stands for several people; their privacy and the splits depend on it."
        return Line("patients", "WARN", f"One patient has {most} images.", fix)
    return Line("patients", "PASS", f"No patient has more than {MANY_IMAGES} images.")
