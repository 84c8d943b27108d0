"""`multimix-site intake`, `receive`, `review` and `purge`: what fills a site's store and what empties it."""

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from client.console import EXIT_INTERRUPTED, counting, discreet, err, figures, out, table
from client.intake.examine import Item
from client.intake.generation import write_generation
from client.intake.journal import Label, locked
from client.intake.labels import read_labels
from client.intake.purge import (
    Proof,
    compact,
    finish_purge,
    forget_rivals,
    purge_everything,
    remove_pages,
    remove_patient,
    search,
)
from client.intake.reasons import REASONS
from client.intake.receiver import spool_files
from client.intake.review import Queue, resolve_ids
from client.intake.run import Summary, take_in
from client.intake.sources import (
    file_key,
    folder_items,
    manifest_items,
    manifest_labels,
    mask_items,
    pacs_items,
    spool_items,
)
from client.settings import SiteFolder, open_site
from multimix.data.dicom import number_key, patient_key, uid_key
from multimix.data.manifest import read_manifest
from multimix.data.pseudonyms import Pseudonyms
from multimix.errors import SiteError, StoreError

SiteOption = Annotated[
    Path,
    # The agent's user may pass through the folder and not list it.
    typer.Option("--site", "-s", envvar="MULTIMIX_SITE", readable=False, help="The site's folder, made by `init`."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as JSON, for machines.")]
HERE = Path("site")


def intake(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of DICOM files of any depth, or CSV manifests of PNG or JPEG files."),
    ] = None,
    pacs: Annotated[bool, typer.Option("--pacs", help="Query the DICOMweb archive of site.toml.")] = False,
    received: Annotated[bool, typer.Option("--received", help="Take in what `receive` has put down.")] = False,
    labels: Annotated[
        Path | None, typer.Option(help="CSV of labels and masks; in the place of the one given before.")
    ] = None,
    without_preamble: Annotated[
        bool, typer.Option("--without-preamble", help="Accept DICOM files that lack their 128-byte preamble.")
    ] = False,
    site: SiteOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Take radiographs in: DICOM folders of any depth, CSV manifests of PNG or JPEG, the PACS, or what was received.

    Again it opens only what is new. Without a source, labels are joined anew.

    Exit codes: 0 done (set-aside files are no error), 2 unusable input, 130 interrupted (what was finished is kept).
    """
    with discreet():
        folder = open_site(site)
        summary = run_intake(
            folder, *(sources or ()), pacs=pacs, received=received, labels=labels, without_preamble=without_preamble
        )
        show_summary(summary, as_json=as_json)


def run_intake(
    site: SiteFolder,
    *sources: Path,
    pacs: bool = False,
    received: bool = False,
    labels: Path | None = None,
    without_preamble: bool = False,
) -> Summary:
    """Take in from every source named, in one go.

    Raises:
        SiteError: a source, label or setting cannot be used.
        ManifestError: the manifest cannot be used.
    """
    pseudonyms = site.pseudonyms()
    rows, items = _gathered(site, pseudonyms, sources, labels)

    def everything() -> Iterator[Item]:
        yield from items
        if received:
            yield from spool_items(site.received, pseudonyms)
        if pacs:
            if site.settings.pacs is None:
                raise SiteError("pacs_not_set", "site.toml has no [pacs] section. Fill one in; docs/site-data.md.")
            yield from pacs_items(site.settings.pacs, pseudonyms)

    with counting("taking images in") as progress:
        return take_in(
            site,
            everything(),
            labels=rows,
            without_preamble=without_preamble,
            progress=progress,
            after=_remove_received(site) if received else None,
        )


def _gathered(
    site: SiteFolder, pseudonyms: Pseudonyms, sources: Sequence[Path], labels: Path | None
) -> tuple[Mapping[str, list[Label]], Iterator[Item]]:
    """Return the labels by origin, and the items of folders, manifests and labels file, images before masks."""
    rows: dict[str, list[Label]] = {}
    parts: list[Iterator[Item]] = []
    masks: dict[str, Path] = {}
    others: set[str] = set()
    if labels is not None:
        read = read_labels(labels, pseudonyms, label_map=site.settings.label_map)
        rows["labels"], masks = list(read.labels), dict(read.masks)
        others = {*masks, file_key(pseudonyms, labels.resolve())}
    for source in sources:
        if source.is_dir():
            parts.append(folder_items(source, pseudonyms, without=others))
        elif source.suffix.lower() == ".csv":
            records, root = read_manifest(source), source.parent
            parts.append(manifest_items(records, root, pseudonyms))
            origin = pseudonyms.of("manifest", str(source.resolve()))  # another manifest adds to this one
            rows[origin], named = manifest_labels(records, root, pseudonyms)
            masks.update(named)
        else:
            raise SiteError("source_missing", "A source is neither a folder nor a CSV manifest. Correct the path.")
    parts.append(mask_items(masks.items()))
    return rows, (item for part in parts for item in part)


def _remove_received(site: SiteFolder) -> Callable[[Item], None]:
    spool = site.received.resolve()

    def remove(item: Item) -> None:
        if isinstance(item.content, Path) and item.content.parent == spool:
            item.content.unlink(missing_ok=True)

    return remove


def show_summary(summary: Summary, *, as_json: bool) -> None:
    """Print what an intake did: outcomes with their meaning, then what the store holds."""
    if as_json:
        typer.echo(json.dumps(asdict(summary)))
        return
    outcomes = [
        [str(count), name, _meaning(name)]
        for name, count in sorted(summary.outcomes.items(), key=lambda pair: -pair[1])
    ]
    if summary.unchanged:
        outcomes.append([str(summary.unchanged), "unchanged", "met before, not opened again"])
    table("this intake", ["items", "outcome", "meaning"], outcomes)
    problems = summary.holdings.problems
    if problems:
        table(
            "labels and masks", ["items", "problem", "meaning"], [[str(n), k, _meaning(k)] for k, n in problems.items()]
        )
    figures({name: value for name, value in asdict(summary.holdings).items() if name != "problems"})


def _meaning(name: str) -> str:
    if name == "stored":
        return "decoded and kept"
    reason = REASONS.get(name)
    return "" if reason is None else reason.meaning + (f"; {reason.remedy}" if reason.remedy else "")


def receive(
    site: SiteOption = HERE,
    quiet: Annotated[float, typer.Option(min=0.1, help="Seconds without an arrival before files are taken in.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Stop after the first files are taken in.")] = False,
) -> None:
    """Listen for a PACS that sends by C-STORE, and take in what it sends; stop with Ctrl-C or SIGTERM.

    Exit codes: 0 stopped, 2 unusable settings. AE titles are no protection: bind to loopback or a firewalled net.
    """
    from client.intake.receiver import receive as listen  # noqa: PLC0415  (pynetdicom loads slowly)

    with discreet():
        folder = open_site(site)
        if folder.settings.receiver is None:
            raise SiteError("receiver_not_set", "site.toml has no [receiver] section. Fill one in; docs/site-data.md.")
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())

        def take() -> None:
            try:
                summary = run_intake(folder, received=True)
            except (SiteError, StoreError) as error:  # somebody else works on the site: the files wait
                err.print(f"{datetime.now().astimezone():%H:%M:%S}  not now ({error.reason})", highlight=False)
                return
            counts = ", ".join(f"{count} {name}" for name, count in sorted(summary.outcomes.items()))
            err.print(f"{datetime.now().astimezone():%H:%M:%S}  {counts or 'nothing new'}", highlight=False)
            if once:
                stop.set()

        settings = folder.settings.receiver
        err.print(f"listening as {settings.ae_title} on port {settings.port}; Ctrl-C stops", highlight=False)
        done = listen(settings, folder.received, on_quiet=take, quiet_s=quiet, stop=stop)
        figures(asdict(done))


review = typer.Typer(help="Look at images whose view or body part nobody wrote down; accept or reject them.")


@review.callback(invoke_without_command=True)
def list_queue(context: typer.Context, site: SiteOption = HERE, as_json: JsonOption = False) -> None:
    """List the images that wait, and draw them on a contact sheet in the site's folder."""
    context.obj = site
    if context.invoked_subcommand is not None:
        return
    with discreet():
        folder = open_site(site)
        with folder.journal() as journal:
            queue = Queue.of(journal)
            sheet = queue.draw(journal, folder.path / "review.png") if queue.images else None
        if as_json:
            typer.echo(json.dumps([{"image": name, "reason": image.reason} for name, image in queue.named()]))
            return
        rows = [[name, image.reason, _meaning(image.reason)] for name, image in queue.named()]
        table(f"{len(rows)} images wait", ["image", "reason", "meaning"], rows)
        if sheet is not None:
            out.print("contact sheet: review.png in the site's folder; then accept or reject by these names")


@review.command()
def accept(
    context: typer.Context,
    images: Annotated[list[str] | None, typer.Argument(help="Names as `review` lists them.")] = None,
    view: Annotated[
        str | None, typer.Option(help="PA, AP or frontal; without it what the file says, else frontal.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that wait.")] = False,
    site: Annotated[Path | None, typer.Option("--site", "-s", help="The site's folder, made by `init`.")] = None,
) -> None:
    """Accept images as frontal chest radiographs; the store gets a new generation."""
    with discreet():
        if view not in {None, "PA", "AP", "frontal"}:
            raise SiteError("view_unknown", "--view is PA, AP or frontal.")
        folder = open_site(site or context.obj)
        _show_decided(folder, "accepted", _accept(folder, images or [], view or "", everything=everything))


@review.command()
def reject(
    context: typer.Context,
    images: Annotated[list[str] | None, typer.Argument(help="Names as `review` lists them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that wait.")] = False,
    site: Annotated[Path | None, typer.Option("--site", "-s", help="The site's folder, made by `init`.")] = None,
) -> None:
    """Reject images that wait, or accepted ones by their name on site.html (a12): their pixels are removed.

    The same file is not asked about again; a corrected export of it is taken in.
    """
    with discreet():
        folder = open_site(site or context.obj)
        _show_decided(folder, "rejected", _reject(folder, images or [], everything=everything))


def _accept(folder: SiteFolder, names: list[str], view: str, *, everything: bool) -> int:
    with folder.journal() as journal:
        finish_purge(folder, journal)
        chosen = resolve_ids(Queue.of(journal), names, everything=everything)
        journal.accept([image.id for image in chosen], view)
        journal.commit()
    return len(chosen)


def _reject(folder: SiteFolder, names: list[str], *, everything: bool) -> int:
    with folder.journal() as journal:
        finish_purge(folder, journal)
        chosen = resolve_ids(Queue.of(journal, accepted=True), names, everything=everything)
        journal.reject([image.id for image in chosen])
        forget_rivals(journal)
        compact(journal)  # the arrays are written anew without the rejected: a reader may have the old ones open
    return len(chosen)


def _show_decided(folder: SiteFolder, what: str, count: int) -> None:
    with folder.journal() as journal:
        finish_purge(folder, journal)
        holdings = write_generation(folder, journal)
        remove_pages(folder)
        Queue.of(journal).draw(journal, folder.path / "review.png")
    figures({what: count, "waiting": holdings.review, "images": holdings.images})


def purge(
    patient: Annotated[
        bool,
        typer.Option("--patient", help="Remove one patient; the identifier is asked for, so no shell remembers it."),
    ] = False,
    instance: Annotated[
        bool, typer.Option("--instance", help="Remove the patient of an image; its SOP instance UID is asked for.")
    ] = False,
    issuer: Annotated[
        str, typer.Option(help="Only the patient with this issuer of the identifier; else all of that number.")
    ] = "",
    everything: Annotated[
        bool, typer.Option("--everything", help="Remove all images, the journal, the secret.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before removing everything.")] = False,
    site: SiteOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Remove a patient or everything, then search what is left and say whether anything was found.

    Exit codes: 0 removed and nothing found, 1 traces found, 2 unusable input, 130 not confirmed.
    """
    with discreet():
        folder = open_site(site)
        if patient + instance + everything != 1:
            raise SiteError("purge_what", "Say one of --patient, --instance and --everything.")
        if everything:
            if not yes and not typer.confirm("Remove all images, the journal and the secret of this site?", err=True):
                raise typer.Exit(EXIT_INTERRUPTED)
            with locked(folder.intake):  # not the journal: it may be damaged
                count = purge_everything(folder)
            typer.echo(json.dumps({"files_removed": count})) if as_json else figures({"files_removed": count})
            return
        proof = purge_patient(
            folder, _asked("Patient identifier" if patient else "SOP instance UID"), issuer, instance=instance
        )
        typer.echo(proof.as_json()) if as_json else figures(asdict(proof) | {"holds": str(proof.holds)})
        if not proof.holds:
            raise typer.Exit(1)


def _asked(what: str) -> str:
    """Return an identifier: typed unseen, or the first line of standard input."""
    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True, err=True)).strip()
    return sys.stdin.readline().strip()


def purge_patient(site: SiteFolder, identifier: str, issuer: str = "", *, instance: bool = False) -> Proof:
    """Remove a patient, by number or by an image of theirs, and prove it; see `client.intake.purge`.

    Raises:
        SiteError: `patient_unknown`, `intake_running`; `received_waiting` if files lie in the spool, unread.
    """
    if site.received.is_dir() and any(site.received.iterdir()):  # half-received ones are of a stopped receiver
        for partial in site.received.glob(".*"):
            partial.unlink(missing_ok=True)
    if spool_files(site.received):
        raise SiteError(
            "received_waiting",
            "Received files wait, and may be the patient's. Run multimix-site intake --received first.",
        )
    pseudonyms = site.pseudonyms()
    with site.journal() as journal:
        finish_purge(site, journal)
        if instance:
            uid = uid_key(pseudonyms, identifier)
            patients = [image.patient for image in journal.kept_images() if image.uid == uid]
        elif issuer:
            patients = [patient_key(pseudonyms, identifier, issuer)]
        else:
            patients = journal.patients_of(number_key(pseudonyms, identifier))
        gone = remove_patient(journal, pseudonyms, *patients)
    with site.journal() as journal:
        finish_purge(site, journal)
    remove_pages(site)
    return search(site, gone)
