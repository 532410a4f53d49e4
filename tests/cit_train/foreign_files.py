"""Foreign checkpoints with random weights, made from timm, transformers and torch alone.

Nothing of cit is used here: these are the files of other people, and the models to compare with.
"""

import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

# What transformers 4 wrote into each part of a config besides the model's own fields.
OLD_CONFIG_FIELDS: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "do_sample": False,
    "early_stopping": False,
    "finetuning_task": None,
    "gradient_checkpointing": False,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beams": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
    "return_dict": True,
    "tie_word_embeddings": True,
    "top_k": 50,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.19.2",
    "use_bfloat16": False,
}


@dataclass(frozen=True)
class Sizes:
    """Of a dual encoder."""

    architecture: str = "test_vit"
    image_size: int = 32
    projector: int = 48
    vocabulary: int = 40
    text_width: int = 64
    text_layers: int = 2
    projection: int = 16


FULL = Sizes("vit_base_patch16_224", 224, 4096, 30_522, 768, 12, 512)


class MocoVit(nn.Module):
    """timm's ViT and MoCo-v3's projector, with lively random statistics."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.vit = timm.create_model(
            sizes.architecture, num_classes=0, img_size=sizes.image_size, global_pool="token"
        )
        width, hidden = self.vit.num_features, sizes.projector
        self.projector = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, 256, bias=False),
            nn.BatchNorm1d(256, affine=False),
        )
        for layer in self.projector:
            if isinstance(layer, nn.BatchNorm1d):
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 1.5)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projector(self.vit(pixels))

    def named_tensors(self) -> dict[str, Tensor]:
        head = {f"head.{name}": tensor for name, tensor in self.projector.state_dict().items()}
        return {**self.vit.state_dict(), **head}


class PlainDualEncoder(nn.Module):
    """The released model, built from timm, `BertModel` and torch alone."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.vision = MocoVit(sizes)
        self.text_config = BertConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.text_width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.text_width // 64,
            intermediate_size=4 * sizes.text_width,
            max_position_embeddings=512 if sizes is FULL else 48,
        )
        self.text = BertModel(self.text_config)
        self.visual_projection = nn.Linear(256, sizes.projection, bias=False)
        self.text_projection = nn.Linear(sizes.text_width, sizes.projection, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        self.sizes = sizes
        self.eval()

    def cosines(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        images = self.visual_projection(self.vision(pixel_values))
        pooled = self.text(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        texts = self.text_projection(pooled)
        return nn.functional.normalize(images, dim=-1) @ nn.functional.normalize(texts, dim=-1).T

    def released_tensors(self) -> dict[str, Tensor]:
        """Under the released names, with the buffer that BERT had at the time."""
        positions = torch.arange(self.text_config.max_position_embeddings)[None]
        return {
            **{f"vision_model.moco.{n}": t for n, t in self.vision.named_tensors().items()},
            **{f"text_model.{n}": t for n, t in self.text.state_dict().items()},
            "text_model.embeddings.position_ids": positions,
            "visual_projection.weight": self.visual_projection.weight.detach(),
            "text_projection.weight": self.text_projection.weight.detach(),
            "logit_scale": self.logit_scale.detach(),
        }

    def released_config(self) -> dict[str, Any]:
        """As transformers 4 wrote it, with the fields that the original's vision tower had."""
        text = self.text_config.to_dict() | {"position_embedding_type": "absolute"}
        vision = {"hidden_size": 256, "model_type": "moco"}
        if self.sizes.architecture == FULL.architecture:
            vision["config_name"] = "vit_base_patch16"  # MoCo-v3's name of it
        else:
            vision |= {
                "config_name": self.sizes.architecture,
                "image_size": self.sizes.image_size,
                "projector_size": self.sizes.projector,
            }
        return {
            **OLD_CONFIG_FIELDS,
            "architectures": ["VisionTextDualEncoderModel"],
            "logit_scale_init_value": 2.6592,
            "model_type": "vision-text-dual-encoder",
            "projection_dim": self.sizes.projection,
            "text_config": {**OLD_CONFIG_FIELDS, **text},
            "vision_config": {**OLD_CONFIG_FIELDS, **vision},
        }

    def save_released(self, folder: Path, **changed: Tensor | None) -> Path:
        """A released directory; `changed` tensors replace (or, when None, remove) others."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {**self.released_tensors(), **changed}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        torch.save(kept, folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(self.released_config()))
        return folder

    def save_training(self, path: Path) -> Path:
        """A training checkpoint as the original writes it: `configs.Config` and all."""
        with original_configs() as config_class:
            content = {
                "model": self.released_tensors(),
                "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 5e-4}]},
                "scaler": {"scale": 65536.0},
                "step": 5000,
                "args": config_class(lr=5e-4, eval_steps=500, name={"a": [1, 2.5, None]}),
            }
            torch.save(content, path)
        return path


def inputs(sizes: Sizes, *, batch: int = 3) -> dict[str, Tensor]:
    """Pixels and captions of different lengths, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    side = sizes.image_size
    mask = torch.ones(batch, 7, dtype=torch.long)
    mask[0, 4:] = 0
    return {
        "pixel_values": torch.randn(batch, 3, side, side, generator=generator),
        "input_ids": torch.randint(5, sizes.vocabulary, (batch, 7), generator=generator),
        "attention_mask": mask,
    }


@contextmanager
def original_configs() -> Iterator[type]:
    """A module `configs` with a class `Config`, as only the original has it."""
    module = types.ModuleType("configs")

    class Config:
        def __init__(self, **fields: object) -> None:
            self.__dict__.update(fields)

    Config.__module__, Config.__qualname__ = "configs", "Config"
    module.Config = Config  # type: ignore[attr-defined]
    sys.modules["configs"] = module
    try:
        yield Config
    finally:
        del sys.modules["configs"]
