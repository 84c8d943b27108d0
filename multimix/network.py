"""The network: a U-Net whose encoder also classifies (Haque et al. 2021, section 3; arXiv 2110.13185).

A network has no train and eval mode. Dropout is an argument: without it, forward passes are deterministic.
Convolutions carry no bias because the instance normalisation behind them removes it. Nothing mixes images: no
batch statistics, so the gradient of one patient's loss depends on that patient only.

Shapes: images are float32 [n, 1, S, S] in [0, 1]; S a multiple of 16, at least 32.
"""

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from multimix.acceleration import EXACT, Acceleration
from multimix.config import NetworkConfig
from multimix.intensity import equalised
from multimix.randomness import derive_seed, stream

CLASSES = ("normal", "pneumonia")
_SLOPE = 0.2
BLOCKS = 5
BRIDGE_REDUCTION = 8  # the bridge enters the first decoder stage, at an eighth of the image size


class Dropout:
    """Dropout masks keyed by image, never by position in the batch or order of computation."""

    def __init__(self, seeds: Sequence[int], probability: float, kind: Literal["element", "channel"]) -> None:
        """One seed for each image of the batch; `kind` drops single elements or whole channels."""
        self.seeds = tuple(seeds)
        self.probability = probability
        self.kind = kind

    def __call__(self, features: Tensor, layer: int) -> Tensor:
        """Return `features` [n, c, h, w] with this layer's masks applied, scaled to keep the mean."""
        return features if self.probability == 0.0 else features * self.masks(features, layer)

    def masks(self, features: Tensor, layer: int) -> Tensor:
        """Return this layer's scaled masks for `features` [n, c, h, w]: [n, c, 1, 1] where whole channels drop."""
        keep = 1.0 - self.probability
        if self.kind == "channel":
            rows = [stream("dropout", seed, layer).random(features.shape[1]) for seed in self.seeds]
            mask = torch.from_numpy(np.stack(rows) < keep)[:, :, None, None]
            return mask.to(features.device, features.dtype) / keep
        mask = torch.empty(features.shape, dtype=features.dtype, device=features.device)
        generator = torch.Generator(device=features.device)
        for image, seed in enumerate(self.seeds):
            generator.manual_seed(derive_seed("dropout", seed, layer))
            mask[image].bernoulli_(keep, generator=generator)
        return mask.div_(keep)

    def at(self, images: Sequence[int]) -> "Dropout":
        """Return the masks of some images of the batch, in the order given."""
        return Dropout([self.seeds[image] for image in images], self.probability, self.kind)


class Block(nn.Module):
    """Two 3x3 convolutions, each followed by instance normalisation and LeakyReLU(0.2)."""

    def __init__(self, channels_in: int, channels_out: int, *, affine: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm2d(channels_out, affine=affine)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm2d(channels_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels_in, h, w] to [n, channels_out, h, w]."""
        x = functional.leaky_relu(self.norm1(self.conv1(x)), _SLOPE)
        return functional.leaky_relu(self.norm2(self.conv2(x)), _SLOPE)


class Encoder(nn.Module):
    """Five blocks with max-pooling between them."""

    def __init__(self, width: int, *, affine: bool) -> None:
        super().__init__()
        channels = [1] + [width * 2**level for level in range(BLOCKS)]
        self.blocks = nn.ModuleList(
            Block(channels[level], channels[level + 1], affine=affine) for level in range(BLOCKS)
        )

    def forward(self, images: Tensor, dropout: Dropout | None) -> list[Tensor]:
        """Return the features of each level, finest first."""
        x = images * 2.0 - 1.0  # the one normalisation; a constant, never derived from patients
        levels: list[Tensor] = []
        for level, block in enumerate(self.blocks):
            x = block(functional.max_pool2d(x, 2) if level else x)
            x = dropout(x, level) if dropout else x
            levels.append(x)
        return levels


class Classifier(nn.Module):
    """Fifth max-pool, global average, linear layer to the two classes.

    `standardised` features have a mean subtracted and a scale applied: constants of the model that no training moves,
    taken from public images (`multimix.standardise`). Without them the features' common part, some twenty times what
    tells images apart, uses up the norm that a clipped gradient may have.
    """

    def __init__(self, channels: int, *, standardised: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, len(CLASSES))
        self.standard_mean = nn.Parameter(torch.zeros(channels), requires_grad=False) if standardised else None
        self.standard_scale = nn.Parameter(torch.ones(channels), requires_grad=False) if standardised else None

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return logits [n, 2]."""
        features = self.features(levels)
        if self.standard_mean is not None and self.standard_scale is not None:
            features = (features - self.standard_mean) * self.standard_scale
        logits: Tensor = self.linear(features)
        return logits

    def features(self, levels: list[Tensor]) -> Tensor:
        """Return the pooled features [n, channels], not standardised."""
        return functional.max_pool2d(levels[-1], 2).mean(dim=(2, 3))


class Decoder(nn.Module):
    """Four bilinear upsampling stages; the bridge joins the first."""

    def __init__(self, width: int, *, bridge_channels: int, affine: bool) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(BLOCKS)]
        self.blocks = nn.ModuleList()
        for level in range(BLOCKS - 2, -1, -1):
            extra = bridge_channels if level == BLOCKS - 2 else 0
            self.blocks.append(Block(channels[level + 1] + channels[level] + extra, channels[level], affine=affine))
        self.output = nn.Conv2d(width, 1, 1)

    def forward(self, levels: list[Tensor], bridge: Tensor | None, dropout: Dropout | None) -> Tensor:
        """Return mask logits [n, 1, S, S] from encoder levels and the bridge [n, 2, S/8, S/8]."""
        x = levels[-1]
        for stage, block in enumerate(self.blocks):
            skip = levels[BLOCKS - 2 - stage]
            up = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            parts = [up, skip] if bridge is None or stage else [up, skip, bridge]
            x = block(torch.cat(parts, dim=1))
            x = dropout(x, BLOCKS + stage) if dropout else x
        logits: Tensor = self.output(x)
        return logits


