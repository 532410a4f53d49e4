"""Captions of real words: the same rows however many are made, in no order, and some repeat."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts import make_captions
from scripts.make_captions import SCHEMA, TEMPLATES, batches, fields_of, write_captions


@pytest.fixture(scope="module")
def fields():
    defined = {"red fox": "a fox of the north", "oak": "a tree with acorns", "fox": "a small dog"}
    pictures = [
        {"title": title, "desc": "a drawing of an oak", "tag": tag}
        for title, tag in (("Fox", "fox,animal"), ("Fox", ""), ("Old oak", "tree,oak"))
    ]
    return fields_of(defined, pictures)


def test_words_are_as_frequent_as_they_are_in_the_texts(fields):
    words = fields["word"]
    assert words.texts[:3].to_pylist() == ["oak", "of", "an"]
    assert fields["lemma"].texts.to_pylist() == ["oak", "fox", "red fox"]
    assert fields["title"].texts.to_pylist() == ["Fox", "Old oak"]
    assert fields["tags"].texts.to_pylist() == ["fox, animal", "tree, oak"]
    assert words.shares[-1] == pytest.approx(1)


def test_a_row_is_the_same_however_many_are_made(fields, tmp_path, monkeypatch):
    monkeypatch.setattr(make_captions, "BATCH_ROWS", 100)
    monkeypatch.setattr(make_captions, "FILE_ROWS", 200)
    write_captions(fields, 530, tmp_path / "more")
    write_captions(fields, 250, tmp_path / "fewer")
    more, fewer = (pq.read_table(tmp_path / name) for name in ("more", "fewer"))
    assert [path.name for path in sorted((tmp_path / "more").iterdir())] == [
        f"captions-00{number}.parquet" for number in range(3)
    ]
    assert more.schema == SCHEMA
    assert (len(more), len(fewer)) == (530, 250)
    assert more.slice(0, 250).equals(fewer)
    (other,) = batches(fields, 0, 100, seed=1)
    assert other["alt"].to_pylist() != fewer["alt"][:100].to_pylist()


def test_ids_are_distinct_and_in_no_order(fields):
    (batch,) = batches(fields, 0, 5_000)
    ids = batch["image_id"].to_pylist()
    assert len(set(ids)) == 5_000
    assert ids != sorted(ids)
    assert batch["url"][0].as_py() == f"https://pictures.example/{ids[0]}.jpg"


def test_every_template_is_filled_as_often_as_it_should_be(fields):
    (batch,) = batches(fields, 0, 20_000)
    captions = batch["alt"].to_pylist()
    assert not [caption for caption in captions if "{" in caption or not caption]
    share = sum(caption.startswith("IMG_") for caption in captions) / len(captions)
    assert share == pytest.approx(TEMPLATES["IMG_{number}"] / sum(TEMPLATES.values()), abs=0.005)
    # The first of two titles is drawn 2 ** 0.9 times as often as the second.
    counts = Counter(captions)
    assert counts["Fox"] / counts["Old oak"] == pytest.approx(2**0.9, rel=0.2)
    assert isinstance(batch["alt"], pa.StringArray)
