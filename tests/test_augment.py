from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SIZE

from multimix.augment import Recipe, apply, apply_to_masks, strong_recipe, weak_recipe
from multimix.config import GeometricOperation, PhotometricOperation, ViewConfig

PHOTOMETRIC = get_args(PhotometricOperation)
GEOMETRIC = get_args(GeometricOperation)
STILL = ViewConfig(flip=False, weak_translate=0, weak_rotate_degrees=0, weak_scale=0)
EVERYTHING = ViewConfig(photometric=PHOTOMETRIC, geometric=GEOMETRIC)
IDENTITY = np.eye(2, 3)
MIRROR = np.array([[-1.0, 0, 0], [0, 1, 0]])


def radiographs(count=1, seed=0, low=0.1, high=0.9):
    values = np.random.default_rng(seed).random((count, 1, SIZE, SIZE), dtype=np.float32)
    return torch.from_numpy(low + (high - low) * values)


def changed(operation, level, image, seed=3):
    return apply(image, [Recipe(IDENTITY, ((operation, level),), seed)])


def test_a_weak_view_of_magnitude_zero_is_the_image():
    images = radiographs(4)
    assert torch.equal(apply(images, [weak_recipe(STILL, seed) for seed in range(4)]), images)


@pytest.mark.parametrize("size", [48, 96, 128])
def test_at_any_size_it_is_the_image_within_a_tenth_of_a_grey_level(size):
    image = torch.rand(1, 1, size, size)
    assert float((apply(image, [weak_recipe(STILL, 1)]) - image).abs().max()) < 0.1 / 255


def test_the_flip_mirrors_left_and_right_of_about_half_the_images():
    image, views = radiographs(), STILL.model_copy(update={"flip": True})
    mirrored = [torch.equal(apply(image, [weak_recipe(views, seed)]), image.flip(-1)) for seed in range(100)]
    plain = [torch.equal(apply(image, [weak_recipe(views, seed)]), image) for seed in range(100)]
    assert sum(mirrored) + sum(plain) == 100
    assert 30 < sum(mirrored) < 70  # four standard deviations of a fair coin


def test_mirrored_twice_is_the_image():
    image, recipe = radiographs(), [Recipe(MIRROR, (), 0)]
    assert not torch.equal(apply(image, recipe), image)
    assert torch.equal(apply(apply(image, recipe), recipe), image)


def test_a_recipe_shifts_image_and_mask_by_whole_pixels_and_fills_with_black():
    image, shift = radiographs(), 4
    recipe = [Recipe(np.array([[1, 0, 2 * shift / SIZE], [0, 1, 0]]), (), 0)]
    expected = torch.zeros_like(image)
    expected[..., :-shift] = image[..., shift:]
    torch.testing.assert_close(apply(image, recipe), expected, rtol=0, atol=1e-5)
    mask = (image > 0.5).float()
    assert torch.equal(apply_to_masks(mask, recipe), (expected > 0.5).float())


def test_a_quarter_turn_turns_image_and_mask_alike():
    image = radiographs()
    recipe = [Recipe(np.array([[0.0, -1, 0], [1, 0, 0]]), (), 0)]
    turned = next(k for k in (1, 3) if torch.allclose(apply(image, recipe), image.rot90(k, (2, 3)), atol=1e-5))
    mask = (image > 0.5).float()
    assert torch.equal(apply_to_masks(mask, recipe), mask.rot90(turned, (2, 3)))


@pytest.mark.parametrize("fraction", [0.125, 0.25])
def test_weak_shifts_stay_within_their_fraction_of_the_image_and_reach_most_of_it(fraction):
    views, pixels = STILL.model_copy(update={"weak_translate": fraction}), fraction * SIZE
    dot = torch.zeros(1, 1, SIZE, SIZE)
    dot[..., SIZE // 2, SIZE // 2] = 1.0
    grid = torch.arange(SIZE).float()
    columns = []
    for seed in range(60):
        seen = apply(dot, [weak_recipe(views, seed)])[0, 0]
        columns.append(float((seen.sum(0) * grid).sum() / seen.sum()) - SIZE // 2)
    assert max(map(abs, columns)) <= pixels + 1e-3
    assert min(columns) < -0.8 * pixels
    assert max(columns) > 0.8 * pixels


def test_scaling_enlarges_and_shrinks_by_three_tenths_at_full_magnitude():
    square = torch.zeros(1, 1, SIZE, SIZE)
    square[..., 11:21, 11:21] = 1.0
    views = STILL.model_copy(
        update={"geometric": ("scale",), "photometric": (), "strong_operations": 1, "strong_magnitude": 30.0}
    )
    seen = [apply(square, [strong_recipe(views, seed, geometric=True)]) for seed in range(20)]
    sides = sorted({round(float(view.sum() ** 0.5), 1) for view in seen})
    assert sides == [pytest.approx(7, abs=0.3), pytest.approx(13, abs=0.3)]


@settings(max_examples=20, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**62), min_size=2, max_size=5, unique=True), data=st.data())
def test_a_view_depends_on_its_own_seed_and_image_only(seeds, data):
    order = data.draw(st.permutations(range(len(seeds))))
    images = radiographs(len(seeds))
    recipes = [strong_recipe(EVERYTHING, seed, geometric=True) for seed in seeds]
    together = apply(images, recipes)
    torch.testing.assert_close(apply(images[order], [recipes[i] for i in order]), together[order], rtol=0, atol=1e-6)
    alone = torch.cat([apply(images[i : i + 1], [recipes[i]]) for i in range(len(seeds))])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