class MultiMixNetwork(nn.Module):
    """Encoder, classifier and decoder; which of the last two exist is the configuration's choice."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.acceleration = EXACT
        self.encoder = Encoder(config.width, affine=config.norm_affine)
        deepest = config.width * 2 ** (BLOCKS - 1)
        self.classifier = Classifier(deepest, standardised=config.standardised) if config.classification else None
        bridge_channels = 0 if config.bridge == "off" else 2
        self.decoder = (
            Decoder(config.width, bridge_channels=bridge_channels, affine=config.norm_affine)
            if config.segmentation
            else None
        )

    def accelerate(self, acceleration: Acceleration) -> None:
        """Compute differently from now on."""
        self.acceleration = acceleration
        acceleration.prepare(self, (module for module in self.modules() if isinstance(module, Block)))

    def shown(self, images: Tensor) -> Tensor:
        """Return images [n, 1, S, S] with the grey levels that this network reads; their gradient is passed through."""
        if self.config.intensity == "as-is":
            return images
        return images + (equalised(images) - images).detach()

    def encode(self, images: Tensor, dropout: Dropout | None = None) -> list[Tensor]:
        """Return the encoder's levels for images [n, 1, S, S]."""
        with self.acceleration.casting(images.device):
            levels: list[Tensor] = self.encoder(self.shown(images), dropout)
        return levels

    def classify(self, levels: list[Tensor]) -> Tensor:
        """Return class logits [n, 2]; ValueError if this network has no classifier."""
        if self.classifier is None:
            raise ValueError("this network has no classifier (network.classification = false)")
        with self.acceleration.casting(levels[-1].device):
            logits: Tensor = self.classifier(levels)
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    def decode(self, levels: list[Tensor], bridge: Tensor | None, dropout: Dropout | None = None) -> Tensor:
        """Return mask logits [n, 1, S, S]; ValueError if this network has no decoder."""
        if self.decoder is None:
            raise ValueError("this network has no decoder (network.segmentation = false)")
        with self.acceleration.casting(levels[-1].device):
            logits: Tensor = self.decoder(levels, bridge, dropout)
        return logits.float() if logits.dtype == torch.bfloat16 else logits


def copy_of(network: MultiMixNetwork) -> MultiMixNetwork:
    """Return a copy that computes as its original: a plain copy of a compiled network is not compiled."""
    copied = copy.deepcopy(network)
    copied.accelerate(network.acceleration)
    return copied


def new_network(config: NetworkConfig, seed: int) -> MultiMixNetwork:
    """Return a freshly initialised network; the same seed gives the same weights, whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial weights"))
        return MultiMixNetwork(config)
