"""Features of evaluation pictures kept from earlier: the bits of the tower, and none twice."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import picture
from transformers import VisionTextDualEncoderModel

from cit_curate.storage.row_cache import RowCache, values_path
from cit_curate.text_encoder.text_models import load_text_model
from cit_train.evaluation import pooled_images as module
from cit_train.evaluation.pooled_images import open_kept_images, pooled_images
from cit_train.models.dual_encoder import build_dual_encoder
from cit_train.models.pooled_vision import PooledVision
from cit_train.models.towers import load_vision_tower

NUM_PICTURES = 110


@pytest.fixture(scope="module")
def model(world: Path) -> VisionTextDualEncoderModel:
    text = load_text_model(world / "text", "tiny", pooling="pooler")
    vision = load_vision_tower(str(world / "vision"))
    return build_dual_encoder(vision, text, projection_dim=16, seed=0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(NUM_PICTURES)]
    for number, path in enumerate(paths):
        path.write_bytes(picture("red", "noise", number))
    return paths


@pytest.fixture
def kept(tmp_path: Path) -> Callable[[], RowCache]:
    """Gives the kept features of a folder, as another process opens them."""
    return lambda: open_kept_images(tmp_path, "f" * 64, "cpu", max_bytes=None)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many pictures were decoded, and how many went through the tower."""
    counts = {"decoded": 0, "encoded": 0}
    view, encode = module.eval_view, PooledVision.__call__

    def counted_view(image, *, side: int) -> torch.Tensor:
        counts["decoded"] += 1
        return view(image, side=side)

    def counted_encode(self: PooledVision, views: torch.Tensor) -> torch.Tensor:
        counts["encoded"] += len(views)
        return encode(self, views)

    monkeypatch.setattr(module, "eval_view", counted_view)
    monkeypatch.setattr(PooledVision, "__call__", counted_encode)
    return counts


def test_features_have_the_same_bits_from_no_an_empty_a_half_full_and_a_full_cache(
    model: VisionTextDualEncoderModel,
    paths: list[Path],
    kept: Callable[[], RowCache],
    done: dict[str, int],
) -> None:
    plain = pooled_images(model, paths)
    half = pooled_images(model, paths[::2], kept=kept())
    assert torch.equal(half.vectors, plain.vectors[::2])
    assert done == {"decoded": 165, "encoded": 165}
    for num_new in (55, 0):
        done.update(decoded=0, encoded=0)
        again = pooled_images(model, paths, kept=kept())
        assert torch.equal(again.vectors, plain.vectors)
        assert again.vectors.dtype == torch.float32
        assert torch.equal(again.rows, plain.rows)
        assert done == {"decoded": num_new, "encoded": num_new}


def test_an_unreadable_picture_is_reported_by_every_evaluation(
    model: VisionTextDualEncoderModel,
    paths: list[Path],
    kept: Callable[[], RowCache],
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:60])
    several = [*paths[:5], broken, *paths]
    plain = pooled_images(model, several)
    assert plain.rejected
    for _ in range(2):
        again = pooled_images(model, several, kept=kept())
        assert again.rejected == plain.rejected
        assert torch.equal(again.rows, plain.rows)
        assert torch.equal(again.vectors, plain.vectors)


def test_a_picture_that_was_changed_is_encoded_again(
    model: VisionTextDualEncoderModel,
    paths: list[Path],
    kept: Callable[[], RowCache],
    done: dict[str, int],
    tmp_path: Path,
) -> None:
    path = tmp_path / "one.png"
    for number in (0, 1, 0):
        path.write_bytes(paths[number].read_bytes())
        changed = pooled_images(model, [path], kept=kept()).vectors
        assert torch.equal(changed, pooled_images(model, [paths[number]]).vectors)
    assert done["encoded"] == 3 + 2


def test_damaged_features_are_removed_with_a_warning_and_computed_again(
    model: VisionTextDualEncoderModel,
    paths: list[Path],
    kept: Callable[[], RowCache],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = pooled_images(model, paths, kept=kept())
    (path,) = tmp_path.rglob("*.keys.npy")
    content = bytearray(values_path(path).read_bytes())
    content[-1] ^= 1
    values_path(path).write_bytes(content)
    again = pooled_images(model, paths, kept=kept())
    assert torch.equal(again.vectors, plain.vectors)
    assert "removed" in caplog.text
