"""`cit doctor`, and the oldest versions that may be installed."""

import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from cit_curate.errors import ConfigError
from cit_train import doctor_command
from cit_train.doctor_command import doctor
from indexes import faiss_index

ROOT = Path(__file__).parents[2]
# The first versions without a hole that a file can use: Pillow's decoders, torch.load with
# weights_only, transformers' loading of checkpoints.
FLOORS = {"pillow": "12.2", "torch": "2.6", "transformers": "5.3"}


def needed(name: str) -> Requirement:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = (r for r in map(Requirement, project["dependencies"]) if r.name == name)
    return found


@pytest.mark.faults("X2")
@pytest.mark.parametrize("name", FLOORS)
def test_no_version_with_a_known_hole_is_allowed_pinned_or_installed(name: str) -> None:
    (floor,) = (each.version for each in needed(name).specifier if each.operator == ">=")
    assert Version(floor) >= Version(FLOORS[name])
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (pinned,) = (line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))
    assert Version(pinned) >= Version(FLOORS[name])
    assert Version(metadata.version(name)) >= Version(FLOORS[name])


def test_a_sound_installation_has_nothing_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    shown = capsys.readouterr().out
    assert f"torch: {metadata.version('torch')}\n" in shown
    assert "pip install" not in shown
    doctor(json=True)
    found = json.loads(capsys.readouterr().out)
    assert {"python", "pillow", "device", "index", "disk"} <= {each["what"] for each in found}


@pytest.mark.faults("X2")
def test_what_is_too_old_or_missing_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return {"pillow": "12.1.0"}.get(name, metadata.version(name))

    requires = metadata.requires("cit")
    packages = doctor_command._packages
    monkeypatch.setattr(doctor_command, "_packages", lambda _: packages(requires, version))
    with pytest.raises(ConfigError, match="not ready: timm, pillow") as caught:
        doctor()
    assert caught.value.exit_code == 2
    shown = capsys.readouterr().out
    assert "timm: not installed; pip install 'timm" in shown
    assert "pillow: 12.1.0; pip install 'pillow>=12.2'" in shown


@pytest.mark.parametrize("sees_gpu", [True, False])
def test_faiss_for_a_gpu_says_whether_it_sees_one(
    sees_gpu: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor_command.metadata, "version", lambda name: "99.0")
    monkeypatch.setattr(faiss_index, "sees_gpu", lambda: sees_gpu)
    doctor()
    where = "a" if sees_gpu else "no"
    assert f"index: torch, or faiss-gpu 99.0, which sees {where} GPU" in capsys.readouterr().out


def test_faiss_that_cannot_be_loaded_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor_command.metadata, "version", lambda name: "99.0")
    monkeypatch.setitem(sys.modules, "indexes.faiss_index", None)
    with pytest.raises(ConfigError, match="not ready: index"):
        doctor()
    assert "index: torch; faiss-gpu 99.0 cannot be loaded: " in capsys.readouterr().out
