"""Released and training checkpoints, compared with a model that knows nothing of cit."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foreign_files import FULL, PlainDualEncoder, Sizes, inputs
from tiny import make_pictures, make_text_tower
from transformers import AutoModel, AutoTokenizer, VisionTextDualEncoderModel

import cit_train.models  # noqa: F401 - registers the model types, as the README says
from cit_curate.errors import CitError, ConfigError, DamagedError
from cit_train.cli import run
from cit_train.models import inferred_config, released
from cit_train.models.load import load_dual_encoder
from cit_train.models.released import (
    ReleasedCheckpoint,
    dual_encoder_from_config,
    load_released,
    open_released,
)

DUAL = '"model_type": "vision-text-dual-encoder"'


@pytest.fixture
def known_tiny_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest of timm's ViTs be told by its shapes, as the published ones are."""
    monkeypatch.setitem(inferred_config.ARCHITECTURES, (64, 16, 6), "test_vit")


@pytest.fixture(scope="module")
def plain() -> PlainDualEncoder:
    return PlainDualEncoder(Sizes())


@pytest.fixture(scope="module")
def folder(plain: PlainDualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released directory of a tiny model, without a tokenizer; read only."""
    return plain.save_released(tmp_path_factory.mktemp("released") / "yfcc15m_in1k_mocob16")


def pack(folder: Path, path: Path, *, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, folder.name)
    return path


@torch.no_grad()
def assert_same(model: VisionTextDualEncoderModel, plain: PlainDualEncoder) -> None:
    """Every tensor, and the cosine of each image with each caption."""
    stored = plain.released_tensors()
    del stored["text_model.embeddings.position_ids"]
    state = model.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    given = inputs(plain.sizes)
    cosines = model(**given).logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(cosines, plain.cosines(**given), rtol=1e-4, atol=1e-5)


def test_a_released_directory_loads_and_gives_the_same_cosines(
    plain: PlainDualEncoder, folder: Path
) -> None:
    model = load_released(open_released(folder))
    assert not model.training
    assert_same(model, plain)


def test_its_tar_loads_without_being_unpacked(
    plain: PlainDualEncoder, folder: Path, tmp_path: Path
) -> None:
    path = pack(folder, tmp_path / "yfcc15m_in1k_mocob16.tar")
    assert_same(load_released(open_released(path)), plain)
    assert list(tmp_path.iterdir()) == [path]


def test_a_compressed_tar_loads_too(plain: PlainDualEncoder, folder: Path, tmp_path: Path) -> None:
    path = pack(folder, tmp_path / "model.tar", mode="w:gz")
    assert_same(load_released(open_released(path)), plain)


def test_the_automodel_snippet_works(plain: PlainDualEncoder, folder: Path) -> None:
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, VisionTextDualEncoderModel)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same(model.eval(), plain)


def test_the_plain_pytorch_snippet_works(plain: PlainDualEncoder, folder: Path) -> None:
    model = dual_encoder_from_config(folder)
    state_dict = torch.load(folder / "pytorch_model.bin", weights_only=True)
    model.load_state_dict(state_dict)
    assert "text_model.embeddings.position_ids" in state_dict
    assert_same(model, plain)
    del state_dict["logit_scale"]
    with pytest.raises(RuntimeError, match="logit_scale"):
        model.load_state_dict(state_dict)


@pytest.mark.usefixtures("known_tiny_vit")
def test_a_training_checkpoint_loads_by_its_names_and_shapes(
    plain: PlainDualEncoder, tmp_path: Path
) -> None:
    path = plain.save_training(tmp_path / "checkpoint-best.pth")
    checkpoint = open_released(path)
    vision, text = checkpoint.config.vision_config, checkpoint.config.text_config
    assert (vision.model_type, vision.config_name) == ("moco", "test_vit")
    assert (vision.image_size, vision.projector_size, vision.hidden_size) == (32, 48, 256)
    assert (text.num_hidden_layers, text.num_attention_heads, text.vocab_size) == (2, 1, 40)
    assert_same(load_released(checkpoint), plain)


def test_a_training_checkpoint_of_another_vit_wants_its_config(
    plain: PlainDualEncoder, folder: Path, tmp_path: Path
) -> None:
    path = plain.save_training(tmp_path / "checkpoint-best.pth")
    with pytest.raises(ConfigError, match=r"\(64, 16, 6\).*--config"):
        open_released(path)
    assert_same(load_released(open_released(path, config=folder / "config.json")), plain)


@pytest.mark.usefixtures("known_tiny_vit")
def test_a_checkpoint_of_distributed_training_loads(
    plain: PlainDualEncoder, tmp_path: Path
) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in plain.released_tensors().items()}
    torch.save({"model": tensors}, tmp_path / "checkpoint-last.pth")
    assert_same(load_released(open_released(tmp_path / "checkpoint-last.pth")), plain)


def test_missing_unexpected_and_misshaped_tensors_are_listed(
    plain: PlainDualEncoder, tmp_path: Path
) -> None:
    folder = plain.save_released(
        tmp_path / "model",
        **{
            "vision_model.moco.norm.weight": None,
            "text_model.pooler.dense.bias": None,
            "text_model.stray": torch.ones(1),
            "stray.position_ids": torch.ones(1),
            "visual_projection.weight": torch.ones(16, 255),
        },
    )
    with pytest.raises(ConfigError) as caught:
        load_released(open_released(folder))
    message = str(caught.value)
    assert (
        "2 missing: text_model.pooler.dense.bias, vision_model.moco.norm.weight; "
        "2 unexpected: stray.position_ids, text_model.stray; "
        "1 misshaped: visual_projection.weight (16, 255) instead of (16, 256)" in message
    )


def test_a_directory_loads_with_a_tokenizer_beside_it_or_given(
    plain: PlainDualEncoder, folder: Path, tmp_path: Path
) -> None:
    text = make_text_tower(tmp_path / "text")
    model, tokenizer = load_dual_encoder(folder, tokenizer=str(text))
    assert_same(model, plain)
    assert tokenizer("red disc")["input_ids"][0] == 2
    with pytest.raises(ConfigError, match="no tokenizer; give one with --tokenizer"):
        load_dual_encoder(folder)
    beside = plain.save_released(tmp_path / "beside")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (beside / name).write_bytes((text / name).read_bytes())
    assert load_dual_encoder(beside)[1]("red disc")["input_ids"] == [2, 5, 9, 3]


def test_a_tokenizer_with_more_tokens_than_the_text_tower_is_refused(tmp_path: Path) -> None:
    small = PlainDualEncoder(Sizes(vocabulary=6)).save_released(tmp_path / "model")
    text = make_text_tower(tmp_path / "text")
    with pytest.raises(ConfigError, match="the text tower 6; give the one"):
        load_dual_encoder(small, tokenizer=str(text))


def test_a_saved_model_of_ours_that_lost_a_tensor_is_refused(folder: Path, tmp_path: Path) -> None:
    model = load_released(open_released(folder))
    state = model.state_dict()
    del state["text_projection.weight"]
    model.save_pretrained(tmp_path / "ours", state_dict=state)
    with pytest.raises(ConfigError, match=r"1 missing: text_projection\.weight"):
        load_dual_encoder(tmp_path / "ours")


# Bad input


@pytest.mark.faults("K6", "E9")
def test_a_payload_in_the_weights_is_refused_in_a_directory_and_in_a_tar(
    plain: PlainDualEncoder, tmp_path: Path
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "ran"), "w")

    bad = plain.save_released(tmp_path / "bad")
    torch.save({**plain.released_tensors(), "x": Payload()}, bad / "pytorch_model.bin")
    for path in (bad, pack(bad, tmp_path / "bad.tar"), bad / "pytorch_model.bin"):
        with pytest.raises(DamagedError, match="refused: it holds more than tensors"):
            open_released(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.faults("E9")
@pytest.mark.parametrize("where", ["top", "vision_config", "text_config"])
def test_remote_code_named_in_the_config_is_never_fetched_or_run(
    plain: PlainDualEncoder, tmp_path: Path, where: str
) -> None:
    bad = plain.save_released(tmp_path / "bad")
    config = plain.released_config()
    part = config if where == "top" else config[where]
    part["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (bad / "config.json").write_text(json.dumps(config))
    (bad / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert_same(load_released(open_released(bad)), plain)
    assert not (tmp_path / "ran").exists()


def test_a_config_of_another_kind_is_refused(plain: PlainDualEncoder, tmp_path: Path) -> None:
    bad = plain.save_released(tmp_path / "bad")
    for text, kind, message in (
        ('{"model_type": "bert"}', ConfigError, "model_type 'bert'"),
        ("[]", ConfigError, "model_type None"),
        ("{", DamagedError, "is not JSON"),
        ('{"model_type": "vision-text-dual-encoder"}', ConfigError, "vision_config"),
        (
            f'{{{DUAL}, "vision_config": {{"model_type": "moko"}}, "text_config": {{}}}}',
            ConfigError,
            "not a config",
        ),
    ):
        (bad / "config.json").write_text(text)
        with pytest.raises(kind, match=message):
            open_released(bad)
    (bad / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        open_released(bad)
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        open_released(tmp_path / "nowhere")


def tar_of(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """A tar with these members; text is the target of a symbolic link."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def bad_tars() -> Iterator[tuple[str, list[tuple[str, bytes | str]], str]]:
    yield "empty", [("README", b"")], "does not have config.json and pytorch_model.bin"
    yield "one", [("m/config.json", b"{}")], "does not have"
    yield "apart", [("a/config.json", b"{}"), ("b/pytorch_model.bin", b"")], "in one folder"
    yield "twice", [("a/config.json", b"{}"), ("b/config.json", b"{}")], "more than one"
    yield "link", [("config.json", "/etc/passwd"), ("pytorch_model.bin", b"")], "does not have"
    yield "large", [("config.json", b" " * (2**20 + 1))], "the limit is 1,048,576"
    yield "many", [(str(n), b"") for n in range(1001)], "over 1,000 members"


@pytest.mark.parametrize(
    ("members", "message"), [pytest.param(m, text, id=name) for name, m, text in bad_tars()]
)
def test_a_tar_that_is_no_models_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes | str]], message: str
) -> None:
    path = tar_of(tmp_path / "bad.tar", *members)
    with pytest.raises(CitError, match=message):
        open_released(path)
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_lead_out_of_the_tar_write_nothing(
    plain: PlainDualEncoder, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "inner").mkdir()
    members: list[tuple[str, bytes | str]] = [
        (f"../{name}", (folder / name).read_bytes())
        for name in ("config.json", "pytorch_model.bin")
    ]
    path = tar_of(tmp_path / "inner" / "bad.tar", *members)
    assert_same(load_released(open_released(path)), plain)
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["bad.tar", "inner"]


