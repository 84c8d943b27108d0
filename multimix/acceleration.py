"""What may make training faster on a GPU and changes the last digits: nothing unless asked for.

Audits and resumed runs compare bits, so a site trains exactly. Experiments on a GPU may choose, and their manifests say
what they chose.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import torch
from torch import nn

from multimix.config import Frozen


class Acceleration(Frozen):
    """Ways to compute the same step faster, each on its own."""

    precision: Literal["float32", "bfloat16"] = "float32"  # of convolutions; weights, losses and scores stay float32
    channels_last: bool = False  # layout of weights and features
    compiled: bool = False  # each block of two convolutions as one kernel (torch.compile)

    @property
    def in_words(self) -> str:
        """What is not exact, to stand behind the name of a device; empty where all is."""
        chosen: list[str] = [self.precision] if self.precision != "float32" else []
        chosen += [name for name in ("channels_last", "compiled") if getattr(self, name)]
        return "".join(f", {name}" for name in chosen)

    @contextmanager
    def casting(self, device: torch.device) -> Iterator[None]:
        """Compute in the chosen precision."""
        if self.precision == "float32":
            yield
            return
        with torch.autocast(device.type, torch.bfloat16):
            yield

    def prepare(self, network: nn.Module, blocks: Iterator[nn.Module]) -> None:
        """Lay out the weights, and compile the blocks at their first use."""
        if self.channels_last:
            for weight in network.parameters():
                if weight.dim() == _IMAGES:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        if self.compiled:
            for block in blocks:
                block.compile()


_IMAGES: Final = 4  # dimensions of a convolution's weights, as of images
EXACT: Final = Acceleration()
