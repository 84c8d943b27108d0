"""Sample predictions as pictures: image, outlines of predicted and true mask, saliency."""

import numpy as np

from multimix.contract.messages import Picture
from multimix.data.store import Store
from multimix.evaluation import MASK_THRESHOLD, predict
from multimix.network import MultiMixNetwork
from multimix.pictures import overlay_strip, png_bytes

_LABELS = {0: "normal", 1: "pneumonia", 2: "other", -1: "unlabelled"}


def sample_pictures(network: MultiMixNetwork, store: Store, rows: np.ndarray, *, count: int) -> tuple[Picture, ...]:
    """Picture `count` images spread evenly over `rows`, over the masked ones where there are enough.

    Captions name no one.
    """
    masked = rows[store.mask_row[rows] >= 0]
    candidates = masked if len(masked) >= count else rows
    if not len(candidates):
        return ()
    chosen = candidates[np.unique(np.linspace(0, len(candidates) - 1, count).astype(int))]
    images = store.load_images(chosen)
    prediction = predict(network, images)
    pictures = []
    for position, row in enumerate(chosen):
        has_mask = store.mask_row[row] >= 0
        strip = overlay_strip(
            (images[position, 0].numpy() * 255).round().astype(np.uint8),
            prediction=prediction.mask[position] >= MASK_THRESHOLD if prediction.mask is not None else None,
            truth=store.load_masks(chosen[position : position + 1])[0, 0].numpy() >= MASK_THRESHOLD
            if has_mask
            else None,
            saliency=prediction.saliency[position] if prediction.saliency is not None else None,
        )
        caption = f"label {_LABELS[int(store.label[row])]}"
        if prediction.pneumonia is not None:
            caption += f", predicted pneumonia {prediction.pneumonia[position]:.2f}"
        pictures.append(Picture(caption=caption, png=png_bytes(strip)))
    return tuple(pictures)