def test_a_cut_tar_is_damaged(folder: Path, tmp_path: Path) -> None:
    path = pack(folder, tmp_path / "cut.tar")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedError):
        open_released(path)


def test_too_large_weights_are_not_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(folder, tmp_path / "model.tar")
    monkeypatch.setattr(released, "MAX_WEIGHTS_BYTES", 1000)
    with pytest.raises(DamagedError, match="the limit is 1,000"):
        open_released(path)


@pytest.mark.usefixtures("known_tiny_vit")
def test_other_towers_are_not_guessed(plain: PlainDualEncoder, tmp_path: Path) -> None:
    tensors = plain.released_tensors()
    roberta = {**tensors, "text_model.embeddings.token_type_embeddings.weight": torch.ones(1, 64)}
    foreign = {n.replace(".moco.", ".encoder."): t for n, t in tensors.items()}
    no_bert = {n: t for n, t in tensors.items() if "word_embeddings" not in n}
    headless = {n: t for n, t in tensors.items() if ".head." not in n}
    for content, message in (
        (roberta, "RoBERTa"),
        (foreign, "none of moco, augreg, swag"),
        (no_bert, "not a BERT"),
        (headless, "projector"),
        ({"a": torch.ones(1)}, "none of moco, augreg, swag"),
    ):
        torch.save({"model": content}, tmp_path / "checkpoint.pth")
        with pytest.raises(ConfigError, match=message):
            open_released(tmp_path / "checkpoint.pth")


