import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    TimmWrapperModel,
    VisionTextDualEncoderModel,
)

from cit_curate.errors import ConfigError
from cit_train.models.efficientnet_lite import (
    efficientnet_lite0_config,
    load_efficientnet_lite0,
    timm_state_dict,
)

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_names() -> Iterator[str]:
    """The 296 names of the published file, in its order."""

    def layers(prefix: str, *names: str) -> Iterator[str]:
        for name in names:
            for tensor in NORM if "_bn" in name else ("weight",):
                yield f"{prefix}{name}.{tensor}"

    yield from layers("", "_conv_stem", "_bn0")
    tail = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    for block in range(16):
        head = () if block == 0 else ("_expand_conv", "_bn0")
        yield from layers(f"_blocks.{block}.", *head, *tail)
    yield from layers("", "_conv_head", "_bn1")
    yield from ("_fc.weight", "_fc.bias")


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A state dict of the published names and shapes with random values."""
    torch.manual_seed(3)
    tensors = TimmWrapperModel(efficientnet_lite0_config()).timm_model.state_dict().values()
    classifier = (torch.zeros(1000, 1280), torch.zeros(1000))
    chained = itertools.chain(tensors, classifier)
    return dict(zip(published_names(), chained, strict=True))


@pytest.fixture(scope="module")
def weights_file(
    published: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(published, path)
    return path


def pixels(batch: int = 1) -> torch.Tensor:
    """float32 [batch, 3, 224, 224], the same on every machine."""
    size = batch * 3 * 224 * 224
    return torch.sin(torch.arange(size, dtype=torch.float32) * 0.01).reshape(batch, 3, 224, 224)


def test_all_296_published_names_map_to_timms_in_timms_order(
    published: dict[str, torch.Tensor],
) -> None:
    model = TimmWrapperModel(efficientnet_lite0_config()).timm_model
    assert len(published) == 296
    assert list(timm_state_dict(published)) == list(model.state_dict())


def test_the_loaded_tower_has_the_files_tensors_and_pools_to_1280(
    published: dict[str, torch.Tensor], weights_file: Path
) -> None:
    model = load_efficientnet_lite0(weights_file)
    assert not model.training
    loaded = model.timm_model.state_dict()
    assert torch.equal(
        loaded["blocks.1.0.conv_pwl.weight"], published["_blocks.1._project_conv.weight"]
    )
    with torch.no_grad():
        assert model(pixel_values=pixels(2)).pooler_output.shape == (2, 1280)


def test_bytes_are_normalised_as_the_weights_were_trained() -> None:
    config = efficientnet_lite0_config().pretrained_cfg
    for byte in (0, 127, 255):
        normalised = (byte / 255 - config["mean"][0]) / config["std"][0]
        assert normalised == pytest.approx((byte - 127) / 128, abs=1e-12)


def test_a_dual_encoder_of_it_is_equal_after_a_round_trip(
    weights_file: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    text = BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    vision = load_efficientnet_lite0(weights_file)
    model = VisionTextDualEncoderModel(vision_model=vision, text_model=text).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    inputs = {"input_ids": torch.arange(8).reshape(2, 4), "pixel_values": pixels(2)}
    with torch.no_grad():
        before, after = model(**inputs), again(**inputs)
    assert torch.equal(before.image_embeds, after.image_embeds)
    assert torch.equal(before.text_embeds, after.text_embeds)
    assert again.config.vision_config.pretrained_cfg == vision.config.pretrained_cfg
    assert again.config.vision_config.hidden_size == 1280


def test_a_file_of_other_names_or_too_few_tensors_is_refused_with_its_path(
    published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "other.pth"
    for tensors, what in (
        ({"_blocks.16._bn1.weight": torch.zeros(1)}, "unknown tensor '_blocks.16._bn1.weight'"),
        ({"conv1.weight": torch.zeros(1)}, "unknown tensor 'conv1.weight'"),
        (dict(itertools.islice(published.items(), 10)), "Missing key"),
        ([1, 2], "holds a list"),
    ):
        torch.save(tensors, path)
        with pytest.raises(ConfigError, match=r"other\.pth") as raised:
            load_efficientnet_lite0(path)
        assert what in str(raised.value)


def test_a_damaged_missing_or_code_carrying_file_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(ConfigError, match=r"weights\.pth is not a readable"):
        load_efficientnet_lite0(path)
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ConfigError, match=r"weights\.pth is not a readable"):
        load_efficientnet_lite0(path)
    torch.save({"_fc.weight": Path}, path)
    with pytest.raises(ConfigError, match=r"weights\.pth is not a readable"):
        load_efficientnet_lite0(path)


def test_the_real_weights_give_the_features_of_the_code_they_were_published_for() -> None:
    # Computed with efficientnet-lite-pytorch==0.1.0 on pixels(); other padding is off by 0.1 to 3.
    with torch.no_grad():
        features = load_efficientnet_lite0()(pixel_values=pixels()).pooler_output[0]
    best = features.topk(6)
    assert best.indices.tolist() == [576, 113, 455, 989, 782, 1042]
    expected = torch.tensor([5.2404, 4.4684, 3.8104, 3.5470, 2.8280, 2.7440])
    torch.testing.assert_close(best.values, expected, atol=1e-3, rtol=0)
