"""Captions to vectors, under one fixed version of the text tower.

A caption's vector does not depend on the other captions, to the last bit, because every forward
pass has the same shape. Towers of the usual families take captions without padding (`packed.py`).
Others take passes with a fixed number of rows, where a caption's padded length depends only on the
caption (its tokens, rounded up to a multiple of 4). The tests compare packed passes with these.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cit_curate.config import TextTowerConfig
from cit_curate.errors import BrokenVectorsError, ConfigError
from cit_curate.gpu_kernels import fix_attention_kernels
from cit_curate.processor import has_int8
from cit_curate.records import Float32
from cit_curate.storage.vector_cache import VectorCache, text_keys
from cit_curate.text_encoder.dual_encoder_text import load_text_projection
from cit_curate.text_encoder.int8 import int8_copy
from cit_curate.text_encoder.load import load_text_tower, resolve_model_name, weights_sha256
from cit_curate.text_encoder.packed import PASS_TOKENS, PackedTower, is_packable
from cit_curate.text_encoder.texts import Texts
from cit_curate.text_encoder.token_vectors import TokenVectors
from cit_curate.text_encoder.tokenizer import LENGTH_STEP, encode, special_tokens, tokenizer_key
from cit_curate.text_encoder.tokens import Tokens

# Captions of every padded forward pass; the last pass is filled up.
ROWS = 64


class TextEncoder:
    """One version of a text tower, in eval mode (docs/method.md, outer step, 4)."""

    def __init__(
        self,
        tower: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_text_length: int = 32,
        projection: torch.nn.Linear | None = None,
        device: str | torch.device = "cpu",
        packed: bool = True,
        compiled: bool = False,
        kept: VectorCache | None = None,
    ) -> None:
        """Take over a text tower, which is moved to the device, frozen and put into eval mode.

        Args:
            tower: A text tower that outputs `pooler_output`, float [batch, width].
            tokenizer: A fast tokenizer.
            max_text_length: The number of tokens to which a text is cut.
            projection: The dual encoder's text projection, to embed in the space after it.
            device: The device of the tower.
            packed: Use packed passes, without padding, where the tower's family allows it.
            compiled: Compile packed passes with torch.compile.
            kept: The vectors embedded before, and those from here on; None = every text is
                embedded.

        Raises:
            ConfigError: torch.compile does not work on this machine.
        """
        self.tower = tower.to(device).eval().requires_grad_(False)
        self.projection = projection and projection.to(device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_text_length = max_text_length
        self.device = torch.device(device)
        fix_attention_kernels(self.device)
        width = tower.config.hidden_size if projection is None else projection.out_features
        self.dim = int(width)
        self._compiled = compiled
        self._kept = kept
        self._packed: PackedTower | None = None
        if packed and self.device.type in PASS_TOKENS and is_packable(self.tower):
            self._packed = self._pack(self.tower)

    @classmethod
    def load(
        cls, config: TextTowerConfig, *, device: str = "cpu", kept: VectorCache | None = None
    ) -> "TextEncoder":
        """Load the encoder of a config; see `load_text_tower` and `choose_device`."""
        torch_device = choose_device(device)
        tower, tokenizer = load_text_tower(config)
        return cls(
            tower,
            tokenizer,
            max_text_length=config.max_text_length,
            projection=load_text_projection(resolve_model_name(config.text_encoder))
            if config.project_embeddings
            else None,
            device=torch_device,
            compiled=config.compile,
            kept=kept,
        )

    @property
    def precision(self) -> str:
        """`float16` on a GPU, where the forward pass runs under autocast; else `float32`."""
        return "float16" if self.device.type == "cuda" else "float32"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that a vector depends on: weights, tokenizer, pooling, cut, precision."""
        config = self.tower.config.to_dict()
        for volatile in ("_name_or_path", "transformers_version", "dtype", "architectures"):
            config.pop(volatile, None)
        shape: list[Any] = [ROWS, LENGTH_STEP]
        if self._packed is not None:
            shape = [self._packed.pass_tokens, *(["compiled"] if self._compiled else [])]
        settings = [config, self.max_text_length, *shape, self.precision]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(self.tokenizer_key.encode())
        digest.update(weights_sha256(self.tower).encode())
        if self.projection is not None:
            digest.update(weights_sha256(self.projection).encode())
        return digest.hexdigest()

    @cached_property
    def vector_key(self) -> str:
        """SHA-256 of all that the bits of a vector depend on: the fingerprint, and the machine.

        They do not depend on the number of threads.
        """
        described = [self.fingerprint, torch.__version__, platform.machine()]
        if self.device.type == "cuda":
            described.append(torch.cuda.get_device_name(self.device))
        else:
            described += [torch.backends.cpu.get_cpu_capability(), _processor()]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def embed(self, texts: Sequence[str] | Texts) -> Float32:
        """Embed texts; equal texts pass through the tower once.

        Args:
            texts: Any number of captions or prompts; any tokens must come from this tokenizer.

        Returns:
            float32 [texts, dim], unit norm, in the order of the texts.

        Raises:
            BrokenVectorsError: A vector is NaN, infinite or zero; the message names its text.
        """
        return np.asarray(self.embed_on_device(texts).cpu().numpy())

    def embed_on_device(self, texts: Sequence[str] | Texts) -> torch.Tensor:
        """As `embed`, but the vectors stay on the tower's device: float32 [texts, dim]."""
        distinct, rows = Texts.of(texts).distinct()
        vectors = self._embed_distinct(distinct)
        squares = vectors.square().sum(dim=1)  # 1, but for rounding
        broken = ~((squares > 0.5) & (squares < 2.0))
        if broken.any():
            is_broken = broken.cpu().numpy()
            text = distinct.array[int(is_broken.argmax())].as_py()
            raise BrokenVectorsError(
                f"the text tower gives NaN, infinity or zero for {text!r} "
                f"(and {int(is_broken.sum()) - 1} further texts); its weights are broken",
                vectors=vectors.cpu().numpy()[rows],
                broken=is_broken[rows],
            )
        return vectors[torch.from_numpy(rows).to(vectors.device)]

    @cached_property
    def int8(self) -> PackedTower | None:
        """The tower in int8; None where it is no faster, and for a family without packed passes."""
        if self.device.type != "cpu" or not is_packable(self.tower) or not has_int8():
            return None
        return self._pack(int8_copy(self.tower))

    @cached_property
    def bfloat16(self) -> PackedTower | None:
        """The tower in bfloat16; None on a GPU, and for a family without packed passes."""
        if self.device.type != "cpu" or self._packed is None:
            return None
        return PackedTower(self.tower, self.projection, self.device, autocast=torch.bfloat16)

    @cached_property
    def token_vectors(self) -> TokenVectors:
        """The vectors of single tokens, from the int8 tower if there is one."""
        tower = self.int8
        return TokenVectors(
            self._embed_tokens if tower is None else tower.embed,
            *special_tokens(self.tokenizer),
            vocabulary=self.tower.get_input_embeddings().num_embeddings,
        )

    @cached_property
    def tokenizer_key(self) -> str:
        """See `cit_curate.text_encoder.tokenizer.tokenizer_key`."""
        return tokenizer_key(self.tokenizer, self.max_text_length)

    def tokenize(self, texts: Sequence[str] | Texts) -> Tokens:
        """The token ids of texts, cut to the maximum length; known ones are reused."""
        texts = Texts.of(texts)
        if texts.tokens is None:
            return encode(self.tokenizer, texts.array.to_pylist(), cut_to=self.max_text_length)
        is_known = texts.tokens.is_valid()
        known = Tokens.of_lists(texts.tokens.filter(is_known))
        if len(known) == len(texts):
            return known
        others = texts.array.filter(texts.tokens.is_null()).to_pylist()
        tokens = known.followed_by(encode(self.tokenizer, others, cut_to=self.max_text_length))
        is_known_row = is_known.to_numpy(zero_copy_only=False)
        rows = np.empty(len(texts), dtype=np.int64)
        rows[is_known_row] = np.arange(len(known))
        rows[~is_known_row] = np.arange(len(known), len(texts))
        return tokens.take(rows)

    def _embed_distinct(self, texts: Texts) -> torch.Tensor:
        if not len(texts):
            return torch.empty((0, self.dim), device=self.device)
        if self._kept is None:
            return self._embed_tokens(self.tokenize(texts))
        keys = text_keys(texts.array.to_pylist())
        is_kept, kept = self._kept.find(self.vector_key, keys)
        vectors = torch.empty((len(texts), self.dim), device=self.device)
        if len(kept):
            vectors[torch.from_numpy(is_kept)] = torch.from_numpy(kept).to(self.device)
        others = np.flatnonzero(~is_kept)
        if len(others):
            new = self._embed_tokens(self.tokenize(texts.take(others)))
            vectors[torch.from_numpy(others)] = new
            self._kept.keep(
                self.vector_key, [keys[row] for row in others.tolist()], new.cpu().numpy()
            )
        return vectors

    def _pack(self, tower: PreTrainedModel) -> PackedTower:
        return PackedTower(tower, self.projection, self.device, compiled=self._compiled)

    def _embed_tokens(self, tokens: Tokens) -> torch.Tensor:
        if self._packed is None:
            return self._embed_padded(tokens)
        return self._packed.embed(tokens)

    def _embed_padded(self, tokens: Tokens) -> torch.Tensor:
        """Embed in groups of one padded length: float32 [texts, dim], unit norm."""
        vectors = torch.empty((len(tokens), self.dim), device=self.device)
        padded = -(-tokens.counts // LENGTH_STEP) * LENGTH_STEP
        for length in np.unique(padded):
            members = np.flatnonzero(padded == length)
            for start in range(0, len(members), ROWS):
                rows = members[start : start + ROWS]
                vectors[rows] = self._forward(tokens.take(rows), int(length))
        return vectors

    @torch.inference_mode()
    def _forward(self, tokens: Tokens, length: int) -> torch.Tensor:
        # input_ids, attention_mask: int64 [ROWS, length]; filling rows repeat the first one
        filled = tokens.take(np.where(np.arange(ROWS) < len(tokens), np.arange(ROWS), 0))
        is_token = np.arange(length) < filled.counts[:, None]
        ids = np.full((ROWS, length), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        ids[is_token] = filled.ids
        input_ids, attention_mask = (
            torch.from_numpy(ids),
            torch.from_numpy(is_token.astype(np.int64)),
        )
        with torch.autocast("cuda", torch.float16, enabled=self.device.type == "cuda"):
            output = self.tower(
                input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device)
            )
            pooled = output.pooler_output
            if self.projection is not None:
                pooled = self.projection(pooled)
        vectors = torch.nn.functional.normalize(pooled.float(), dim=-1)
        return vectors[: len(tokens)]


def choose_device(name: str) -> torch.device:
    """The requested device; `auto` is the first GPU, else the CPU.

    Raises:
        ConfigError: The name is not that of a device, or PyTorch sees no GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name} is not a device: auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: PyTorch sees no GPU here; use --device cpu")
    return device


def _processor() -> str:
    """The processor's model, which decides the routines that multiply matrices; "" = unknown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    named = (line for line in lines.splitlines() if line.startswith("model name"))
    return next(named, platform.processor())
