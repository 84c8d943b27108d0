"""`multimix-site`: the hospital engineer's commands; see `multimix-site --help`."""

import json
import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from multimix.data.decode import Preprocessing
from multimix.data.manifest import read_manifest
from multimix.data.store import Store, open_store
from multimix.data.store_writer import build_store
from multimix.errors import InputError
from multimix.files import write_atomically

EXIT_INPUT = 2
_SECRET_BYTES = 32

app = typer.Typer(
    help="Prepare a hospital's radiographs for training. Nothing leaves this machine. Research only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_err = Console(stderr=True)


@app.callback()
def main() -> None:
    """Prepare a hospital's radiographs for training."""


@app.command("import")
def import_images(
    manifest: Annotated[Path, typer.Argument(help="CSV with the columns image and patient_id; see docs/data.md.")],
    store: Annotated[Path, typer.Argument(help="New folder for the decoded images.")],
    image_size: Annotated[int, typer.Option(min=16, max=1024, help="Side in pixels, a multiple of 16.")] = 256,
    fit: Annotated[str, typer.Option(help="pad keeps the aspect ratio, stretch does not.")] = "pad",
    seed: Annotated[int, typer.Option(min=0, help="Of the split of patients where the CSV gives none.")] = 0,
    secret: Annotated[
        Path, typer.Option(help="File with the site's secret that patients' pseudonyms are made with; made if absent.")
    ] = Path("site.secret"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Decode PNG or JPEG radiographs once into a store of pixels, pseudonyms and labels.

    Exit codes: 0 stored, 2 the input cannot be used (a paragraph names file, row and what to do).
    """
    try:
        opened = _import(manifest, store, _preprocessing(image_size, fit), secret, seed)
    except InputError as error:
        _err.print(f"[bold red]cannot go on[/] ({error.reason})\n{escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(EXIT_INPUT) from None
    except KeyboardInterrupt:
        _err.print("interrupted: nothing was stored")
        raise typer.Exit(130) from None
    _show(opened, as_json=as_json)


@app.command()
def show(
    store: Annotated[Path, typer.Argument(help="Folder made by import.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Show what a store holds, in counts."""
    try:
        opened = open_store(store)
    except InputError as error:
        _err.print(f"[bold red]cannot go on[/] ({error.reason})\n{escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(EXIT_INPUT) from None
    _show(opened, as_json=as_json)


def _preprocessing(image_size: int, fit: str) -> Preprocessing:
    if image_size % 16:
        raise InputError("image_size", f"--image-size {image_size}: give a multiple of 16, such as 256.")
    if fit not in ("pad", "stretch"):
        raise InputError("fit_unknown", f"--fit {fit!r}: choose pad or stretch.")
    return Preprocessing(image_size, "pad" if fit == "pad" else "stretch")


def _secret(path: Path) -> bytes:
    """Read the site's secret, or make one that only this user can read."""
    try:
        if not path.exists():
            write_atomically(path, secrets.token_bytes(_SECRET_BYTES))
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            "secret_unusable",
            f"The secret {path} can be neither read nor made ({error.strerror}): choose another --secret.",
        ) from error


def _import(manifest: Path, store: Path, preprocessing: Preprocessing, secret: Path, seed: int) -> Store:
    records = read_manifest(manifest)
    pseudonym_key = _secret(secret)
    with Progress(console=_err, transient=True) as progress:
        task = progress.add_task("decoding images", total=len(records))
        return build_store(
            records,
            root=manifest.parent,
            out=store,
            preprocessing=preprocessing,
            pseudonym_key=pseudonym_key,
            split_seed=seed,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _show(store: Store, *, as_json: bool) -> None:
    summary = {
        "images": len(store),
        "patients": int(store.patient.max()) + 1,
        "image_size": store.image_size,
        "masks": int((store.mask_row >= 0).sum()),
        "normal": int((store.label == 0).sum()),
        "pneumonia": int((store.label == 1).sum()),
        "train": int((store.split == "train").sum()),
        "validation": int((store.split == "validation").sum()),
        "test": int((store.split == "test").sum()),
        "equal_pixels": int(store.equal_pixels),
    }
    typer.echo(json.dumps(summary) if as_json else "\n".join(f"{key:14} {value}" for key, value in summary.items()))
