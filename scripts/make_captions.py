"""Make captions of real words, as many as wanted: the sources of a pool to measure scale with.

    python -m scripts.make_captions --captions 10000000 --out captions
    cit pool build captions --image-id image_id --image url --text alt --out POOL

Words are WordNet's, from the files in timm, and those of the clip art that `cit demo` fetches:
lemmas, definitions, titles, keywords, and the words of all of these as often as they occur there.
Templates put them together. Lemmas, titles and keywords are drawn by Zipf's law, so that some
captions come again and again. Row n of a seed is the same however many rows are made. Ids are
distinct and in no order, as are hashes of addresses; no image is behind any address.
"""

import argparse
import csv
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cit_curate.records import Int64
from cit_curate.storage.cache_folder import cache_folder
from cit_curate.storage.durable import atomic_file
from cit_train.demo.assets import fetch_deb
from cit_train.demo.clipart import write_clipart_table

Float64 = npt.NDArray[np.float64]

SCHEMA = pa.schema([("image_id", pa.string()), ("url", pa.string()), ("alt", pa.string())])
BATCH_ROWS = 65_536
FILE_ROWS = 16 * BATCH_ROWS
# The weight of rank n is 1 / n to the power of this.
ZIPF = 0.9
# Templates, and how many of a hundred captions are made of each.
TEMPLATES: Mapping[str, float] = {
    "{title}": 8,
    "{lemma}": 3,
    "{tags}": 3,
    "{definition}": 3,
    "IMG_{number}": 3,
    "DSC0{number}.JPG": 2,
    "{title} - {word} {word}": 10,
    "{word} {word} {title}": 8,
    "{word} {word} {word} {word} {word}": 10,
    "{word} {word} {word} {word} {word} {word} {word} {word} {word}": 12,
    "{title}, {definition}": 3,
    "{word} {word}: {definition}": 4,
    "photo of a {lemma}": 2,
    "{lemma} and {lemma} in the {word}": 4,
    "{word} {word} with {word} {lemma} and {word} {word}": 8,
    "{lemma} | {word} {word} {number}": 6,
    "{title} | {word} {word} - {lemma}, {word} {word} {word}": 6,
    "{word} {lemma} {number}x{number}": 5,
}
_FIELD = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Drawn:
    """Texts to draw from, and the cumulated shares by which they are drawn."""

    texts: pa.StringArray
    shares: Float64

    @classmethod
    def weighted(cls, texts: Sequence[str], weights: Float64) -> "Drawn":
        """Texts drawn by weights."""
        return cls(pa.array(texts, pa.string()), np.cumsum(weights) / weights.sum())

    @classmethod
    def by_rank(cls, texts: Sequence[str]) -> "Drawn":
        """Texts drawn by Zipf's law, the most frequent first."""
        return cls.weighted(texts, np.arange(1, len(texts) + 1, dtype=np.float64) ** -ZIPF)

    def draw(self, count: int, rng: np.random.Generator) -> pa.StringArray:
        """So many of them."""
        rows = np.searchsorted(self.shares, rng.random(count), side="right")
        return self.texts.take(pa.array(np.minimum(rows, len(self.texts) - 1)))


def main() -> None:
    """Make the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--captions", type=int, default=1_000_000, help="one an image")
    parser.add_argument("--out", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_captions(fields_of(*package_texts()), options.captions, options.out, seed=options.seed)


def package_texts() -> tuple[Mapping[str, str], Sequence[Mapping[str, str]]]:
    """The definition of each lemma of WordNet's synsets, and the texts of the clip art."""
    spec = find_spec("timm")  # to locate it imports nothing; timm itself would import torch
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("WordNet's words come with timm: pip install timm")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "_info"
    lemmas, definitions = (
        [line.partition("\t")[2] for line in (folder / name).read_text().splitlines()]
        for name in ("imagenet_synset_to_lemma.txt", "imagenet_synset_to_definition.txt")
    )
    defined = {
        lemma: definition
        for several, definition in zip(lemmas, definitions, strict=True)
        for lemma in several.split(", ")
        if not lemma.isupper()
    }
    with tempfile.TemporaryDirectory() as temporary:
        table = Path(temporary) / "clipart.csv"
        png, svg = (
            fetch_deb(f"openclipart-{kind}", cache_folder(), lambda line: None)
            for kind in ("png", "svg")
        )
        write_clipart_table(png, svg, table)
        with table.open(newline="", encoding="utf-8") as stream:
            return defined, list(csv.DictReader(stream))


