import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Normalize, RandomResizedCrop, Resize
from transformers import TimmWrapperConfig, ViTConfig

from cit_train.transforms import (
    MAX_ASPECT,
    CropBox,
    ImageStatistics,
    Normalizer,
    eval_view,
    image_statistics,
    random_resized_crop,
    train_view,
)

SIDES = st.integers(1, 600)
SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@given(SIDES, SIDES, st.integers(0, 2**32))
def test_a_box_lies_within_the_picture(width: int, height: int, seed: int) -> None:
    box = random_resized_crop((width, height), np.random.default_rng(seed))
    assert 0 <= box.left < box.right <= width
    assert 0 <= box.upper < box.lower <= height


@given(st.integers(50, 600), st.integers(50, 600), st.integers(0, 2**32))
def test_a_box_has_an_area_and_a_ratio_within_the_bounds(
    width: int, height: int, seed: int
) -> None:
    box = random_resized_crop((width, height), np.random.default_rng(seed))
    box_width, box_height = box.right - box.left, box.lower - box.upper
    # Half a pixel of rounding on either side; a long picture has the smaller fallback box.
    assert (box_width + 0.5) / (box_height - 0.5) >= RATIO[0]
    assert (box_width - 0.5) / (box_height + 0.5) <= RATIO[1]
    if RATIO[0] <= width / height <= RATIO[1]:
        assert (box_width + 0.5) * (box_height + 0.5) >= SCALE[0] * width * height


@pytest.mark.parametrize("size", [(320, 240), (200, 400), (97, 101)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    ours, theirs = [], []
    image = Image.new("RGB", size)
    num_draws = 2000
    for _ in range(num_draws):
        box = random_resized_crop(size, rng)
        ours.append((box.left, box.upper, box.right - box.left, box.lower - box.upper))
        upper, left, height, width = RandomResizedCrop.get_params(image, list(SCALE), list(RATIO))
        theirs.append((left, upper, width, height))
    # quantiles: int [9, 4]; the standard error of a median of 2,000 draws is about 1.5 % of the
    # spread.
    levels = np.linspace(0.1, 0.9, 9)
    difference = np.quantile(ours, levels, axis=0) - np.quantile(theirs, levels, axis=0)
    spread = np.std(theirs, axis=0) + 1
    assert np.abs(difference / spread).max() < 0.2
    assert np.abs(np.mean(ours, axis=0) - np.mean(theirs, axis=0)).max() < 0.1 * spread.max()


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1000, 30), CropBox(480, 0, 520, 30)),
        ((30, 1000), CropBox(0, 480, 30, 520)),
        ((1, 1), CropBox(0, 0, 1, 1)),
    ],
)
def test_a_picture_too_long_for_any_box_gives_its_centre(
    size: tuple[int, int], box: CropBox
) -> None:
    assert random_resized_crop(size, np.random.default_rng(0)) == box


def test_a_training_view_follows_from_its_generator() -> None:
    image = noise(300, 200)
    first = train_view(image, np.random.default_rng(5))
    assert torch.equal(first, train_view(image, np.random.default_rng(5)))
    assert not torch.equal(first, train_view(image, np.random.default_rng(6)))
    assert first.dtype == torch.uint8
    assert first.shape == (3, 224, 224)


def test_a_training_view_is_its_box_cropped_and_resized() -> None:
    # Smooth, so that what lies just outside the box does not show in its border.
    ramp = np.add.outer(np.linspace(0, 100, 300), np.linspace(0, 150, 400))
    image = Image.fromarray(np.stack([ramp, ramp / 2, 255 - ramp], axis=2).astype(np.uint8))
    view = train_view(image, np.random.default_rng(3), side=96)
    box = random_resized_crop(image.size, np.random.default_rng(3))
    plain = image.crop(box).resize((96, 96), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(plain)).permute(2, 0, 1)
    difference = (view.int() - expected.int()).abs()
    assert difference[:, 3:-3, 3:-3].max() <= 1
    assert difference.max() <= 2


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 500), st.integers(20, 500))
def test_an_evaluation_view_equals_torchvisions(width: int, height: int) -> None:
    image = noise(width, height)
    if max(width, height) > MAX_ASPECT * min(width, height):
        return
    plain = Compose([Resize(256), CenterCrop(224)])(image)
    expected = torch.from_numpy(np.array(plain)).permute(2, 0, 1)
    assert torch.equal(eval_view(image), expected)


def test_other_sides_are_resized_in_the_same_proportion() -> None:
    image = noise(500, 400)
    assert torch.equal(eval_view(image, side=112), eval_view(image, side=112, resize=128))
    assert eval_view(image, side=384).shape == (3, 384, 384)


@pytest.mark.parametrize("size", [(1, 5000), (3, 4000), (4001, 2)])
def test_a_strip_is_not_resized_whole(size: tuple[int, int]) -> None:
    # [height, width, 3], the middle third white
    values = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    long = int(size[1] > size[0])
    middle = slice(max(size) // 3, 2 * max(size) // 3)
    values[middle if long else slice(None), slice(None) if long else middle] = 255
    view = eval_view(Image.fromarray(values))
    assert view.shape == (3, 224, 224)
    assert view.min() == 255


def test_a_strip_gives_nearly_the_view_of_the_whole_resized_strip() -> None:
    image = noise(10, 301)
    plain = Compose([Resize(256), CenterCrop(224)])(image)
    expected = torch.from_numpy(np.array(plain)).permute(2, 0, 1)
    # The long side's length is cut to whole pixels after the resize: a shift within one pixel of
    # a view that shows 10 source pixels on 256.
    assert (eval_view(image).int() - expected.int()).abs().max() <= 12


def test_a_resize_below_the_side_is_refused() -> None:
    with pytest.raises(ValueError, match="below the view's 224"):
        eval_view(noise(300, 300), resize=200)


def test_a_normalizer_equals_torchvisions() -> None:
    pixels = torch.stack([eval_view(noise(64, 64, seed)) for seed in range(3)])
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    normalized = Normalizer(mean, std)(pixels)
    torch.testing.assert_close(normalized, Normalize(mean, std)(pixels.float() / 255))
    assert pixels.dtype == torch.uint8


def test_a_normalizer_keeps_channels_last() -> None:
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    last = pixels.contiguous(memory_format=torch.channels_last)
    normalized = Normalizer((0.5,) * 3, (0.5,) * 3)(last)
    assert normalized.is_contiguous(memory_format=torch.channels_last)


def test_statistics_of_a_timm_tower_are_its_own() -> None:
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96]}
    config = TimmWrapperConfig(architecture="resnet18", pretrained_cfg=own)
    assert image_statistics(config) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 96)


def test_statistics_of_other_towers_are_imagenets() -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert image_statistics(ViTConfig(image_size=32)) == ImageStatistics(*imagenet, 32)
    assert image_statistics(ViTConfig(image_size=(64, 64))) == ImageStatistics(*imagenet, 64)
    timm_without = TimmWrapperConfig(architecture="resnet18")
    assert image_statistics(timm_without) == ImageStatistics(*imagenet, 224)
