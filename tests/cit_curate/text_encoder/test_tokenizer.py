"""Tokenizers that are whole, have a pad token, and pad on the right."""

import json
from pathlib import Path

import pytest
from text_towers import TEXTS, make_tokenizer, save_tokenizer

from cit_curate.errors import DamagedError
from cit_curate.text_encoder.tokenizer import encode, num_ids, open_tokenizer, tokenize


@pytest.mark.parametrize("family", ["bert", "gpt2", "clip", "t5"])
def test_a_folder_without_a_vocabulary_has_no_tokenizer(family: str, tmp_path: Path) -> None:
    # transformers makes one of a few tokens, for which every text is unknown.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(OSError, match=r"has no tokenizer \(tokenizer\.json\)"):
        open_tokenizer(str(tmp_path))


def test_a_tokenizer_that_is_cut_is_damaged(tmp_path: Path) -> None:
    make_tokenizer("bert").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    for kept in (0, 0.4, 0.9):
        make_tokenizer("bert").save_pretrained(tmp_path)
        file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
        with pytest.raises(DamagedError, match=rf"{file} is cut or damaged"):
            open_tokenizer(str(tmp_path))


def test_json_that_describes_no_tokenizer_is_said(tmp_path: Path) -> None:
    make_tokenizer("bert").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    for value in ({}, [], {"model": {"type": "Nonsense"}, "added_tokens": []}):
        file.write_text(json.dumps(value))
        with pytest.raises(ValueError, match="tokenizer"):
            open_tokenizer(str(tmp_path))


def test_without_a_pad_token_it_is_the_end_token_and_the_tokens_stay(tmp_path: Path) -> None:
    plain = make_tokenizer("gpt")
    assert plain.pad_token is None
    plain.save_pretrained(tmp_path)
    opened = open_tokenizer(str(tmp_path))
    assert opened.pad_token == "<|end|>"
    batch = tokenize(opened, TEXTS, max_text_length=16)
    own = encode(plain, TEXTS, cut_to=16)
    assert batch["attention_mask"].sum(1).tolist() == own.counts.tolist()
    assert batch["input_ids"][batch["attention_mask"].bool()].tolist() == own.ids.tolist()


def test_without_an_end_token_another_special_one_pads_and_without_any_it_is_refused(
    tmp_path: Path,
) -> None:
    bare = make_tokenizer("bare")
    bare.save_pretrained(tmp_path / "unknown")
    assert open_tokenizer(str(tmp_path / "unknown")).pad_token == "[UNK]"
    bare.unk_token = None
    bare.save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no pad token.*tokenizer\.pad_token"):
        open_tokenizer(str(tmp_path / "none"))


def test_texts_are_padded_on_the_right_with_a_mask_whatever_the_tokenizer_prefers(
    tmp_path: Path,
) -> None:
    # As SigLIP's.
    save_tokenizer(tmp_path, "bert", padding_side="left", model_input_names=["input_ids"])
    opened = open_tokenizer(str(tmp_path))
    assert opened.padding_side == "left"
    mask = tokenize(opened, TEXTS, max_text_length=16)["attention_mask"]
    assert (mask.diff(dim=1) <= 0).all()
    assert mask.sum() < mask.numel()


def test_a_class_that_needs_a_missing_package_is_read_from_its_json(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "end", tokenizer_class="SiglipTokenizer")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    opened = open_tokenizer(str(tmp_path))
    assert opened.is_fast
    assert opened("old lamp").input_ids == make_tokenizer("end")("old lamp").input_ids


def test_the_number_of_ids_counts_holes(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bert")
    assert num_ids(tokenizer) == len(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    described = json.loads(file.read_text())
    described["model"]["vocab"]["far"] = 1_000
    file.write_text(json.dumps(described))
    assert num_ids(open_tokenizer(str(tmp_path))) == 1_001
