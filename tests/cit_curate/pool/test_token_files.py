"""Tokens beside a pool: those of the tokenizer, used where they fit, and told when damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from small_tower import small_tower

from cit_curate.config import CurateConfig, MetadataConfig
from cit_curate.curation.curator import Curator
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.errors import ConfigError, DamagedError
from cit_curate.pool.check import check_pool
from cit_curate.pool.commands import info
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.pool.token_files import token_folders
from cit_curate.pool.tokenize_command import tokenize
from cit_curate.records import PoolCursor
from cit_curate.sources.columns import Columns
from cit_curate.text_encoder import encoder as encoder_module
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.tokens import Tokens

WORDS = ("a photo", "red", "green", "blue", "cats", "dogs", "rivers", "naïve", "猫", "tokenisation")
RULES = CurateConfig(
    texts="every", threshold=0.5, min_ratio=0.1, batch_size=64, lanes=2, calibration_captions=1_024
)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    small_tower(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tower: Path) -> TextEncoder:
    return TextEncoder.load(small_tower(tower), device="cpu")


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("red cats\nblue rivers\na green photo\n")
    return path


def build(folder: Path, name: str = "pool", rows: int = 600) -> Pool:
    lines = ["id,title,tag"]
    for number in range(rows):
        title = " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, number % 9 + 2))
        title += f" {number % 200}"
        tag = f"{WORDS[number % 7]},{WORDS[number % 5]}" if number % 3 else f" {WORDS[number % 7]} "
        lines.append(f'{number},{title},"{tag}"')
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = Columns(image_id="id", image="", text=("title", "tag"))
    return Pool.build([folder / f"{name}.csv"], folder / name, columns=columns)


def select(
    pool: Pool | PoolMixture, classes: Path, encoder: TextEncoder, rules: CurateConfig
) -> pa.Table:
    curator = Curator(pool, MetadataConfig(metadata=str(classes)), rules)
    scores = curator.lane_scores(encoder, curator.refresh(encoder))
    step = OuterStep(0, 0, encoder.fingerprint)
    selections = curator.run(step, [PoolCursor()] * rules.lanes, scores, num_pairs=None)
    return pa.concat_tables(each.rows for each in selections)


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is tokenised from now on."""
    encode, seen = encoder_module.encode, []

    def told(tokenizer: object, texts: list[str], *, cut_to: int) -> Tokens:
        seen.extend(texts)
        return encode(tokenizer, texts, cut_to=cut_to)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder_module, "encode", told)
    return seen


def captions_of(pool: Pool) -> set[str]:
    return {*pa.concat_tables(pool.tables(range(len(pool.row_groups))))["caption"].to_pylist()}


def test_the_tokens_are_the_tokenizer_s_row_by_row(
    tmp_path: Path, tower: Path, encoder: TextEncoder
) -> None:
    pool = build(tmp_path)
    tokenize(pool.path, text_encoder=str(tower))
    files = pool.token_files(encoder.tokenizer_key)
    assert files is not None
    for table in pool.tables(range(len(pool.row_groups)), tokens=files):
        captions = table["caption"].to_pylist()
        expected = encoder.tokenize(captions)
        ends = expected.starts + expected.counts
        assert table["tokens"].to_pylist() == [
            expected.ids[a:b].tolist() for a, b in zip(expected.starts, ends, strict=True)
        ]