def save_expanded(folder: Path) -> Path:
    """A released directory at ViT-B/16's full size, of few bytes: each tensor is one number."""
    make_text_tower(folder)
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    with torch.device("meta"):
        plain = PlainDualEncoder(Sizes(FULL.architecture, 224, 4096, vocabulary, 64, 1, 16))
    tensors = {
        name: torch.tensor(0.01 + row / 1e5).to(tensor.dtype).expand(tensor.shape)
        for row, (name, tensor) in enumerate(plain.released_tensors().items())
    }
    return plain.save_released(folder, **tensors)


@pytest.mark.slow
def test_a_checkpoint_with_mocos_own_name_loads_is_converted_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = save_expanded(tmp_path / "released"), tmp_path / "converted"
    vision = json.loads((source / "config.json").read_text())["vision_config"]
    assert vision["config_name"] == "vit_base_patch16"
    tower = AutoModel.from_pretrained(source).vision_model
    assert tower.moco.patch_embed.img_size == (224, 224)
    assert tower.head(torch.zeros(1, 768)).shape == (1, 256)
    run(["convert", "checkpoint", str(source), str(out)])
    said = capsys.readouterr().out
    assert "vit_base_patch16, 224 pixels, pooled output of 256" in said
    assert "loads back equal" in said
    make_pictures(tmp_path / "pictures")
    for model in (source, out):
        run(["eval", str(model), "--data", str(tmp_path / "pictures"), "--json"])
        result = json.loads(capsys.readouterr().out)
        assert (result["num_classes"], result["num_images"]) == (4, 16)


