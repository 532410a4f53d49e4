"""Text towers that load, and what is refused of a model's folder."""

import json
from pathlib import Path

import pytest
import torch
from small_tower import small_tower

from cit_curate.config import TextTowerConfig
from cit_curate.errors import ConfigError, DamagedError
from cit_curate.text_encoder.load import load_text_tower


@pytest.mark.faults("E8")
def test_a_missing_model_says_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="package:minilm"):
        load_text_tower(TextTowerConfig(text_encoder="nobody/has-this-model"))
    with pytest.raises(ConfigError, match="package:minilm"):
        load_text_tower(TextTowerConfig(text_encoder=str(tmp_path)))


@pytest.mark.faults("E8")
@pytest.mark.parametrize("kept", [0, 0.5])
def test_weights_that_are_cut_are_named(tmp_path: Path, kept: float) -> None:
    name = small_tower(tmp_path / "tower").text_encoder
    weights = tmp_path / "tower" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DamagedError, match=rf"{name}: its weights are cut or damaged"):
        load_text_tower(TextTowerConfig(text_encoder=name))


@pytest.mark.faults("E9", "K6")
def test_pickled_weights_that_are_more_than_tensors_are_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)

    name = small_tower(tmp_path / "tower").text_encoder
    (tmp_path / "tower" / "model.safetensors").unlink()
    torch.save({"payload": Payload()}, tmp_path / "tower" / "pytorch_model.bin")
    with pytest.raises(DamagedError, match=rf"{name} is refused: .*model\.safetensors") as caught:
        load_text_tower(TextTowerConfig(text_encoder=name))
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.faults("E9")
@pytest.mark.parametrize("kind", ["bert", "evil"])
def test_code_in_a_model_folder_is_never_run(tmp_path: Path, kind: str) -> None:
    config = small_tower(tmp_path / "tower")
    (tmp_path / "tower" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    maps = {
        "config.json": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
        "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    }
    for file, auto_map in maps.items():
        values = json.loads((tmp_path / "tower" / file).read_text())
        values |= {"auto_map": auto_map, "model_type": kind}
        (tmp_path / "tower" / file).write_text(json.dumps(values))
    if kind == "bert":  # our own class of the same model
        load_text_tower(config)
    else:
        with pytest.raises(ConfigError, match="contains custom code"):
            load_text_tower(config)
    assert not (tmp_path / "ran").exists()
