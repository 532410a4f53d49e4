"""A caption's vector on a GPU: close to that of the CPU, and the same bits in any company."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer

from cit_curate.config import TextTowerConfig
from cit_curate.errors import BrokenVectorsError
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.load import load_text_tower, resolve_model_name
from cit_curate.text_encoder.pooled_text import PooledTextConfig, PooledTextModel
from scripts.bench.caption_pools import distinct_captions

pytestmark = pytest.mark.gpu

MINILM = TextTowerConfig(text_encoder="package:minilm", pooling="mean")


def captions(count: int) -> list[str]:
    """Real captions of all lengths."""
    known = distinct_captions()
    return known[:: len(known) // count][:count]


def minilm(device: str, *, packed: bool = True) -> TextEncoder:
    return TextEncoder(*load_text_tower(MINILM), device=device, packed=packed)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_vectors_are_those_of_the_cpu_but_for_float16(gpu: str, packed: bool) -> None:
    texts = captions(400)
    expected, found = minilm("cpu").embed(texts), minilm(gpu, packed=packed).embed(texts)
    assert found.dtype == np.float32
    cosine = (expected * found).sum(axis=1)
    assert cosine.min() > 0.999
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_a_vector_has_the_same_bits_in_any_company_and_thread(gpu: str, packed: bool) -> None:
    texts, encoder = captions(1_500), minilm(gpu, packed=packed)
    whole = encoder.embed(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_array_equal(encoder.embed([texts[row] for row in order]), whole[order])
    for row in (0, 7, 1_499):
        np.testing.assert_array_equal(encoder.embed([texts[row]])[0], whole[row])
    with ThreadPoolExecutor(1) as thread:  # as those that write shards
        np.testing.assert_array_equal(thread.submit(encoder.embed, texts[:90]).result(), whole[:90])


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_every_pooling_is_packed_on_a_gpu(gpu: str, model_type: str, pooling: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name("package:minilm"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CONFIG_MAPPING[model_type](
        **sizes, intermediate_size=64, vocab_size=30_522, max_position_embeddings=64
    )
    tower = AutoModel.from_config(config)
    if pooling != "pooler":
        wrapped = PooledTextConfig(tower_config=config.to_dict(), pooling=pooling)
        tower = PooledTextModel(wrapped, tower)
    projection = torch.nn.Linear(64, 16, bias=False)
    expected = TextEncoder(tower, tokenizer, projection=projection).embed(captions(90))
    encoder = TextEncoder(tower, tokenizer, projection=projection, device=gpu)
    found = encoder.embed(captions(90))
    assert (expected * found).sum(axis=1).min() > 0.999
    np.testing.assert_array_equal(encoder.embed(captions(90)[40:50]), found[40:50])


def test_a_caption_without_a_usable_vector_is_named(gpu: str) -> None:
    encoder = minilm(gpu)
    word = encoder.tokenizer.convert_tokens_to_ids("zebra")
    with torch.no_grad():
        encoder.tower.get_input_embeddings().weight[word] = float("nan")
    with pytest.raises(BrokenVectorsError, match="'a zebra'") as caught:
        encoder.embed(["a horse", "a zebra", "a dog"])
    assert caught.value.broken.tolist() == [False, True, False]
    assert np.isfinite(caught.value.vectors[[0, 2]]).all()
