"""Sample predictions as small pictures: mask outlines and a saliency overlay beside the radiograph.

Colours are from Okabe and Ito's set, apart under every common colour-vision deficiency; the saliency ramp
rises in lightness (after matplotlib's inferno, so it also reads in grey). The prediction is drawn just inside
its boundary and the truth just outside its own, so both lines stay visible where the masks agree.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PREDICTION_COLOUR = "#E69F00"
TRUTH_COLOUR = "#56B4E9"
SALIENCY_COLOURS = ("#000004", "#420A68", "#932667", "#DD513A", "#FCA50A", "#FCFFA4")

_OUTLINE_PX = 2
_GAP_PX = 6
_HEAT_OPACITY = 0.75
_BRIGHTEST_PERCENTILE = 99.5

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def overlay_strip(
    image: Pixels,
    *,
    prediction: Mask | None,
    truth: Mask | None,
    saliency: NDArray[np.floating] | None,
    scale: int = 2,
) -> Image.Image:
    """Return the image, the image with mask outlines, and the image under its saliency, side by side, in RGB.

    Args:
        image: `[height, width]`, uint8.
        prediction: predicted mask `[height, width]`, or None.
        truth: reference mask `[height, width]`, or None.
        saliency: `[height, width]`, any scale; values that are not finite count as 0. None: no such panel.
        scale: whole-number enlargement of each panel.

    Raises:
        ValueError: a shape or type that does not fit.
    """
    _check(image, scale, prediction=prediction, truth=truth, saliency=saliency)
    height, width = image.shape
    grey = Image.fromarray(image, "L").resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    panels = [np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)]
    if prediction is not None or truth is not None:
        panels.append(_outlined(panels[0], _enlarged(prediction, scale), _enlarged(truth, scale)))
    if saliency is not None:
        panels.append(_heated(panels[0], saliency))
    return Image.fromarray(_side_by_side(panels), "RGB")


def png_bytes(image: Image.Image) -> bytes:
    """Return the picture as an optimised PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _check(image: Pixels, scale: int, **layers: NDArray[np.generic] | None) -> None:
    if image.ndim != 2 or image.dtype != np.uint8 or image.size == 0:  # noqa: PLR2004  (height and width)
        raise ValueError(f"image must be uint8 [height, width], not {image.dtype} {image.shape}")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, not {scale}")
    for name, layer in layers.items():
        if layer is not None and layer.shape != image.shape:
            raise ValueError(f"{name} is {layer.shape} but the image is {image.shape}")
        if layer is not None and name != "saliency" and layer.dtype != np.bool_:
            raise ValueError(f"{name} must be bool, not {layer.dtype}")


def _enlarged(mask: Mask | None, scale: int) -> Mask | None:
    return None if mask is None else mask.repeat(scale, axis=0).repeat(scale, axis=1)


def _outlined(panel: Pixels, prediction: Mask | None, truth: Mask | None) -> Pixels:
    outlined = panel.copy()
    if truth is not None:
        outlined[_grown(truth) & ~truth] = _rgb(TRUTH_COLOUR)
    if prediction is not None:
        outlined[prediction & _grown(~prediction)] = _rgb(PREDICTION_COLOUR)
    return outlined


def _grown(mask: Mask) -> Mask:
    """Return the mask grown by the outline's width in each of the four directions, step by step."""
    for _ in range(_OUTLINE_PX):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def _heated(panel: Pixels, saliency: NDArray[np.floating]) -> Pixels:
    """Blend the saliency ramp over the panel, more opaque where the saliency is higher."""
    height, width = panel.shape[:2]
    strength = _unit_range(saliency).astype(np.float32)
    smooth = Image.fromarray(strength, "F").resize((width, height), Image.Resampling.BILINEAR)
    level = np.clip(np.asarray(smooth, dtype=np.float64), 0.0, 1.0)
    anchors = np.linspace(0.0, 1.0, len(SALIENCY_COLOURS))
    ramp = np.array([_rgb(colour) for colour in SALIENCY_COLOURS], dtype=np.float64)
    heat = np.stack([np.interp(level, anchors, ramp[:, channel]) for channel in range(3)], axis=2)
    opacity = _HEAT_OPACITY * np.sqrt(level)[:, :, None]
    return np.rint((1 - opacity) * panel + opacity * heat).astype(np.uint8)


def _unit_range(saliency: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale magnitudes so that the 99.5th percentile is 1; a map of zeros stays zero."""
    magnitude = np.abs(np.nan_to_num(saliency.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0))
    top = float(np.percentile(magnitude, _BRIGHTEST_PERCENTILE)) or float(magnitude.max())
    return np.clip(magnitude / top, 0.0, 1.0) if top > 0 else magnitude


def _side_by_side(panels: list[Pixels]) -> Pixels:
    gap = np.zeros((panels[0].shape[0], _GAP_PX, 3), dtype=np.uint8)
    pieces = [piece for panel in panels for piece in (gap, panel)][1:]
    return np.concatenate(pieces, axis=1)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
