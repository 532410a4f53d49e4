"""`cit pull`: known names, where their weights come from, and what to do next."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import Served, file_server

from cit_curate.errors import ConfigError
from cit_curate.text_encoder.packaged import PACKAGED
from cit_train import cli
from cit_train.hub import pull_command
from cit_train.hub.known import KNOWN_MODELS, known_model

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def moco(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    """MoCo's weights on a server of this machine, and a cache folder of our own."""
    from huggingface_hub import constants

    monkeypatch.setenv("CIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with file_server(Served(content=CONTENT)) as served:
        local = dataclasses.replace(KNOWN_MODELS["moco-v3-vit-b16"], source=served.url)
        monkeypatch.setattr(pull_command, "known_model", lambda name: local)
        yield served


def test_every_known_model_has_a_source_that_can_be_pulled() -> None:
    for name, model in KNOWN_MODELS.items():
        assert model.name == name
        scheme, _, rest = model.source.partition(":")
        if scheme == "package":
            assert rest in PACKAGED
        else:
            assert scheme in ("hf", "https")
            assert "{path}" in model.next_step


def test_a_misspelt_name_has_the_nearest_one() -> None:
    for asked, meant in (
        ("moco", "moco-v3-vit-b16"),
        ("MoCo-v3-vit-b-16", "moco-v3-vit-b16"),
        ("swag-vit-l_16", "swag-vit-l16"),
        ("yfcc15m-in1k-mocob16", "yfcc15m_in1k_mocob16"),
        ("simcs", "simcse"),
    ):
        with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
            known_model(asked)


def test_pull_says_where_the_file_is_and_what_to_do_next(
    moco: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run(["pull", "moco-v3-vit-b16", "--json"])
    value = json.loads(capsys.readouterr().out)
    path = tmp_path / "cache" / "downloads" / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert value["path"] == str(path)
    assert value["sha256"] == SHA256
    assert value["next"] == f"cit convert moco {path} models/moco-v3-vit-b16"
    assert value["license"] == "CC-BY-NC-4.0"
    cli.run(["pull", "moco-v3-vit-b16"])
    shown = capsys.readouterr().out
    assert "the publisher states none" in shown
    assert f"next: cit convert moco {path} models/moco-v3-vit-b16" in shown
    assert len(moco.requests) == 1


def test_pull_checks_a_hash_that_was_asked_for(moco: Served, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        cli.run(["pull", "moco-v3-vit-b16", "--sha256", "0" * 64])
    with pytest.raises(ConfigError, match="not a SHA-256"):
        cli.run(["pull", "moco-v3-vit-b16", "--sha256", "abc"])
    cli.run(["pull", "moco-v3-vit-b16", "--out", str(tmp_path / "here"), "--sha256", SHA256])
    assert (tmp_path / "here" / "weights.pth").read_bytes() == CONTENT


@pytest.mark.faults("E8")
def test_pull_honours_offline_mode(
    moco: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE.*weights\.pth; put the file there"):
        cli.run(["pull", "moco-v3-vit-b16"])
    assert moco.requests == []
    downloads = tmp_path / "cache" / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "weights.pth").write_bytes(CONTENT)
    cli.run(["pull", "moco-v3-vit-b16"])


def test_pull_list_shows_all_and_needs_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["pull", "list", "--json"])
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == list(KNOWN_MODELS)
    cli.run(["pull", "list"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in KNOWN_MODELS)


def test_packaged_weights_need_no_pull(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli.run(["pull", "minilm"])
    assert "nothing to pull" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="leave out --out"):
        cli.run(["pull", "minilm", "--out", str(tmp_path / "x")])
    with pytest.raises(ConfigError, match="--sha256 is for models of one file"):
        cli.run(["pull", "minilm", "--sha256", SHA256])


def test_a_model_of_the_hub_is_copied_out_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "blob").write_bytes(b"{}")
    (snapshot / "config.json").symlink_to("blob")
    monkeypatch.setattr(pull_command, "hub_folder", lambda name, refresh: snapshot)
    out = tmp_path / "deep" / "model"
    cli.run(["pull", "hf://org/name", "--out", str(out), "--json"])
    value = json.loads(capsys.readouterr().out)
    assert value["path"] == str(out)
    assert not (out / "config.json").is_symlink()
    assert value["files"]["config.json"] == hashlib.sha256(b"{}").hexdigest()
    with pytest.raises(ConfigError, match="exists already"):
        cli.run(["pull", "hf://org/name", "--out", str(out)])


def test_help_of_the_hub_commands_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "import cit_train.hub.pull_command, cit_train.hub.push_command\n"
        "import cit_train.evaluation.predict_command\n"
        "sys.exit(bool({'torch', 'transformers', 'duckdb'} & sys.modules.keys()))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
