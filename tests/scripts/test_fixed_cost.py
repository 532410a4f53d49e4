"""The benchmark of the fixed cost: its pools are pools, and its stages add up to its steps."""

from itertools import islice
from time import perf_counter

import numpy as np
import pytest

from cit_curate.config import CurateConfig, MetadataConfig
from cit_curate.curation.curator import Curator
from cit_curate.pool.check import verify_pool
from cit_curate.pool.pool import Pool
from cit_curate.run.ledger import Run
from scripts.bench import fixed_cost
from scripts.bench.fixed_cost import RandomEncoder, compare_help, made_pool, outer_steps


@pytest.fixture
def pool(tmp_path):
    return made_pool(tmp_path / "pool-2000", 2_000)


def test_a_made_up_pool_is_a_pool_with_a_title_and_tags_of_each_image(pool):
    verify_pool(pool)
    opened = Pool.open(pool)
    assert (opened.num_pairs, opened.num_images) == (2_000, 1_000)
    assert opened.manifest.text_keys == {"tag": 1_000, "title": 1_000}
    assert made_pool(pool, 2_000) == pool  # which is there already


def test_the_stages_are_all_of_an_outer_step(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(fixed_cost, "SCANNED", 256)
    (tmp_path / "names.txt").write_text("east\nwest\n")
    metadata = MetadataConfig(metadata=str(tmp_path / "names.txt"))
    config = CurateConfig(
        threshold=1.0, min_ratio=fixed_cost.MIN_RATIO, batch_size=32, max_passes=4, index="exact"
    )
    run = Run.create(tmp_path / "run", config={}, environment={})
    started = perf_counter()
    steps = list(islice(outer_steps(Curator(Pool.open(pool), metadata, config), run), 3))
    wall = perf_counter() - started
    assert [step.scanned for step in steps] == [256, 256, 256]
    assert 0 < sum(step.seconds for step in steps) <= wall
    assert len(run.commits()) == 3
    assert len(run.read("selections")) == 3 * 256 * fixed_cost.MIN_RATIO


def test_vectors_that_are_drawn_have_unit_norm():
    encoder = RandomEncoder()
    assert np.linalg.norm(encoder.embed(["a", "b"]), axis=1) == pytest.approx([1, 1])
    assert encoder.seconds > 0


def test_help_is_shown_by_processes_of_their_own():
    comparison = compare_help(1, ["--version"])
    assert [each.name for each in comparison.timings] == ["python -c pass", "cit --version"]
