"""Train a dual encoder on pairs that are curated while it trains."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cit_train import recipes, sweeps
    from cit_train.config import (
        EvalConfig,
        EvaluationConfig,
        ModelConfig,
        RunConfig,
        TrainConfig,
        replace_fields,
    )
    from cit_train.loop.watcher import Watcher
    from cit_train.models.load import load_dual_encoder
    from cit_train.models.released import dual_encoder_from_config
    from cit_train.outer_loop import train
    from cit_train.ranks.stopping import StoppedError

__all__ = [
    "EvalConfig",
    "EvaluationConfig",
    "ModelConfig",
    "RunConfig",
    "StoppedError",
    "TrainConfig",
    "Watcher",
    "dual_encoder_from_config",
    "load_dual_encoder",
    "recipes",
    "replace_fields",
    "sweeps",
    "train",
]

# Imported on first use: torch and transformers take seconds.
_MODULES = {
    "EvalConfig": "cit_train.config",
    "EvaluationConfig": "cit_train.config",
    "ModelConfig": "cit_train.config",
    "RunConfig": "cit_train.config",
    "StoppedError": "cit_train.ranks.stopping",
    "TrainConfig": "cit_train.config",
    "Watcher": "cit_train.loop.watcher",
    "dual_encoder_from_config": "cit_train.models.released",
    "load_dual_encoder": "cit_train.models.load",
    "replace_fields": "cit_train.config",
    "train": "cit_train.outer_loop",
}


def __getattr__(name: str) -> object:
    if name in {"recipes", "sweeps"}:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