def test_different_seeds_see_the_image_differently():
    image = radiographs()
    views = [apply(image, [weak_recipe(ViewConfig(), seed)]) for seed in range(3)]
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**62), low=st.floats(0, 1), high=st.floats(0, 1), magnitude=st.floats(0, 30))
def test_every_view_stays_between_black_and_white(seed, low, high, magnitude):
    image = radiographs(low=low, high=high)
    views = EVERYTHING.model_copy(update={"strong_operations": 4, "strong_magnitude": magnitude})
    seen = apply(image, [strong_recipe(views, seed, geometric=True)])
    assert bool(torch.isfinite(seen).all())
    assert float(seen.min()) >= 0.0
    assert float(seen.max()) <= 1.0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**62))
def test_a_strong_view_without_geometry_lies_exactly_over_its_weak_view(seed):
    strong = strong_recipe(EVERYTHING, seed, geometric=False)
    assert np.array_equal(strong.affine, weak_recipe(EVERYTHING, seed).affine)
    assert len(strong.photometric) == 2
    bare = Recipe(strong.affine, (), seed)
    image = radiographs()
    assert torch.equal(apply(image, [bare]), apply(image, [weak_recipe(EVERYTHING, seed)]))


def test_a_strong_shift_comes_on_top_of_the_weak_view():
    # Full translation is 0.45 of the image, so magnitude 25 of 30 moves 0.375 of 32 pixels: 12.
    views = STILL.model_copy(
        update={
            "flip": True,
            "geometric": ("translate_x",),
            "photometric": (),
            "strong_operations": 1,
            "strong_magnitude": 25.0,
        }
    )
    image = radiographs()
    seen_shifts = set()
    for seed in range(12):
        weak = apply(image, [weak_recipe(views, seed)])
        left, right = torch.zeros_like(weak), torch.zeros_like(weak)
        left[..., :-12], right[..., 12:] = weak[..., 12:], weak[..., :-12]
        strong = apply(image, [strong_recipe(views, seed, geometric=True)])
        close = [torch.allclose(strong, shifted, atol=1e-5) for shifted in (left, right)]
        assert sum(close) == 1
        seen_shifts.add((close[0], torch.equal(weak, image)))
    assert len(seen_shifts) == 4  # to both sides, of mirrored images and others


def test_a_strong_shift_is_measured_on_the_weak_view_whatever_its_scale():
    changes = {"weak_scale": 0.5, "geometric": ("translate_x",), "photometric": ()}
    views = STILL.model_copy(update={**changes, "strong_operations": 1, "strong_magnitude": 20.0})
    centre = torch.zeros(1, 1, SIZE, SIZE)
    centre[..., 14:18, 14:18] = 1.0
    columns = torch.arange(SIZE) - (SIZE - 1) / 2
    for seed in range(6):  # the middle stays where it is at any scale, then moves 0.45 x 20 / 30 of 32 pixels
        seen = apply(centre, [strong_recipe(views, seed, geometric=True)])[0, 0]
        assert abs(float((seen.sum(0) * columns).sum() / seen.sum())) == pytest.approx(9.6, abs=0.25)  # sampling blurs


@pytest.mark.parametrize("operation", GEOMETRIC)
def test_every_geometric_operation_moves_the_image_and_its_mask(operation):
    views = STILL.model_copy(update={"geometric": (operation,), "photometric": (), "strong_operations": 1})
    recipe = [strong_recipe(views, 3, geometric=True)]
    image = radiographs()
    assert not torch.allclose(apply(image, recipe), image, atol=0.05)
    mask = torch.zeros_like(image)
    mask[..., 4:20, 6:14] = 1.0
    warped = apply_to_masks(mask, recipe)
    assert not torch.equal(warped, mask)
    assert torch.equal(warped, (apply(mask, recipe) >= 0.5).float())  # as an image of the same shape
    assert set(warped.unique().tolist()) == {0.0, 1.0}


def test_masks_ignore_photometric_operations():
    mask = (radiographs() > 0.5).float()
    recipe = Recipe(IDENTITY, tuple((name, 0.9) for name in PHOTOMETRIC), 3)
    assert torch.equal(apply_to_masks(mask, [recipe]), mask)


@pytest.mark.parametrize("operation", PHOTOMETRIC)
@pytest.mark.parametrize("level", [1 / 3, -1 / 3])
def test_every_photometric_operation_but_identity_changes_the_image(operation, level):
    image = radiographs()
    seen = changed(operation, level, image)
    assert torch.equal(seen, image) is (operation == "identity")
    assert torch.equal(changed(operation, level, image), seen)


