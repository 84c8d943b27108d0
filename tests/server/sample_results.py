"""A believable finished run, written by hand: 12 rounds, five training hospitals, one held out, one refusal."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from multimix.pictures import overlay_strip, png_bytes
from server.results import (
    ConventionResult,
    Metrics,
    Overall,
    Picture,
    Results,
    RoundResult,
    SiteCounts,
    SiteResult,
    SiteRound,
    Teachers,
)

ROUNDS = 12
REFUSED = ("cohen", 5)
ABSENT = ("nih14", 8)
REJECTED = ("shenzhen", 9)
KEPT = ("classifier", 1)
INCLUDES_HEART, EXCLUDES_HEART = "lung including heart area", "lung field only"

# site: final Dice, AUROC (None: one class), share of the majority class, mask convention
SITES = {
    "jsrt": (0.957, None, 1.0, EXCLUDES_HEART),
    "shenzhen": (0.931, None, 1.0, EXCLUDES_HEART),
    "cohen": (0.868, None, 1.0, INCLUDES_HEART),
    "kermany": (0.942, 0.921, 0.52, INCLUDES_HEART),
    "nih14": (None, 0.684, 0.55, None),
    "montgomery": (0.918, None, 1.0, EXCLUDES_HEART),
}
MODULES = ("encoder", "classifier", "decoder")


def sample_results(*, status: str = "finished", rounds: int = ROUNDS, synthetic: bool = False) -> Results:
    started = datetime(2026, 11, 22, 9, 14, 3, tzinfo=UTC)
    ended = started + timedelta(seconds=1987) if status != "running" else None
    final = status != "running"
    return Results(
        job_id="mm-7f3a19c2",
        title="MultiMix across five hospitals, Montgomery held out",
        status=status,
        synthetic=synthetic,
        privacy="No differential privacy: epsilon = infinity. Updates can reveal training images.",
        started=started,
        finished=ended,
        rounds_planned=ROUNDS,
        rounds=tuple(_round(number) for number in range(1, rounds + 1)),
        sites={name: _site(name, final=final) for name in SITES},
        conventions=_conventions() if final else {},
        overall=Overall(metrics=_classification(0.781, 0.62, 301) | _segmentation(0.917, 279) if final else {}),
        timing={
            "training": 1702.4,
            "waiting": 118.2,
            "evaluation": 96.1,
            "aggregation": 4.9,
            "admission": 2.2,
            "checkpoint": 5.3,
            "report": 3.6,
        },
        config={
            "rounds": ROUNDS,
            "local-steps": 40,
            "learning-rate": 1e-3,
            "proximal-mu": 0.0,
            "preset": "modern",
            "image-size": 96,
            "one-class-sites": "exclude",
            "mask-convention": EXCLUDES_HEART,
            "seed": 17,
            "resume": False,
        },
        software={"multimix": "0.1.0", "python": "3.11.9", "torch": "2.13.0+cpu", "flwr": "1.41.0"},
        pictures=tuple(
            Picture(site=name, caption=f"probability of pneumonia {p:.2f}", file=f"pictures/{name}.png")
            for name, p in (("kermany", 0.94), ("jsrt", 0.08), ("montgomery", 0.12), ("cohen", 0.88))
        ),
    )


def _conventions() -> dict[str, ConventionResult]:
    learned = ("jsrt", "shenzhen", "montgomery")
    return {
        EXCLUDES_HEART: ConventionResult(metrics=_segmentation(0.936, 121), sites=learned),
        INCLUDES_HEART: ConventionResult(metrics=_segmentation(0.871, 158), sites=("cohen", "kermany"), learned=False),
    }


def draw_pictures(results: Results, folder: Path) -> None:
    """Draw a made-up chest for every picture the results name."""
    for number, picture in enumerate(results.pictures):
        path = folder / picture.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(_chest(number)))


def _chest(number: int):
    rows, columns = np.mgrid[0:128, 0:128]
    noise = np.random.default_rng(number).normal(0, 6, (128, 128))

    def lungs(shift: float):
        left = ((columns - 42 - shift) / 23) ** 2 + ((rows - 66) / 42) ** 2 < 1
        right = ((columns - 88 + shift) / 22) ** 2 + ((rows - 66 - shift) / 41) ** 2 < 1
        return left | right

    ribs = 9 * np.cos(rows / 3.2 + ((columns - 64) / 30) ** 2)
    opacity = 70 * np.exp(-(((columns - 90) / 11) ** 2 + ((rows - 84) / 13) ** 2)) * (number % 3 == 0)
    image = np.clip(178 - 105 * lungs(0) + ribs + opacity + noise, 0, 255).astype(np.uint8)
    saliency = np.exp(-(((columns - 88) / 14) ** 2 + ((rows - 80) / 15) ** 2))
    return overlay_strip(image, prediction=lungs(1.5 + number), truth=lungs(0), saliency=saliency)


def _site(name: str, *, final: bool) -> SiteResult:
    dice, auroc, majority, convention = SITES[name]
    held_out = name == "montgomery"
    metrics: Metrics = {}
    if final:
        metrics = _classification(auroc, majority, 126) | _segmentation(dice, 49)
    one_class = auroc is None
    return SiteResult(
        role="held-out" if held_out else "train",
        counts=SiteCounts(
            images=630,
            patients=402,
            normal_patients=0 if held_out else {"cohen": 6}.get(name, 100),
            pneumonia_patients=100 if not one_class else {"cohen": 130}.get(name, 0),
            masked_patients=0 if held_out or dice is None else 50,
            unlabelled_patients=0 if held_out else 280,
        ),
        metrics=metrics,
        local_only=_classification(0.87, majority, 126) | _segmentation(0.951, 49) if name == "kermany" else None,
        mask_conventions=(convention,) if convention else (),
        licences=("CC BY 4.0",),
    )


def _classification(auroc: float | None, majority: float, images: int) -> Metrics:
    both = auroc is not None
    return {
        "accuracy": 0.5 + auroc * 0.4 if both else 0.81,
        "balanced_accuracy": 0.5 + auroc * 0.38 if both else None,
        "f1_normal": 0.83 if both else 0.894,
        "f1_pneumonia": 0.841 if both else None,
        "auroc": auroc,
        "auroc_low": auroc - 0.004 if both else None,
        "auroc_high": auroc + 0.004 if both else None,
        "ece": 0.061 if both else 0.13,
        "score_std": 0.31,
        "labelled_images": images,
        "majority_accuracy": majority,
        "majority_balanced_accuracy": 0.5 if both else None,
        "majority_f1_normal": 2 * majority / (1 + majority),
        "majority_f1_pneumonia": 0.0 if both else None,
    }


def _segmentation(dice: float | None, images: int) -> Metrics:
    if dice is None:
        keys = ("dice", "dice_std", "jaccard", "hausdorff_px", "hausdorff95_px", "ssim")
        return {"masked_images": 0} | dict.fromkeys(keys) | {f"mean_mask_{key}": None for key in keys}
    return {
        "masked_images": images,
        "dice": dice,
        "dice_std": 0.031,
        "jaccard": dice / (2 - dice),
        "hausdorff_px": 11.2,
        "hausdorff95_px": 4.6,
        "ssim": 0.871,
        "mean_mask_dice": 0.772,
        "mean_mask_jaccard": 0.629,
        "mean_mask_hausdorff_px": 19.4,
        "mean_mask_hausdorff95_px": 13.8,
        "mean_mask_ssim": 0.712,
    }


def _round(number: int) -> RoundResult:
    taught = {} if number == KEPT[1] else {"classifier": {"kermany": 0.53, "nih14": 0.47}}
    return RoundResult(
        round=number,
        seconds=161.0 + number % 3,
        parts={
            "training": 140.0 + number % 4,
            "waiting": 9.5,
            "evaluation": 8.0,
            "aggregation": 0.4,
            "checkpoint": 0.45,
            "report": 0.3,
        },
        sites={name: _site_round(name, number) for name in SITES if name != "montgomery"},
        module_shares={
            "encoder": {"jsrt": 0.2, "shenzhen": 0.2, "cohen": 0.16, "kermany": 0.24, "nih14": 0.2},
            "decoder": {"jsrt": 0.46, "shenzhen": 0.44, "cohen": 0.03, "kermany": 0.04, "nih14": 0.03},
            **taught,
        },
        kept_modules=("classifier",) if number == KEPT[1] else (),
    )


def _site_round(name: str, number: int) -> SiteRound:
    if (name, number) == REFUSED:
        return SiteRound(state="refused", reason="steps-above-policy")
    if (name, number) == ABSENT:
        return SiteRound(state="absent", reason="deadline")
    progress = 1 - math.exp(-number / 3.5)
    wobble = 0.012 * math.sin(3.1 * number + len(name))
    dice, auroc, _, _ = SITES[name]
    rejected = (name, number) == REJECTED
    return SiteRound(
        state="rejected" if rejected else "accepted",
        reason="update-norm" if rejected else None,
        losses={
            "total": 3.4 - 2.5 * progress + 8 * wobble,
            "classification": 0.69 - 0.4 * progress + wobble if auroc else None,
            "segmentation": 0.62 - 0.5 * progress + wobble if dice else None,
            "consistency": 0.05 + 0.22 * progress + wobble,
        },
        steps=40,
        seconds={"load": 0.8, "train": 26.5, "evaluate": 1.9},
        update_norm=2.9 - 1.7 * progress + 4 * wobble,
        teachers={
            module: Teachers(labelled_patients=120, unlabelled_patients=280)
            for module in MODULES
            if module != "classifier" or auroc
        },
        metrics={
            "dice": dice * (0.35 + 0.65 * progress) + wobble if dice else None,
            "auroc": 0.5 + (auroc - 0.5) * progress + wobble if auroc else None,
            "balanced_accuracy": 0.5 + (auroc - 0.55) * progress + wobble if auroc else None,
        },
    )
