"""The frozen part of a vision tower on a CPU, through OpenVINO (extra `fast-cpu`).

OpenVINO joins convolutions with what follows them, and keeps pixels in blocks of its own layout.
EfficientNet-Lite0 takes two fifths of its time in PyTorch (`scripts.bench.vision_tower`).
"""

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cit_curate.errors import ConfigError
from cit_curate.processor import has_bfloat16
from cit_train.config import VisionEngine, VisionPrecision
from cit_train.models.freeze import frozen_features
from cit_train.transforms import Normalizer

# The least cosine between the engine's features and PyTorch's. Measured: 0.9999998 in float32, and
# 0.9997 in bfloat16.
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.99}


def choose_engine(name: VisionEngine, precision: VisionPrecision, device: torch.device) -> str:
    """The engine that runs a frozen vision tower: torch or openvino.

    Args:
        name: The configured engine; auto = openvino on a CPU, if it is installed.
        precision: The configured precision.
        device: The tower's device.

    Raises:
        ConfigError: The engine is not installed or not for this device, or the processor has no
            bfloat16.
    """
    is_cpu = device.type == "cpu"
    if precision == "bfloat16" and is_cpu and not has_bfloat16():
        raise ConfigError(
            "--vision-precision bfloat16: this processor only emulates it (it has neither AMX nor "
            "AVX512_BF16), so it would be slower than float32; leave it out"
        )
    is_installed = importlib.util.find_spec("openvino") is not None
    if name == "openvino" and not is_cpu:
        raise ConfigError(f"--vision-engine openvino is for a CPU, not for --device {device.type}")
    if name == "openvino" and not is_installed:
        raise ConfigError(
            '--vision-engine openvino is not installed; pip install "cit[fast-cpu]", or leave '
            "--vision-engine out"
        )
    return "openvino" if name != "torch" and is_cpu and is_installed else "torch"


class OpenVinoTower:
    """The frozen part of a vision tower, for views of one shape."""

    def __init__(
        self,
        tower: PreTrainedModel,
        normalizer: Normalizer,
        views: Tensor,
        *,
        precision: VisionPrecision = "float32",
    ) -> None:
        """Compile a tower, whose weights are copied.

        Args:
            tower: The vision tower, on the CPU; its frozen part is in eval mode.
            normalizer: Its normalisation, which the engine does as well.
            views: uint8 [rows, 3, side, side], example views of the shape of every pass.
            precision: The precision of the matrix products.

        Raises:
            ConfigError: OpenVINO lacks an operation of this tower, or computes other features.
        """
        frozen = _Frozen(tower, normalizer)
        try:
            self._request = _compiled(frozen, views, precision).create_infer_request()
        except RuntimeError as error:
            raise _unsuitable(str(error).strip().splitlines()[-1]) from error
        with torch.no_grad():
            cosine = functional.cosine_similarity(frozen(views).flatten(1), self(views)).min()
        if not cosine >= MIN_COSINE[precision]:
            raise _unsuitable(f"their cosine to PyTorch's features is only {float(cosine):.5f}")

    def __call__(self, views: Tensor) -> Tensor:
        """Features: uint8 [rows, 3, side, side] to float32 [rows, dim]."""
        outputs = self._request.infer([np.ascontiguousarray(views.numpy())])
        return torch.from_numpy(next(iter(outputs.values())).copy()).flatten(1)


class _Frozen(nn.Module):
    """Normalisation and the frozen part of a tower: uint8 views to features."""

    def __init__(self, tower: PreTrainedModel, normalizer: Normalizer) -> None:
        super().__init__()
        self.tower = tower
        self._normalizer = normalizer
        # Not `eval()`: a head above the frozen part may be in train mode, and stays so.
        self.training = False

    def forward(self, views: Tensor) -> Tensor:
        return frozen_features(self.tower, self._normalizer(views)).float()


def _compiled(frozen: nn.Module, views: Tensor, precision: VisionPrecision) -> Any:
    """OpenVINO's compiled model.

    Not by `openvino.convert_model`, which takes five times as long and reports to its vendor.
    """
    with _without_telemetry():
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # The tracer is deprecated, but OpenVINO cannot read what replaces it: of EfficientNet-Lite0
    # from torch.export it makes a graph whose shapes contradict each other (2026.4).
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(frozen, views, check_trace=False)  # type: ignore[no-untyped-call]
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(torch.jit.freeze(traced))  # must outlive the conversion
        model = frontend.convert(frontend.load(decoder))
    model.inputs[0].get_node().set_element_type(openvino.Type.u8)
    model.reshape(list(views.shape))
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several ranks would be pinned to the same cores
    }
    return _core().compile_model(model, "CPU", settings)


@cache
def _core() -> Any:
    """OpenVINO's entry, kept for as long as the process lives.

    Its CPU plugin gives the thread that makes it another stack for signal handlers, and frees that
    stack with itself, in whichever thread; the first signal after that would end the process.
    """
    import openvino

    return openvino.Core()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """A block of imports in which OpenVINO finds no package to report them to its vendor with.

    It then takes the stub that it has for this case.
    """
    name = "openvino_telemetry"
    before = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def _unsuitable(reason: str) -> ConfigError:
    return ConfigError(
        f"OpenVINO cannot run this vision tower: {reason}; give --vision-engine torch"
    )
