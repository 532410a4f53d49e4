"""What `--metadata` means: a built-in list or a file, and what is wrong with it."""

from pathlib import Path

import numpy as np
import pytest

from cit_curate.config import MetadataConfig
from cit_curate.errors import ConfigError
from cit_curate.metadata.entries import MetadataEntry, load_metadata
from cit_curate.metadata.vectors import embed_metadata


def test_a_column_of_a_csv_is_read_and_a_wrong_one_named(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("name,number\ncat,1\ndog,2\n")
    config = MetadataConfig(metadata=str(path), metadata_column="name")
    assert [entry.name for entry in load_metadata(config)] == ["cat", "dog"]
    with pytest.raises(ConfigError, match="did you mean 'name'"):
        load_metadata(MetadataConfig(metadata=str(path), metadata_column="nmae"))


@pytest.mark.faults("E3")
@pytest.mark.parametrize("content", [b"", b"\n# only a comment\n"])
def test_no_entries_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no class name"):
        load_metadata(MetadataConfig(metadata=str(path)))


@pytest.mark.faults("G1")
def test_a_missing_file_and_one_that_is_no_utf8_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_metadata(MetadataConfig(metadata=str(tmp_path / "gone.txt")))
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(ConfigError, match=r"did you mean '.*/classes\.txt'"):
        load_metadata(MetadataConfig(metadata=str(tmp_path / "clases.txt")))
    path = tmp_path / "latin.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_metadata(MetadataConfig(metadata=str(path)))


@pytest.mark.faults("E3")
def test_a_template_without_a_place_for_the_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs \{\} once"):
        MetadataConfig(metadata="x", templates=("a photo",))
    with pytest.raises(ConfigError, match="is empty"):
        MetadataConfig(metadata="x", templates=())


def test_a_near_miss_of_a_built_in_list_gets_the_nearest_spelling() -> None:
    with pytest.raises(ConfigError, match=r"no file imagnet, nor .* did you mean 'imagenet'"):
        load_metadata(MetadataConfig(metadata="imagnet"))
    with pytest.raises(ConfigError, match="`cit metadata list`"):
        load_metadata(MetadataConfig())


def test_a_built_in_name_wins_and_a_path_is_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stl10").write_text("mine\n")
    Path("mine").write_text("# no suffix\nmine too\n")
    assert len(load_metadata(MetadataConfig(metadata="stl10"))) == 10
    assert load_metadata(MetadataConfig(metadata="./stl10")) == [MetadataEntry("mine")]
    assert load_metadata(MetadataConfig(metadata="mine")) == [MetadataEntry("mine too")]


def test_flags_that_cannot_go_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("cat\n")
    with pytest.raises(ConfigError, match="has no prompts; give them with --templates"):
        load_metadata(MetadataConfig(metadata=str(path), template_metadata=True))
    with pytest.raises(ConfigError, match="imagenet21k is not a task"):
        load_metadata(MetadataConfig(metadata="imagenet21k", template_metadata=True))
    with pytest.raises(ConfigError, match="'mt' is a built-in list"):
        load_metadata(MetadataConfig(metadata="mt", metadata_column="name"))
    with pytest.raises(ConfigError, match="cannot go with --templates"):
        MetadataConfig(metadata="mt", template_metadata=True, templates=("a {}",))


def test_template_metadata_is_the_normalised_mean_over_the_prompts_of_the_task() -> None:
    seen: dict[str, np.ndarray] = {}

    def embed(texts: list[str]) -> np.ndarray:
        drawn = np.random.default_rng(7).normal(size=(len(texts), 5)).astype(np.float32)
        vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        seen.update(zip(texts, vectors, strict=True))
        return vectors

    entries = load_metadata(MetadataConfig(metadata="fer2013", template_metadata=True))
    vectors = embed_metadata(embed, entries, ["{}"])
    prompts = (
        "a photo of a {} looking face.",
        "a photo of a face showing the emotion: {}.",
        "a photo of a face looking {}.",
        "a face that looks {}.",
        "they look {}.",
        "look at how {} they are.",
    )
    happy = [seen[prompt.format(name)] for name in ("happy", "smiling") for prompt in prompts]
    expected = np.mean(happy, axis=0)
    np.testing.assert_allclose(vectors[3], expected / np.linalg.norm(expected), atol=1e-6)
    assert len(seen) == 6 * 12
