"""Ways to find the nearest metadata: exact products, FAISS Flat, IVF and HNSW.

    python -m scripts.bench.index [--entries 1000 21000 500000] [--queries 4096] [--json FILE]

The vectors are a mixture, since class names come in groups of kin: 384 dimensions, 40 entries to a
centre; queries lie about 0.6 from their entry, as captions do. Build time, queries a second, and
what an approximate answer loses against the exact one.
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from indexes.build import build_index
from indexes.protocol import Float32
from indexes.recall import recall, similarity_error
from scripts.bench.side_by_side import Comparison, bench_parser, compare_ways, show

KINDS = ("exact", "flat", "ivf", "hnsw")
DIM = 384
ENTRIES_PER_CENTRE = 40
# Cosine of an entry with its centre, and of a query with its entry.
ENTRY_SIMILARITY = 0.75
QUERY_SIMILARITY = 0.6


def main() -> None:
    """Print a table for each number of entries."""
    parser = bench_parser(__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 21_000, 500_000])
    parser.add_argument("--queries", type=int, default=4_096)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    tables = [
        compare(num, options.queries, kinds=options.kinds, repeats=options.repeats)
        for num in options.entries
    ]
    show(tables, options.json)


def compare(
    num_entries: int, num_queries: int, *, kinds: Sequence[str], repeats: int
) -> Comparison:
    """All kinds over the same entries, asked the same queries in turn."""
    vectors = entry_vectors(num_entries)
    queries = query_vectors(vectors, num_queries)
    exact = build_index(vectors, "exact").search(queries)
    indexes, notes = {}, {}
    for kind in kinds:
        started = time.perf_counter()
        indexes[kind] = build_index(vectors, kind)
        built = time.perf_counter() - started
        found = indexes[kind].search(queries)
        notes[kind] = {
            "build s": f"{built:.3g}",
            "recall@1": f"{recall(found, exact):.4f}",
            "largest error": f"{similarity_error(found, exact):.2g}",
        }
    return compare_ways(
        f"{num_entries:,} entries",
        "queries",
        {kind: partial(index.search, queries) for kind, index in indexes.items()},
        num_queries,
        repeats=repeats,
        warm_up=False,  # each has searched once
        notes=notes.__getitem__,
        facts={"dimensions": DIM, "queries": num_queries, "torch threads": torch.get_num_threads()},
    )


def entry_vectors(num_entries: int) -> Float32:
    """float32 [entries, 384], unit norm; the same ones every time."""
    rng = np.random.default_rng(0)
    centres = _unit(rng.standard_normal((-(-num_entries // ENTRIES_PER_CENTRE), DIM)))
    chosen = centres[rng.integers(len(centres), size=num_entries)]
    return _near(chosen, ENTRY_SIMILARITY, rng)


def query_vectors(vectors: Float32, num_queries: int) -> Float32:
    """float32 [queries, 384], unit norm, each near one of the entries."""
    rng = np.random.default_rng(1)
    return _near(vectors[rng.integers(len(vectors), size=num_queries)], QUERY_SIMILARITY, rng)


def _near(vectors: Float32, similarity: float, rng: np.random.Generator) -> Float32:
    """A vector at about that cosine from each."""
    noise = _unit(rng.standard_normal(vectors.shape, dtype=np.float32))
    return _unit(similarity * vectors + (1 - similarity**2) ** 0.5 * noise)


def _unit(vectors: npt.NDArray[np.floating]) -> Float32:
    unit: Float32 = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


if __name__ == "__main__":
    main()
