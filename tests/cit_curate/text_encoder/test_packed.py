"""Packed passes hold every token once, and give what padded ones give."""

import copy
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.exc import TorchDynamoException
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer

from cit_curate.errors import ConfigError
from cit_curate.text_encoder import encoder as encoder_module
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.load import resolve_model_name
from cit_curate.text_encoder.packed import is_packable, plan_passes
from cit_curate.text_encoder.pooled_text import PooledTextConfig, PooledTextModel

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 30_522, "initializer_range": 0.5, "pad_token_id": 0,
}  # fmt: skip
CAPTIONS = ["a cat", "", "two dogs in the snow", "a", "x " * 60, "a dog", *map(str, range(90))]


@given(st.lists(st.integers(1, 32), max_size=200), st.integers(32, 90))
def test_passes_hold_every_token_once_and_are_full(lengths: list[int], pass_tokens: int) -> None:
    num_tokens = np.array(lengths, dtype=np.int64)
    starts = np.cumsum(num_tokens) - num_tokens
    seen: list[int] = []
    captions: list[int] = []
    for planned in plan_passes(num_tokens, pass_tokens):
        assert len(planned.tokens) == len(planned.positions) == pass_tokens
        assert sum(count * length for count, length in planned.runs) == pass_tokens
        expected = [
            (int(starts[caption]) + place, place)
            for caption in planned.captions
            for place in range(num_tokens[caption])
        ]
        own = len(expected)
        found = list(zip(planned.tokens.tolist(), planned.positions.tolist(), strict=True))
        assert found[:own] == expected
        assert found[own:] == [(-1, 0)] * (pass_tokens - own)
        seen += planned.tokens[:own].tolist()
        captions += planned.captions.tolist()
    assert sorted(seen) == list(range(sum(lengths)))
    assert sorted(captions) == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("model_type", "pooling"),
    [
        pytest.param(model_type, pooling, marks=pytest.mark.slow if pooling == "cls" else ())
        for model_type in ("bert", "roberta", "xlm-roberta", "camembert", "electra")
        for pooling in ("pooler", "mean", "cls")
        if (model_type, pooling) != ("electra", "pooler")  # it has none
    ],
)
def test_packed_passes_equal_padded_ones(model_type: str, pooling: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name("package:minilm"))
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**SIZES, max_position_embeddings=64)
    tower = AutoModel.from_config(config)
    if pooling != "pooler":
        tower = PooledTextModel(
            PooledTextConfig(tower_config=config.to_dict(), pooling=pooling), tower
        )
    assert is_packable(tower)
    projection = torch.nn.Linear(32, 16, bias=False)
    # The padded one first: a packed encoder changes the attention of its tower.
    padded = TextEncoder(tower, tokenizer, projection=projection, packed=False)
    expected, version = padded.embed(CAPTIONS), padded.fingerprint
    packed = TextEncoder(tower, tokenizer, projection=projection)
    np.testing.assert_allclose(packed.embed(CAPTIONS), expected, atol=2e-6)
    assert packed.fingerprint != version
    # The tower still takes padded batches, which training does.
    np.testing.assert_allclose(padded.embed(CAPTIONS), expected, atol=2e-6)


def test_layers_with_configs_of_their_own_are_packed_too() -> None:
    # As those of a tower that was taken out of a dual encoder.
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name("package:minilm"))
    torch.manual_seed(0)
    tower = AutoModel.from_config(CONFIG_MAPPING["bert"](**SIZES, max_position_embeddings=64))
    for module in tower.modules():
        if hasattr(module, "config"):
            module.config = copy.deepcopy(module.config)
    expected = TextEncoder(tower, tokenizer, packed=False).embed(CAPTIONS)
    np.testing.assert_allclose(TextEncoder(tower, tokenizer).embed(CAPTIONS), expected, atol=2e-6)


def test_a_family_that_is_not_known_is_padded() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name("package:minilm"))
    config = CONFIG_MAPPING["mpnet"](**SIZES)
    tower = AutoModel.from_config(config)
    assert not is_packable(tower)
    assert TextEncoder(tower, tokenizer).embed(CAPTIONS).shape == (len(CAPTIONS), 32)


@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
def test_a_vector_is_bit_identical_alone_and_among_others(pooling: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name("package:minilm"))
    torch.manual_seed(0)
    config = CONFIG_MAPPING["bert"](**SIZES, max_position_embeddings=64)
    tower = AutoModel.from_config(config)
    if pooling != "pooler":
        wrapped = PooledTextConfig(tower_config=config.to_dict(), pooling=pooling)
        tower = PooledTextModel(wrapped, tower)
    encoder = TextEncoder(tower, tokenizer)
    captions = [*CAPTIONS, "one more caption of nine tokens here", "a longer one " * 6]
    together = encoder.embed(captions)
    alone = np.concatenate([encoder.embed([caption]) for caption in captions])
    np.testing.assert_array_equal(alone, together)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # those of the compiler's own imports
def test_compiled_passes_give_nearly_the_same_and_no_caption_sees_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name("package:minilm"))
    torch.manual_seed(0)
    tower = AutoModel.from_config(CONFIG_MAPPING["bert"](**SIZES, max_position_embeddings=64))
    plain = TextEncoder(copy.deepcopy(tower), tokenizer)
    compiled = TextEncoder(tower, tokenizer, compiled=True)
    together = compiled.embed(CAPTIONS)
    np.testing.assert_allclose(together, plain.embed(CAPTIONS), atol=2e-6)
    alone = np.concatenate([compiled.embed([caption]) for caption in CAPTIONS])
    np.testing.assert_array_equal(alone, together)
    assert compiled.fingerprint != plain.fingerprint
    tokens = plain.tokenize(CAPTIONS)
    monkeypatch.setattr(encoder_module, "has_int8", lambda: True)
    assert compiled.int8 is not None
    assert plain.int8 is not None
    cosine = (compiled.int8.embed(tokens) * plain.int8.embed(tokens)).sum(dim=1)
    assert cosine.min() > 0.99


def test_without_a_compiler_compile_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_compiler(module: torch.nn.Module) -> object:
        def fails(**_: object) -> None:
            raise TorchDynamoException("InvalidCxxCompiler: No working C++ compiler found\n\nmore")

        return fails

    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name("package:minilm"))
    tower = AutoModel.from_config(CONFIG_MAPPING["bert"](**SIZES, max_position_embeddings=64))
    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ConfigError, match=r"--compile: .*No working C\+\+ compiler found\).*g\+\+"):
        TextEncoder(tower, tokenizer, compiled=True)
