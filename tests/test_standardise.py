import pytest
import torch

from multimix.config import preset
from multimix.network import new_network
from multimix.standardise import standardise


def public_images(count=40):
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_standardising_changes_no_prediction():
    network, images = new_network(preset("private", image_size=32, width=4).network, 0), public_images()
    other = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = network.classify(network.encode(other))
        standardise(network, images)
        torch.testing.assert_close(network.classify(network.encode(other)), before, atol=1e-4, rtol=1e-4)
        standardise(network, images[:20])  # and again, on top of the first
        torch.testing.assert_close(network.classify(network.encode(other)), before, atol=1e-4, rtol=1e-4)


def test_standardised_features_of_the_public_images_have_mean_0_and_deviation_1():
    network, images = new_network(preset("private", image_size=32, width=4).network, 0), public_images()
    standardise(network, images)
    classifier = network.classifier
    with torch.no_grad():
        features = classifier.features(network.encode(images))
    scaled = (features - classifier.standard_mean) * classifier.standard_scale
    torch.testing.assert_close(scaled.mean(0), torch.zeros(64), atol=2e-2, rtol=0)
    torch.testing.assert_close(scaled.std(0), torch.ones(64), atol=2e-2, rtol=0)


def test_a_network_without_constants_is_refused():
    with pytest.raises(ValueError, match="standardised"):
        standardise(new_network(preset("modern", image_size=32, width=2).network, 0), public_images(2))
