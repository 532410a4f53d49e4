"""Small fabricated runs and pools, whose every number a test can see."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cit_curate.images.read import ImageRejected
from cit_curate.records import PoolCursor, pair_key
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import HISTOGRAM_BINS, SCHEMAS
from cit_curate.run.query import PairSource
from cit_curate.storage.durable import FileEntry, describe_file

CLASSES = ("cat", "dog", "owl")
THRESHOLD = 0.55


def image_bytes(colour: str = "red", size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


@dataclass(frozen=True)
class PoolPart:
    file: FileEntry


class MemoryPool:
    """A pool folder with one part; its images lie in a dict."""

    def __init__(self, path: Path, rows: Sequence[dict[str, str]], images: dict[str, bytes]):
        self.path = path
        self.location = str(path)
        self.images = images
        self.asked: list[str] = []
        (path / "pairs").mkdir(parents=True)
        part = path / "pairs" / "part-000000.parquet"
        names = ("image_id", "text_key", "caption", "image_uri", "source")
        table = pa.table(
            {name: pa.array([row[name] for row in rows], pa.string()) for name in names}
        )
        pq.write_table(table, part)
        self.parts = [PoolPart(describe_file(part, path, rows=len(rows)))]

    def image_bytes(self, image_uri: str, source: str, *, max_bytes: int = 1 << 25) -> bytes:
        self.asked.append(image_uri)
        try:
            return self.images[image_uri]
        except KeyError:
            raise ImageRejected("missing_image", f"{source} has no {image_uri}") from None


def row(index: int, caption: str = "", image_uri: str | None = None) -> dict[str, str]:
    """The pool's row number `index`: image id 00000007, text key t."""
    uri = f"memory:{index}.png" if image_uri is None else image_uri
    return {
        "image_id": f"{index:08d}",
        "text_key": "t",
        "caption": caption or f"a picture of thing {index}",
        "image_uri": uri,
        "source": "memory",
    }


def small_pool(path: Path, num_rows: int = 24, *, with_images: bool = True) -> MemoryPool:
    rows = [row(index, image_uri=None if with_images else "") for index in range(num_rows)]
    colours = ("red", "green", "blue")
    images = {f"memory:{i}.png": image_bytes(colours[i % 3]) for i in range(num_rows)}
    return MemoryPool(path, rows, images if with_images else {})


def scanned(
    index: int, *, outer_step: int, similarity: float, entry: int, classes: Sequence[str]
) -> dict[str, object]:
    return {
        "outer_step": outer_step,
        "lane": 0,
        "scan_position": index,
        "pair_key": pair_key(f"{index:08d}", "t"),
        "image_id": f"{index:08d}",
        "text_key": "t",
        "similarity": similarity,
        "metadata_id": entry,
        "metadata_text": classes[entry],
        "encoder": "f" * 8,
    }


def write_step(
    run: Run,
    outer_step: int,
    *,
    selections: Sequence[dict[str, object]],
    near_misses: Sequence[dict[str, object]] = (),
    used: bool = True,
    commit: bool = True,
    updates: int = 10,
) -> None:
    """Write one outer step of one lane; what is selected twice is used twice."""
    histogram = [0] * HISTOGRAM_BINS
    for item in (*selections, *near_misses):
        histogram[min(HISTOGRAM_BINS - 1, int((float(str(item["similarity"])) + 1) * 100))] += 1
    update = (outer_step + 1) * updates if used else 0
    tables: dict[str, list[dict[str, object]]] = {
        "selections": [{**item, "reason": "threshold"} for item in selections],
        "near_misses": list(near_misses),
        "rounds": [
            {
                "outer_step": outer_step,
                "lane": 0,
                "update": update,
                "scanned": len(selections) + len(near_misses),
                "kept": len(selections),
                "selected": len(selections),
                "threshold": THRESHOLD,
                "min_ratio": 0.003,
                "best_similarity": max(
                    (float(str(i["similarity"])) for i in selections), default=0
                ),
                "pool_passes": 0.5,
                "histogram": histogram,
            }
        ],
    }
    if used:
        tables["used"] = [
            {
                "outer_step": outer_step,
                "lane": 0,
                "pair_key": item["pair_key"],
                "times_used": 2,
                "first_update": outer_step * updates,
                "last_update": update - 1,
            }
            for item in selections
        ]
    entries = tuple(
        run.write_table(
            name,  # type: ignore[arg-type]
            pa.Table.from_pylist(rows, schema=SCHEMAS[name]),  # type: ignore[index]
            outer_step=outer_step,
            lane=0,
        )
        for name, rows in tables.items()
    )
    if commit:
        run.commit(
            Commit(outer_step=outer_step, update=update, cursors=(PoolCursor(0, 8),), files=entries)
        )


def small_run(
    path: Path,
    *,
    steps: int = 2,
    used: bool = True,
    pool: Path | None = None,
    classes: Sequence[str] = CLASSES,
) -> Run:
    """Each outer step selects pairs 0-5 and step's own pair 6 + step; 10 + step is a near miss.

    So `counts` has pairs 0-5 with 2 * steps (used) or steps (selected only), others 2 or 1.
    """
    config = {"threshold": THRESHOLD, "seed": 0, **({"pool": str(pool)} if pool else {})}
    run = Run.create(path, config=config, environment={})
    for step in range(steps):
        kept = [
            scanned(
                index,
                outer_step=step,
                similarity=0.9 - 0.05 * (index % 6),
                entry=index % len(classes),
                classes=classes,
            )
            for index in (*range(6), 6 + step)
        ]
        missed = [
            scanned(10 + step, outer_step=step, similarity=0.5, entry=0, classes=classes),
        ]
        write_step(run, step, selections=kept, near_misses=missed, used=used)
        run.log({"kind": "train", "update": 10 * step + 5, "loss": 3 - step, "learning_rate": 1e-3})
        run.log(
            {
                "kind": "eval",
                "update": 10 * (step + 1),
                "accuracy": 40.0 + 10 * step,
                "mean_per_class": 38.0 + 10 * step,
            }
        )
    return run


def query_run(run: Run, sql: str, pool: PairSource | None = None, **limits: Any) -> pa.Table:
    """The result of one SELECT over a run."""
    with run.database(pool) as database:
        return database.query(sql, **limits)
