import pytest
import torch
from support import random_images, tiny_network
from torch.func import vmap

from multimix.intensity import equalised
from multimix.saliency import view


def test_equalised_grey_levels_are_ranks():
    image = torch.tensor([[[[10.0, 20.0], [20.0, 200.0]]]]) / 255
    assert equalised(image).flatten().tolist() == pytest.approx([0.25, 0.75, 0.75, 1.0])


def test_black_is_no_level_of_the_image():
    image = torch.tensor([[[[0.0, 0.0], [100.0, 200.0]]]]) / 255
    assert equalised(image).flatten().tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0])


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 8, 8), torch.zeros(0, 1, 8, 8)], ids=["black", "none"])
def test_images_without_levels_stay_as_they_are(image):
    assert torch.equal(equalised(image), image)


def test_another_exposure_of_an_image_is_equalised_to_the_same():
    image = (torch.randint(1, 200, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0))) / 255
    brighter = image + 50 / 255
    torch.testing.assert_close(equalised(brighter), equalised(image))


def test_an_image_is_equalised_by_itself():
    images = random_images(3)
    alone = torch.cat([equalised(image[None]) for image in images])
    assert torch.equal(equalised(images), alone)
    assert torch.equal(vmap(lambda image: equalised(image[None])[0])(images), alone)


def test_a_network_that_equalises_sees_no_exposure():
    network, image = tiny_network(intensity="equalised"), random_images(1) * 0.5
    grey = (image * 255).round().clamp(min=1) / 255
    torch.testing.assert_close(
        network.classify(network.encode(grey)), network.classify(network.encode(grey + 40 / 255))
    )
    plain = tiny_network()
    assert not torch.allclose(plain.classify(plain.encode(grey)), plain.classify(plain.encode(grey**2)))


def test_the_saliency_of_a_network_that_equalises_is_that_of_what_it_sees():
    images = random_images(2)
    equalising, plain = tiny_network(intensity="equalised"), tiny_network()
    ours, theirs = view(equalising, images), view(plain, equalised(images))
    torch.testing.assert_close(ours.saliency, theirs.saliency)
    torch.testing.assert_close(ours.bridge, theirs.bridge)
    assert ours.saliency.max() > 0
