"""The bridge from the classifier to the decoder: what in the image moves the predicted class.

Saliency is |d predicted-class score / d image| (Simonyan et al. 2014, arXiv 1312.6034), with respect to the input
only: parameters are held constant, so no parameter gradient is computed, none is overwritten, and the
result is detached data. There is no dropout in it and no mode to restore.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from multimix.network import BRIDGE_REDUCTION, MultiMixNetwork
from multimix.randomness import derive_seed

_EPSILON = 1e-12


@dataclass(frozen=True)
class Viewed:
    """What one deterministic pass of the encoder shows of images; all detached."""

    levels: list[Tensor]
    class_logits: Tensor | None  # [n, 2]
    saliency: Tensor | None  # [n, 1, S, S], scaled as the configuration says
    bridge: Tensor | None  # [n, 2, S/8, S/8]


def view(network: MultiMixNetwork, images: Tensor) -> Viewed:
    """Encode images [n, 1, S, S] without dropout and return levels, class scores, saliency and bridge."""
    images = images.detach()
    if network.config.bridge not in ("saliency", "shuffled"):
        with torch.no_grad():
            levels = network.encode(images)
            logits = network.classify(levels) if network.config.classification else None
            substitute = _substitute(network.config.bridge, images)
            return Viewed(levels, logits, substitute, _bridge(network.shown(images), substitute))
    # Parameters as constants: autograd then walks back to the image alone.
    constants = {name: value.detach() for name, value in network.named_parameters()}
    pixels = images.clone().requires_grad_()
    with torch.enable_grad():
        levels, logits = functional_call(_Scored(network), {f"network.{k}": v for k, v in constants.items()}, pixels)
        (gradient,) = torch.autograd.grad(logits.max(dim=1).values.sum(), pixels)
    saliency = _scaled(gradient.abs(), network.config.saliency_scale)
    if network.config.bridge == "shuffled":
        saliency = _shuffled(saliency, images)
    bridge = _bridge(network.shown(images), saliency)
    return Viewed([level.detach() for level in levels], logits.detach(), saliency, bridge)


class _Scored(torch.nn.Module):
    """Encoder and classifier as one call, for `functional_call`."""

    def __init__(self, network: MultiMixNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        levels = self.network.encode(images)
        return levels, self.network.classify(levels)


def _scaled(saliency: Tensor, scale: str) -> Tensor:
    """Leave the gradient as it is (`raw`, the paper) or divide each image's by its largest value (`max`)."""
    if scale == "raw":
        return saliency
    return saliency / (saliency.amax(dim=(1, 2, 3), keepdim=True) + _EPSILON)


def _substitute(bridge: str, images: Tensor) -> Tensor | None:
    """Return a control in the place of the saliency; the random one depends on the image's grey levels alone."""
    if bridge == "off":
        return None
    if bridge == "zero":
        return torch.zeros_like(images)
    maps = [torch.rand(images.shape[1:], generator=generator) for generator in _generators(images, "random saliency")]
    return torch.stack(maps).to(images) if maps else torch.empty_like(images)


def _shuffled(saliency: Tensor, images: Tensor) -> Tensor:
    """Return each image's saliency with its pixels in an order that depends on the image's grey levels alone."""
    flat = saliency.flatten(1)
    for position, generator in enumerate(_generators(images, "shuffled saliency")):
        flat[position] = flat[position, torch.randperm(flat.shape[1], generator=generator).to(flat.device)]
    return flat.view_as(saliency)


def _generators(images: Tensor, purpose: str) -> Iterator[torch.Generator]:
    """Return a generator for each image, keyed by its grey levels: the same in whatever batch it is."""
    for pixels in (images.detach() * 255.0).round().to(torch.uint8).cpu().numpy():
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest()
        yield torch.Generator().manual_seed(derive_seed(purpose, digest))


def _bridge(images: Tensor, saliency: Tensor | None) -> Tensor | None:
    """Image and saliency, averaged down to the first decoder stage's size."""
    if saliency is None:
        return None
    return functional.avg_pool2d(torch.cat([images, saliency], dim=1), BRIDGE_REDUCTION)