@pytest.mark.parametrize("name", ["vit_base_patch17", "vit_small_patch16"])
def test_a_checkpoint_of_an_unknown_vit_is_refused_everywhere(name: str, tmp_path: Path) -> None:
    source = save_expanded(tmp_path / "released")
    text = (source / "config.json").read_text().replace("vit_base_patch16", name)
    (source / "config.json").write_text(text)
    pictures = make_pictures(tmp_path / "pictures")
    commands = (
        ["convert", "checkpoint", str(source), str(tmp_path / "out")],
        ["eval", str(source), "--data", str(pictures)],
    )
    for command in commands:
        with pytest.raises(ConfigError, match=f"'{name}'.*vit_base_patch16"):
            run(command)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_released_model_at_full_size_in_all_its_forms(tmp_path: Path) -> None:
    """ViT-B/16 with MoCo's projector and BERT-base, under names and config of the release."""
    plain = PlainDualEncoder(FULL)
    folder = plain.save_released(tmp_path / "yfcc15m_in1k_mocob16")
    assert_same(load_released(open_released(folder)), plain)
    assert_same(AutoModel.from_pretrained(folder).eval(), plain)
    model = dual_encoder_from_config(folder)
    model.load_state_dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    assert_same(model, plain)
    path = pack(folder, tmp_path / "yfcc15m_in1k_mocob16.tar")
    assert_same(load_released(open_released(path)), plain)
    path.unlink()
    best = plain.save_training(tmp_path / "checkpoint-best.pth")
    checkpoint = open_released(best)
    assert isinstance(checkpoint, ReleasedCheckpoint)
    assert_same(load_released(checkpoint), plain)