# Autocontrast and equalise have no strength; gamma lifts pure black, absent here.
@pytest.mark.parametrize("operation", sorted(set(PHOTOMETRIC) - {"autocontrast", "equalize", "cutout", "posterize"}))
def test_an_operation_of_magnitude_zero_is_the_identity(operation):
    image = radiographs()
    torch.testing.assert_close(changed(operation, 0.0, image), image, rtol=0, atol=1e-6)


def test_brightness_multiplies():
    image = radiographs()
    torch.testing.assert_close(changed("brightness", 1 / 3, image), (image * 1.3).clamp(max=1))
    torch.testing.assert_close(changed("brightness", -1 / 3, image), image * 0.7)


def test_contrast_spreads_around_the_mean():
    image = radiographs(low=0.3, high=0.6)
    seen = changed("contrast", 1 / 3, image)
    assert float(seen.mean()) == pytest.approx(float(image.mean()), abs=1e-5)
    assert float(seen.std()) == pytest.approx(1.3 * float(image.std()), rel=1e-4)


def test_autocontrast_uses_the_whole_range():
    seen = changed("autocontrast", 0.3, radiographs(low=0.4, high=0.5))
    assert (float(seen.min()), float(seen.max())) == (0.0, pytest.approx(1.0))


def test_equalise_gives_every_part_of_the_range_its_share():
    image = radiographs(low=0.1, high=0.9) ** 3
    seen = changed("equalize", 0.3, image).flatten()
    shares = torch.histc(seen, bins=4, min=0, max=1) / seen.numel()
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.05)


def test_equalise_leaves_the_black_around_an_image_out_of_the_count():
    image = radiographs()
    image[..., :16] = 0.0
    seen = changed("equalize", 0.3, image)
    assert float(seen[..., :16].max()) == 0.0
    assert float(seen[..., 16:].mean()) == pytest.approx(0.5, abs=0.05)


def test_posterise_leaves_the_levels_of_its_bits():
    assert len(changed("posterize", 1.0, torch.linspace(0, 1, SIZE**2).view(1, 1, SIZE, SIZE)).unique()) == 2**4


def test_solarise_inverts_the_brightest():
    image = radiographs()
    expected = torch.where(image >= 0.75, 1 - image, image)
    assert torch.equal(changed("solarize", 0.25, image), expected)
    assert bool((expected != image).any())


def test_gamma_moves_grey_but_keeps_white():
    image = torch.full((1, 1, SIZE, SIZE), 0.5)
    image[..., 0] = 1.0
    darker, lighter = changed("gamma", 1 / 3, image), changed("gamma", -1 / 3, image)
    assert float(darker[0, 0, 5, 5]) == pytest.approx(0.5 ** float(np.exp(0.4)), rel=1e-5)
    assert float(lighter[0, 0, 5, 5]) == pytest.approx(0.5 ** float(np.exp(-0.4)), rel=1e-5)
    assert float(darker[..., 0].min()) == 1.0


def test_blur_smooths_and_sharpness_undoes_smoothness():
    image = radiographs(low=0.4, high=0.6)
    assert float(changed("blur", 0.3, image).std()) < float(image.std())
    assert float(changed("sharpness", 0.3, image).std()) > float(image.std())
    flat = torch.full((1, 1, SIZE, SIZE), 0.5)
    torch.testing.assert_close(changed("blur", 1.0, flat), flat)


def test_noise_has_its_stated_strength_and_no_bias():
    flat = torch.full((1, 1, SIZE, SIZE), 0.5)
    noise = changed("noise", 1 / 3, flat) - flat
    assert float(noise.std()) == pytest.approx(0.05, rel=0.15)
    assert abs(float(noise.mean())) < 4 * 0.05 / SIZE
    assert not torch.equal(changed("noise", 1 / 3, flat, seed=4) - flat, noise)


def test_cutout_covers_one_square_with_the_mean():
    image = radiographs()
    seen = changed("cutout", 0.5, image)
    covered = seen != image
    assert int(covered.sum()) == 8**2  # half the side at level 1, a quarter at 0.5
    assert seen[covered].unique().tolist() == pytest.approx([float(image.mean())])
    across = covered[0, 0].any(dim=0).nonzero()[:, 0]
    assert int(across[-1] - across[0]) == 7


def test_repeated_operations_of_one_recipe_draw_afresh():
    flat = torch.full((1, 1, SIZE, SIZE), 0.5)
    once = apply(flat, [Recipe(IDENTITY, (("noise", 0.3),), 1)]) - flat
    twice = apply(flat, [Recipe(IDENTITY, (("noise", 0.3), ("noise", 0.3)), 1)]) - flat
    assert float(twice.std() / once.std()) == pytest.approx(2**0.5, rel=0.15)


def test_without_operations_to_choose_from_the_strong_view_is_the_weak_one():
    views = ViewConfig(photometric=(), geometric=("rotate",))
    assert np.array_equal(strong_recipe(views, 1, geometric=False).affine, weak_recipe(views, 1).affine)


def test_images_given_are_not_changed_in_place():
    images = radiographs(2)
    before = images.clone()
    apply(images, [strong_recipe(EVERYTHING, seed, geometric=True) for seed in (1, 2)])
    assert torch.equal(images, before)
