"""A folder in the place of another: readers find one of the two while the new one is made safe."""

from pathlib import Path

import pytest

from cit_curate.storage import durable
from cit_curate.storage.replace_folder import replacing


@pytest.mark.faults("L4", "Q4")
def test_the_old_folder_is_there_until_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kill while a large folder is synced must not leave nothing in its place.
    out = tmp_path / "run"
    out.mkdir()
    (out / "name").write_text("old")
    found: list[str] = []
    sync = durable.sync

    def look_and_sync(path: Path) -> None:
        found.append((out / "name").read_text() if out.exists() else "nothing")
        sync(path)

    monkeypatch.setattr(durable, "sync", look_and_sync)
    with replacing(out) as folder:
        (folder / "name").write_text("new")
        (folder / "other").write_text("x")
    # Both files and their folder, then the folder around them.
    assert found == ["old", "old", "old", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
