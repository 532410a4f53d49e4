"""What a curator makes of its metadata: the fingerprint and the index."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cit_curate.config import CurateConfig, MetadataConfig
from cit_curate.curation.curator import Curator
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor
from cit_curate.sources.columns import Columns
from cit_curate.text_encoder.texts import Texts


class CountingEncoder:
    """Gives each text a vector and remembers the texts."""

    fingerprint = "counting"
    device = "cpu"
    tokenizer_key = ""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        return np.eye(4, dtype=np.float32)[[len(text) % 4 for text in texts]]

    def embed_on_device(self, texts: Texts) -> np.ndarray:
        return self.embed(texts.array.to_pylist())


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    path = tmp_path / "captions.csv"
    path.write_text("image_id,text_key,caption\n1,title,a truck\n2,title,a ship\n")
    columns = Columns(image_id="image_id", text_key="text_key", caption="caption")
    return Pool.build([path], tmp_path / "pool", columns=columns)


@pytest.mark.faults("L2")
def test_a_threshold_that_everything_passes_works_and_is_told(
    pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "classes.txt").write_text("car\n")  # as long as "a truck", modulo 4
    metadata = MetadataConfig(metadata=str(tmp_path / "classes.txt"))
    encoder = CountingEncoder()
    for threshold, is_told in ((-1.0, True), (0.5, False)):
        rules = CurateConfig(threshold=threshold, batch_size=2, min_ratio=0.0, texts="every")
        curator = Curator(pool, metadata, rules)
        caplog.clear()
        scores = curator.lane_scores(encoder, curator.refresh(encoder))
        step = OuterStep(0, 0, encoder.fingerprint)
        (selection,) = curator.run(step, [PoolCursor()], scores, num_pairs=None)
        assert len(selection.rows) == (2 if is_told else 1)
        assert ("every caption is kept (ratio 1.0)" in caplog.text) == is_told


def test_only_the_command_says_what_is_wrong_with_a_list(
    pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "classes.txt").write_text("car\nship\ncar\n")
    curator = Curator(pool, MetadataConfig(metadata=str(tmp_path / "classes.txt")), CurateConfig())
    assert [entry.name for entry in curator.entries] == ["car", "ship"]
    assert curator.classes is not None
    assert "'car' is repeated" in curator.classes.lines[1]
    assert caplog.text == ""  # each worker and each rank opens one


def test_template_metadata_changes_the_fingerprint_and_what_is_embedded(pool: Pool) -> None:
    plain, prompted = (
        Curator(pool, MetadataConfig(metadata="stl10", template_metadata=on), CurateConfig())
        for on in (False, True)
    )
    assert plain.fingerprint != prompted.fingerprint
    encoder = CountingEncoder()
    plain.refresh(encoder)
    assert encoder.seen[:2] == ["airplane", "bird"]
    encoder.seen.clear()
    prompted.refresh(encoder)
    assert encoder.seen[:3] == [
        "a photo of a airplane.",
        "a photo of the airplane.",
        "a photo of a bird.",
    ]
