"""The benchmarks of pools, shards, counts and indexes run, at a size that takes no time."""

from pathlib import Path

from scripts.bench import counts, index, shards, yfcc_pool


def test_both_ways_make_the_same_captions_of_a_yfcc_file(tmp_path: Path) -> None:
    table = yfcc_pool.compare(tmp_path, 500, "yfcc100m", 1, repeats=1)
    assert table.ratio("line by line") == 1
    assert int(table.facts["captions"]) > 500


def test_shards_are_written_and_read_both_ways(tmp_path: Path) -> None:
    samples = shards.made_up_samples(5, 500)
    writing, *_ = shards.compare(samples, tmp_path, repeats=1)
    assert [timing.name for timing in writing.timings] == ["webdataset", "cit"]
    shards.write_ours(samples, tmp_path / "ours")
    assert list(shards.read_ours(tmp_path / "ours")) == samples
    assert [each["jpg"] for each in shards.read_theirs(tmp_path / "ours")] == [
        sample.image for sample in samples
    ]


def test_every_way_counts_the_same_uses(tmp_path: Path) -> None:
    counts.write_ledger(tmp_path / "run", 250, 40, 100)
    assert [tuple(row.values()) for row in counts.view_totals(tmp_path)] == counts.plain_totals(
        tmp_path
    )
    assert counts.export_json(tmp_path) == counts.export_parquet(tmp_path)


def test_every_kind_of_index_is_compared_with_the_exact_one() -> None:
    table = index.compare(200, 30, kinds=index.KINDS, repeats=1)
    assert [timing.name for timing in table.timings] == list(index.KINDS)
    assert table["flat"].notes["recall@1"] == "1.0000"
