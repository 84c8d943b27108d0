"""Grey levels made comparable between hospitals, image by image: nothing is learned from patients and nothing shared.

Exposure, detector and post-processing differ between hospitals and are the easiest thing for a classifier to read.
"""

import torch
from torch import Tensor

GREYS = 256


def equalised(images: Tensor) -> Tensor:
    """Return images [n, 1, S, S] whose grey levels are their ranks: all levels equally frequent (PIL's equalize).

    Black is not counted: around a fitted image it is not part of it.
    """
    grey = (images * (GREYS - 1)).round().long().flatten(1)
    counts = torch.zeros(images.shape[0], GREYS, dtype=images.dtype, device=images.device)
    counts = counts.scatter_add(1, grey, torch.ones_like(grey, dtype=images.dtype))  # out of place: under vmap too
    cumulative = (counts * (torch.arange(GREYS, device=images.device) > 0)).cumsum(1)
    return (cumulative / cumulative[:, -1:].clamp(min=1.0)).gather(1, grey).view_as(images)