def fields_of(
    defined: Mapping[str, str], pictures: Sequence[Mapping[str, str]]
) -> Mapping[str, Drawn]:
    """What each field of a template is drawn from.

    Args:
        defined: The definition of each lemma.
        pictures: Titles, descriptions and keywords, by `title`, `desc` and `tag`.
    """
    texts = [*defined.values(), *(row[key] for row in pictures for key in ("title", "desc"))]
    counts = Counter(word.lower() for text in texts for word in _WORD.findall(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    # A lemma is as common as the rarest of its words.
    rank = {word: number for number, word in enumerate(words)}
    of_lemma = {
        lemma: max(rank.get(word, len(rank)) for word in lemma.lower().split()) for lemma in defined
    }
    titles = Counter(row["title"] for row in pictures if row["title"])
    tags = Counter(row["tag"].replace(",", ", ") for row in pictures if row["tag"])
    return {
        "lemma": Drawn.by_rank(sorted(defined, key=lambda lemma: (of_lemma[lemma], lemma))),
        "definition": Drawn.by_rank(list(dict.fromkeys(defined.values()))),
        "title": Drawn.by_rank([title for title, _ in titles.most_common()]),
        "tags": Drawn.by_rank([tag for tag, _ in tags.most_common()]),
        "word": Drawn.weighted(words, np.array([counts[word] for word in words], np.float64)),
        "number": Drawn.weighted([f"{n:04d}" for n in range(10_000)], np.ones(10_000)),
    }


def write_captions(fields: Mapping[str, Drawn], count: int, out: Path, *, seed: int = 0) -> None:
    """Write the rows 0 to `count` - 1 to `out/captions-000.parquet` and on."""
    out.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, count, FILE_ROWS)):
        path = out / f"captions-{number:03d}.parquet"
        with atomic_file(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
            for batch in batches(fields, start, min(start + FILE_ROWS, count), seed=seed):
                writer.write_batch(batch)


def batches(
    fields: Mapping[str, Drawn], start: int, stop: int, *, seed: int = 0
) -> Iterator[pa.RecordBatch]:
    """The rows `start` to `stop` - 1, with `SCHEMA`; `start` is a multiple of `BATCH_ROWS`."""
    for first in range(start, stop, BATCH_ROWS):
        rows = np.arange(first, min(first + BATCH_ROWS, stop), dtype=np.int64)
        captions = _captions(fields, np.random.default_rng((seed, first // BATCH_ROWS)))
        ids = pa.array([f"{_scattered(row):010x}" for row in rows.tolist()], pa.string())
        urls = pc.binary_join_element_wise("https://pictures.example/", ids, ".jpg", "")
        yield pa.record_batch([ids, urls, captions.slice(0, len(rows))], schema=SCHEMA)


def _captions(fields: Mapping[str, Drawn], rng: np.random.Generator) -> pa.StringArray:
    """The captions of a batch: string [BATCH_ROWS]."""
    shares = np.array(list(TEMPLATES.values()))
    kinds: Int64 = rng.choice(len(shares), BATCH_ROWS, p=shares / shares.sum())
    made = [
        _filled(template, fields, int((kinds == number).sum()), rng)
        for number, template in enumerate(TEMPLATES)
    ]
    positions = np.empty(BATCH_ROWS, np.int64)
    positions[np.argsort(kinds, kind="stable")] = np.arange(BATCH_ROWS)
    return pa.concat_arrays(made).take(pa.array(positions))


def _filled(
    template: str, fields: Mapping[str, Drawn], count: int, rng: np.random.Generator
) -> pa.StringArray:
    """A template filled so many times."""
    parts = [
        fields[part].draw(count, rng) if is_field else part
        for number, part in enumerate(_FIELD.split(template))
        if (is_field := number % 2) or part
    ]
    if len(parts) == 1:
        return parts[0]
    return pc.binary_join_element_wise(*parts, "")


def _scattered(row: int) -> int:
    """A number below 2^40 for each row below 2^40, another one for each."""
    return (row * 0x9E3779B97F4A7C15 + 0x5DEECE66D) % (1 << 40)


if __name__ == "__main__":
    main()
