"""Engines of a frozen tower: the same features, whatever else is in the batch."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, PreTrainedModel, TimmWrapperConfig, TimmWrapperModel

from cit_curate.errors import ConfigError
from cit_train.models import AugregConfig, MocoConfig, vision_engine
from cit_train.models.folded import folded_copy
from cit_train.models.freeze import frozen_features
from cit_train.models.pooled_vision import CPU_ROWS, PooledVision
from cit_train.models.towers import load_vision_tower
from cit_train.models.vision_engine import OpenVinoTower, choose_engine
from cit_train.transforms import Normalizer

CPU = torch.device("cpu")
NORMALIZER = Normalizer((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
TINY = {"config_name": "test_vit", "image_size": 32}


def timm_tower(architecture: str) -> PreTrainedModel:
    torch.manual_seed(3)
    tower = TimmWrapperModel(TimmWrapperConfig(architecture=architecture, num_labels=0))
    for module in tower.modules():  # as in a trained tower, BatchNorm changes what it gets
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return tower


TOWERS: dict[str, Callable[[], PreTrainedModel]] = {
    "efficientnet": lambda: timm_tower("test_efficientnet"),
    "resnet": lambda: timm_tower("test_resnet"),
    "vit": lambda: timm_tower("test_vit"),
    "moco": lambda: AutoModel.from_config(MocoConfig(**TINY, projector_size=48)),
    "augreg": lambda: AutoModel.from_config(AugregConfig(**TINY, num_classes=11)),
}


def made(name: str) -> PreTrainedModel:
    return TOWERS[name]().eval().requires_grad_(False)


def views(count: int, tower: PreTrainedModel) -> torch.Tensor:
    side = 160 if isinstance(tower, TimmWrapperModel) else 32
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("name", TOWERS)
def test_each_engine_gives_the_features_of_the_tower(name: str, engine: str) -> None:
    tower = made(name)
    pictures = views(CPU_ROWS + 2, tower)
    plain = PooledVision(tower, NORMALIZER, CPU)(pictures)
    vision = PooledVision(tower, NORMALIZER, CPU, engine=engine)
    features = vision(pictures)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, plain, rtol=1e-3, atol=1e-4)
    # Whatever else is in the batch, to the last bit.
    assert torch.equal(vision(pictures.flip(0)).flip(0), features)
    assert torch.equal(vision(pictures[3:4]), features[3:4])


def test_folding_leaves_no_batch_norm_and_the_tower_as_it_was(world: Path) -> None:
    tower = made("resnet")
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    pixels = NORMALIZER(views(2, tower))
    folded = folded_copy(tower, pixels)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    expected, got = frozen_features(tower, pixels), frozen_features(folded, pixels)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    plain = load_vision_tower(str(world / "vision"))
    assert folded_copy(plain, torch.zeros(1, 3, 32, 32)) is plain


def test_the_engine_is_chosen_by_device_and_by_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = torch.device("cuda")
    assert choose_engine("auto", "float32", CPU) == "openvino"
    assert choose_engine("torch", "float32", CPU) == "torch"
    assert choose_engine("auto", "bfloat16", cuda) == "torch"
    with pytest.raises(ConfigError, match="for a CPU, not for --device cuda"):
        choose_engine("openvino", "float32", cuda)
    monkeypatch.setattr(vision_engine, "has_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="neither AMX nor AVX512_BF16"):
        choose_engine("auto", "bfloat16", CPU)
    monkeypatch.setattr(vision_engine, "has_bfloat16", lambda: True)
    assert choose_engine("torch", "bfloat16", CPU) == "torch"
    monkeypatch.setattr(vision_engine.importlib.util, "find_spec", lambda name: None)
    assert choose_engine("auto", "float32", CPU) == "torch"
    with pytest.raises(ConfigError, match=r"pip install \"cit\[fast-cpu\]\""):
        choose_engine("openvino", "float32", CPU)


def test_engine_and_precision_are_part_of_the_name() -> None:
    tower = made("vit")

    def name(engine: str | None, autocast: torch.dtype | None = None) -> str:
        return PooledVision(tower, NORMALIZER, CPU, engine=engine, autocast=autocast).name

    assert name(None) == "cpu"  # as it was before there were engines
    assert name("torch") == "cpu-torch"
    assert name("openvino") == "cpu-openvino"
    assert name("openvino", torch.bfloat16) == "cpu-openvino-bfloat16"


def test_a_tower_that_the_engine_cannot_run_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tower = made("vit")
    pictures = views(2, tower)

    monkeypatch.setitem(vision_engine.MIN_COSINE, "float32", 1.1)
    with pytest.raises(ConfigError, match=r"is only 1\.00000; give --vision-engine torch"):
        OpenVinoTower(tower, NORMALIZER, pictures)

    class Unsupported(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> object:
            raise RuntimeError("no such operation")

    with pytest.raises(ConfigError, match="no such operation; give --vision-engine torch"):
        OpenVinoTower(Unsupported(), NORMALIZER, pictures)


def test_where_it_may_fall_back_pytorch_runs_what_the_engine_cannot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tower = made("vit")
    pictures = views(2, tower)
    expected = PooledVision(tower, NORMALIZER, CPU, engine="torch")(pictures)
    monkeypatch.setitem(vision_engine.MIN_COSINE, "float32", 1.1)
    with pytest.raises(ConfigError, match="give --vision-engine torch"):
        PooledVision(tower, NORMALIZER, CPU, engine="openvino")(pictures)
    caplog.set_level("INFO")
    vision = PooledVision(tower, NORMALIZER, CPU, engine="openvino", falls_back=True)
    assert torch.equal(vision(pictures), expected)
    assert "PyTorch runs it" in caplog.text


def test_signals_are_heard_after_an_engine_was_let_go_of_in_another_thread() -> None:
    engines = [OpenVinoTower(made("vit"), NORMALIZER, views(2, made("vit")))]
    other = threading.Thread(target=engines.clear)
    other.start()
    other.join()
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)  # ends a process whose stack for handlers is gone
    signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]


def test_openvino_is_imported_without_what_reports_to_its_vendor() -> None:
    code = (
        "import sys; from cit_train.models import vision_engine\n"
        "with vision_engine._without_telemetry(): import openvino\n"
        "assert 'openvino.tools.ovc.telemetry_stub' in sys.modules\n"
        "assert not any(name.startswith('openvino_telemetry') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
