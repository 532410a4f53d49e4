"""Pairs that a person has named: excluded and included."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_lists import ListOrder, WordEncoder, caption_table, open_scan

from cit_curate.config import CurateConfig
from cit_curate.curation.lane_scan import LaneScan
from cit_curate.curation.policies.lists import named_by
from cit_curate.errors import BadInputError, ConfigError, ShortfallError
from cit_curate.metadata.entries import MetadataEntry
from indexes.build import build_index

ANGLES = ("0", "10", "1", "50", "2", "20", "3", "60", "4", "30")


def scan(**fields: object) -> LaneScan:
    encoder = WordEncoder()
    config = CurateConfig(batch_size=5, threshold=0.9, min_ratio=0.0, **fields)
    index = build_index(encoder.embed(["0"]), "exact")
    order = ListOrder(caption_table(ANGLES))
    return open_scan(config, order, [MetadataEntry("east")], encoder, index)


def kept(found: LaneScan) -> dict[str, str]:
    rows = found.take(None)
    return dict(zip(rows["caption"].to_pylist(), rows["reason"].to_pylist(), strict=True))


@pytest.fixture(params=["pairs.txt", "images.txt", "pairs.csv", "images.parquet", "predicate"])
def tens(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The captions 10, 20, 30 and 50, in each form that a list may have."""
    numbers = [1, 3, 5, 9]
    ids = [f"{number:08d}" for number in numbers]
    keys = [f"{each}_title" for each in ids]
    path = tmp_path / request.param
    if path.suffix == ".txt":
        path.write_text("\n".join(keys if "pairs" in path.name else ids) + "\n\n")
    elif path.suffix == ".csv":
        path.write_text("why,pair_key\n" + "".join(f"logo,{key}\n" for key in keys))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"image_id": ids}), path)
    else:
        return "length(caption) = 2 AND caption <> '60'"
    return str(path)


def test_what_is_excluded_is_not_kept_and_the_near_misses_say_so(tens: str) -> None:
    found = scan(exclude=(tens,))
    assert kept(found) == dict.fromkeys("01234", "threshold")
    missed = found.near_misses
    why = dict(zip(missed["caption"].to_pylist(), missed["reason"].to_pylist(), strict=True))
    assert why["10"] == why["20"] == "excluded"
    assert why["60"] == "threshold"


def test_what_is_included_is_kept_whatever_its_similarity(tens: str) -> None:
    found = kept(scan(include=(tens,)))
    assert found["50"] == found["30"] == "included"
    assert found["10"] == "threshold"  # it passes by itself
    assert "60" not in found


def test_excluding_wins_over_including(tens: str) -> None:
    assert "50" not in kept(scan(include=(tens,), exclude=("caption = '50'",)))


def test_without_curation_everything_else_is_taken_in_its_turn() -> None:
    found = scan(exclude=("length(caption) = 2",), curation="none")
    first = found.take(3)
    assert first["caption"].to_pylist() == ["0", "1", "2"]
    assert (found.totals.scanned, found.totals.kept) == (6, 3)
    assert found.take(2)["caption"].to_pylist() == ["3", "4"]
    assert found.take(1)["caption"].to_pylist() == ["0"]  # the next pass


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("absent.txt", ConfigError, "--exclude: there is no file"),
        ("empty.txt", BadInputError, "names nothing"),
        ("other.csv", BadInputError, "no column pair_key or image_id; it has name"),
        ("broken.parquet", BadInputError, "cannot be read as parquet"),
        ("caption LIKE", ConfigError, "neither a file"),
        ("nothing = 1", ConfigError, "nothing"),
        ("1) FROM pairs; DROP TABLE pairs; --", ConfigError, "neither a file"),
        ("caption IN (SELECT content FROM read_text('/etc/passwd'))", ConfigError, "refused"),
    ],
)
def test_lists_that_cannot_be_read_are_refused(
    tmp_path: Path, value: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "other.csv").write_text("name\nx\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    path = tmp_path / value if "." in value and " " not in value else None
    with pytest.raises(error, match=message):
        named_by(str(path or value), flag="--exclude")


def test_a_predicate_that_is_null_names_nothing() -> None:
    match = named_by("nullif(caption, '10') = '20'", flag="--exclude")
    rows = caption_table(ANGLES)
    assert np.flatnonzero(match(rows)).tolist() == [5]


def test_without_curation_a_pool_that_is_excluded_as_a_whole_ends_the_scan() -> None:
    with pytest.raises(ShortfallError):
        scan(exclude=("true",), curation="none").take(3)


def test_lanes_ask_one_predicate_at_the_same_time() -> None:
    match = named_by("length(caption) = 2", flag="--exclude")
    tables = [caption_table([str(10 * (each % 2)) for each in range(n)]) for n in range(1, 200)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(match, tables))
    assert [int(each.sum()) for each in found] == [n // 2 for n in range(1, 200)]