@pytest.mark.parametrize(
    ("curation", "order", "aug_tag"),
    [("exact", "shuffled", True), ("exact", "sequential", False), ("cascade", "shuffled", True)],
)
def test_they_change_no_selection_and_spare_the_tokenizer(
    curation: str,
    order: str,
    aug_tag: bool,
    tmp_path: Path,
    classes: Path,
    tower: Path,
    encoder: TextEncoder,
    tokenized: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = build(tmp_path, rows=1_500 if curation == "cascade" else 600)
    rules = replace(RULES, curation=curation, order=order, aug_tag=aug_tag)  # type: ignore[arg-type]
    monkeypatch.setattr("cit_curate.curation.scores.cascade.TREND_CAPTIONS", 100)
    expected = select(pool, classes, encoder, rules)
    tokenize(pool.path, text_encoder=str(tower))
    tokenized.clear()
    assert select(Pool.open(pool.path), classes, encoder, rules).equals(expected)
    changed = {text for text in captions_of(pool) if "," in text or text != text.strip()}
    assert not captions_of(pool).intersection(tokenized) - (changed if aug_tag else set())
    assert len(expected) > 20


@pytest.mark.slow
def test_of_several_pools_all_must_have_them(
    tmp_path: Path, classes: Path, tower: Path, encoder: TextEncoder, tokenized: list[str]
) -> None:
    one, other = build(tmp_path, "one"), build(tmp_path, "other", rows=400)
    pools = [f"{one.path}=0.5", f"{other.path}=0.5"]
    rules = replace(RULES, aug_tag=False)
    expected = select(PoolMixture.open(pools), classes, encoder, rules)
    for pool, is_spared in ((one, False), (other, True)):
        tokenize(pool.path, text_encoder=str(tower))
        tokenized.clear()
        assert select(PoolMixture.open(pools), classes, encoder, rules).equals(expected)
        assert captions_of(pool).isdisjoint(tokenized) == is_spared


def test_tokens_of_another_length_or_pool_are_not_used(
    tmp_path: Path, tower: Path, encoder: TextEncoder
) -> None:
    pool = build(tmp_path)
    tokenize(pool.path, text_encoder=str(tower), max_text_length=16)
    assert pool.token_files(encoder.tokenizer_key) is None
    tokenize(pool.path, text_encoder=str(tower))
    assert pool.token_files(encoder.tokenizer_key) is not None
    assert len(token_folders(pool.path)) == 2
    smaller = build(tmp_path, "smaller", rows=50)
    (pool.path / "tokens").rename(smaller.path / "tokens")
    assert smaller.token_files(encoder.tokenizer_key) is None
    found = check_pool(smaller.path)
    assert not found.damage
    assert sum("another state of the pool" in note for note in found.notes) == 2


@pytest.mark.slow
def test_they_are_written_again_only_when_asked(
    tmp_path: Path, tower: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = build(tmp_path)
    tokenize(pool.path, text_encoder=str(tower), json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["num_captions"] == 1_200
    assert told["bytes"] == sum(p.stat().st_size for p in Path(told["path"]).glob("*.parquet"))
    with pytest.raises(ConfigError, match="--overwrite"):
        tokenize(pool.path, text_encoder=str(tower))
    tokenize(pool.path, text_encoder=str(tower), overwrite=True)
    assert "tokens of 1,200 captions" in capsys.readouterr().out
    assert [path.name for path in (pool.path / "tokens").iterdir()] == [Path(told["path"]).name]
    assert not check_pool(pool.path).damage
    info(pool.path)
    assert f"tokens of cit pool tokenize: {Path(told['path']).name}" in capsys.readouterr().out


@pytest.mark.faults("L5", "P10")
@pytest.mark.parametrize("name", ["part-000000.parquet", "tokens.json"])
def test_damaged_tokens_are_named_with_what_to_do(
    name: str, tmp_path: Path, tower: Path, encoder: TextEncoder
) -> None:
    pool = build(tmp_path)
    tokenize(pool.path, text_encoder=str(tower))
    (folder,) = token_folders(pool.path)
    path = folder / name
    whole = path.read_bytes()
    for content in (whole[:-9], b"", None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(DamagedError, match=name):
            pool.token_files(encoder.tokenizer_key)
        (damage,) = check_pool(pool.path).damage
        assert (damage.file, "cit pool tokenize" in damage.advice) == (str(path), True)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    (damage,) = check_pool(pool.path).damage
    assert damage.file == str(path)
    path.write_bytes(whole)
    assert not check_pool(pool.path).damage
