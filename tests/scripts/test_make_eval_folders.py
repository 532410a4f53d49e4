import importlib.util
import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cit_curate.errors import DamagedError

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_eval_folders.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_eval_folders", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def resource(plain: bytes, packed: bytes, *, flags: int = 1) -> bytes:
    """A Qt resource with `dir/a.txt` as it is and `dir/b.txt` compressed."""
    names, offsets = b"", []
    for name in ("dir", "a.txt", "b.txt"):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    small = struct.pack(">I", len(packed)) + zlib.compress(packed)
    blobs = struct.pack(">I", len(plain)) + plain + struct.pack(">I", len(small)) + small
    tree = b""
    for name, kind, first, second in (
        (0, 2, 1, 1),
        (offsets[0], 2, 2, 2),
        (offsets[1], 0, 0, 0),
        (offsets[2], flags, 0, 4 + len(plain)),
    ):
        tree += struct.pack(">IHIIQ", name, kind, first, second, 0)
    start = 24
    header = b"qres" + struct.pack(
        ">5I", 3, start, start + len(tree), start + len(tree) + len(blobs), 0
    )
    return header + tree + blobs + names


def test_files_of_a_qt_resource_are_unpacked(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.rcc"
    path.write_bytes(resource(b"plain", b"packed" * 10))
    assert list(script.qt_resources(path)) == [
        ("/dir/a.txt", b"plain"),
        ("/dir/b.txt", b"packed" * 10),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no resource", "is no Qt resource"),
        (resource(b"plain", b"packed", flags=4), "zstandard"),
        (resource(b"plain", b"packed")[:100], "is damaged"),
    ],
)
def test_a_broken_resource_is_damaged(
    data: bytes, message: str, script: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "x.rcc").write_bytes(data)
    with pytest.raises(DamagedError, match=message):
        list(script.qt_resources(tmp_path / "x.rcc"))


def test_photos_of_the_four_categories_are_taken(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        ("/gcompris/images/tools/saw.webp", b"saw"),
        ("/gcompris/images/tools/README", b"text"),
        ("/gcompris/images/numbers/1.webp", b"one"),
        ("/gcompris/images/fishes/carp.webp", b"carp"),
    ]
    monkeypatch.setattr(script, "fetch_deb", lambda *_: tmp_path)
    monkeypatch.setattr(script, "qt_resources", lambda path: iter(files))
    script.make_gcompris(tmp_path / "gcompris")
    found = sorted(path for path in (tmp_path / "gcompris").rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path / "gcompris")) for path in found] == [
        "fish/carp.webp",
        "prompts.txt",
        "tool/saw.webp",
    ]


def test_digits_become_the_folder_of_the_task_mnist(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Digits(ModuleType):
        @staticmethod
        def mnist_data() -> tuple[object, object]:
            return np.arange(3 * 784).reshape(3, 784) % 256, np.array([7, 0, 7])

    monkeypatch.setattr(importlib, "import_module", Digits)
    script.make_digits(tmp_path / "mnist")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("mnist/*/*")) == [
        "mnist/0/0001.png",
        "mnist/7/0000.png",
        "mnist/7/0002.png",
    ]
