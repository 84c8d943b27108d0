"""Standardise the classifier's features with public images, so that clipped gradients keep what tells images apart.

The predictions of the model stay the same: the linear layer takes up what the constants change. Only images that need
no protection may be used: the constants are part of the model and not differentially private.
"""

import torch
from torch import Tensor

from multimix.network import MultiMixNetwork

_SMALLEST = 1e-3  # of a feature's standard deviation: one that never varies is not blown up
BATCH = 32


def standardise(network: MultiMixNetwork, images: Tensor) -> None:
    """Set mean and scale to those of public images [n, 1, S, S]; ValueError for a network without such constants."""
    classifier = network.classifier
    if classifier is None or classifier.standard_mean is None or classifier.standard_scale is None:
        raise ValueError("this network has no standardised classifier (network.standardised = true)")
    with torch.no_grad():
        parts = [classifier.features(network.encode(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
        features = torch.cat(parts).double()
        mean, deviation = features.mean(0), features.std(0).clamp(min=_SMALLEST)
        # logits = W (f - m) s + b, before and after, for every f
        effective = classifier.linear.weight.double() * classifier.standard_scale.double()
        bias = classifier.linear.bias.double() + effective @ (mean - classifier.standard_mean.double())
        classifier.linear.weight.copy_(effective * deviation)
        classifier.linear.bias.copy_(bias)
        classifier.standard_mean.copy_(mean)
        classifier.standard_scale.copy_(1.0 / deviation)
