import functools
import html.parser
import http.server
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from browser import Browser
from PIL import Image
from run_fixtures import (
    MemoryPool,
    image_bytes,
    row,
    scanned,
    small_pool,
    small_run,
    write_step,
)

from cit_curate.records import PoolCursor
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import HISTOGRAM_BINS, SCHEMAS
from cit_curate.run.report.facts import MAX_CLASSES, collect_facts, flattened
from cit_curate.run.report.page import build_report

PAYLOADS = (
    "<script>document.title='owned'</script>",
    "</title><script>document.title='owned'</script>",
    "</style><script>document.title='owned'</script>",
    "</textarea></svg></template><img src=x onerror=\"document.title='owned'\">",
    "\"' onmouseover=alert(1) autofocus onfocus=document.title='owned' x='",
    "<svg onload=document.title='owned'>",
    "<iframe src=javascript:parent.document.title='owned'></iframe>",
    "<meta http-equiv=refresh content='0;url={server}/refresh'>",
    "<img src={server}/img><link rel=stylesheet href={server}/css><base href={server}>",
    "<style>@import url({server}/style)</style><object data={server}/object></object>",
    "javascript:document.title='owned'",
    "{{{{ 7 * 7 }}}}{{% set x = 1 %}}",
    "<!-- --!><script>document.title='owned'</script>",
    "<script>alert('alert')</script><b onclick=alert('alert') onmouseover=alert('alert')>x</b>",
    "<details open ontoggle=alert('alert')></details>",
    "\x00\x1b[31m\u202edrowssap\u202c <b>bold</b>",
)


class Tags(html.parser.HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


KINDS = ("one pool", "several pools", "imported")


def payload_page(path: Path, server: str = "http://127.0.0.1:9", *, kind: str = "one pool") -> Path:
    """A page with a payload in every field that is a text: of the pool, the ledger, the settings.

    Each payload is a class with one pair kept and one missed.
    """
    payloads = [payload.format(server=server) for payload in PAYLOADS]
    rows = [
        {
            **row(index, caption=payload),
            **{"image_id": f"{payload}{index}", "image_uri": f"{payload}{index}"},
            "source": payload,
        }
        for index, payload in enumerate([*payloads, *payloads])
    ]
    images = {row["image_uri"]: image_bytes() for row in rows}
    pool = MemoryPool(path / "pool", rows, images)
    config = {payload: payload for payload in payloads} | {"nested": {payloads[0]: [payloads[1]]}}
    settings: dict[str, object] = {**config}
    if kind == "imported":
        settings["imported_counts"] = "".join(payloads)
    if kind == "several pools":
        settings["pools"] = [{"name": payload, "weight": 1} for payload in payloads]
    run = Run.create(path / "<img src=x onerror=alert(1)>run", config=settings, environment=config)
    items = []
    for index, pair in enumerate(rows):
        entry = index % len(payloads)
        item = scanned(index, outer_step=0, similarity=0.9, entry=entry, classes=payloads)
        key = {"image_id": pair["image_id"], "pair_key": f"{pair['image_id']}_t"}
        items.append({**item, **key, "encoder": payloads[entry], "pool": payloads[entry]})
    kept, missed = items[: len(payloads)], items[len(payloads) :]
    write_step(run, 0, selections=kept, near_misses=missed)
    rejects = [
        {"outer_step": 1, "lane": 0, "pair_key": payload, "reason": payload, "detail": payload}
        for payload in payloads
    ]
    gave = [
        {"pool": payload, "scanned": 2, "kept": 1, "selected": 1, "weight": 1.0}
        for payload in payloads
    ]
    step = {"outer_step": 1, "lane": 0, "scanned": 9, "kept": 5, "histogram": [1], "pools": gave}
    files = tuple(
        run.write_table(
            name,  # type: ignore[arg-type]
            pa.Table.from_pylist(table, schema=SCHEMAS[name]),  # type: ignore[index]
            outer_step=1,
            lane=0,
        )
        for name, table in (("rejects", rejects), ("rounds", [step]))
    )
    run.commit(Commit(outer_step=1, update=20, cursors=(PoolCursor(),), files=files))
    shown = pool if kind == "one pool" else None
    return build_report(run, shown, path / "report.html")


@pytest.mark.faults("R1", "C3")
@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_in_any_field_stays_text(tmp_path: Path, kind: str) -> None:
    page = payload_page(tmp_path, kind=kind).read_text(encoding="utf-8")
    tags = Tags(page).tags
    names = {name for name, _ in tags}
    assert names.isdisjoint(
        {"script", "iframe", "object", "link", "base", "embed", "form", "input"}
    )
    assert sum(name == "style" for name, _ in tags) == 1
    assert sum(name == "title" and not attributes for name, attributes in tags) >= 1
    for name, attributes in tags:
        assert not [key for key in attributes if key.startswith("on")]
        assert name != "img" or str(attributes["src"]).startswith("data:image/webp;base64,")
        assert name != "a" or str(attributes["href"]).startswith("#class-")
    assert "{{ 7 * 7 }}" in page
    assert "\x00" not in page
    assert "\x1b" not in page


@pytest.mark.faults("R1")
def test_the_page_allows_no_script_and_no_request(tmp_path: Path) -> None:
    page = build_report(small_run(tmp_path / "run"), None, tmp_path / "r.html").read_text()
    [policy] = [
        attributes["content"]
        for name, attributes in Tags(page).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert page.index("Content-Security-Policy") < page.index("<style>")


@contextmanager
def counting_server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, 0.05))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    started = Browser(tmp_path / "profile")
    yield started
    started.close()


@pytest.mark.faults("R1", "C3")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_in_chromium_no_payload_runs_opens_a_dialog_or_asks_for_anything(
    tmp_path: Path, browser: Browser, kind: str
) -> None:
    with counting_server() as (server, asked):
        # The same payloads on a plain page do fire: everything is listened to.
        plain = tmp_path / "plain.html"
        plain.write_text("<title>plain</title>" + "".join(PAYLOADS[:6]))
        assert browser.visit(plain).title == "owned"
        plain.write_text("".join(text for text in PAYLOADS if "alert('" in text))
        assert len(browser.visit(plain).dialogs) >= 3
        requesting = [text for text in PAYLOADS if "{server}" in text]
        for text in requesting:
            plain.write_text(text.format(server=server))
            assert browser.visit(plain).requests
        assert len(asked) >= len(requesting)
        asked.clear()
        visit = browser.visit(payload_page(tmp_path, server, kind=kind))
        assert (visit.dialogs, visit.requests, asked) == ([], [], [])
    assert visit.title == "<img src=x onerror=alert(1)>run · cit report"
    names = {name for name, _ in Tags(visit.document).tags}
    assert names.isdisjoint({"script", "iframe", "object", "link", "base"})
    if kind == "one pool":
        assert visit.document.count("data:image/webp") == 2 * len(PAYLOADS)


@pytest.mark.faults("R2", "R3")
def test_a_run_without_outer_steps_has_a_banner_and_says_no_data(tmp_path: Path) -> None:
    page = build_report(small_run(tmp_path / "run", steps=0), None, tmp_path / "r.html").read_text()
    assert "No outer step has been committed yet" in page
    assert page.count("no data") >= 5


@pytest.mark.faults("R3")
def test_a_step_that_is_not_committed_is_announced_and_left_out(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=1)
    clean = build_report(run, None, tmp_path / "clean.html").read_text()
    assert 'role="status"' not in clean
    late = [scanned(20, outer_step=1, similarity=0.99, entry=0, classes=["late class"])]
    write_step(run, 1, selections=late, commit=False)
    run.log({"kind": "eval", "update": 999, "accuracy": 99.9, "mean_per_class": 99.9})
    page = build_report(run, None, tmp_path / "r.html").read_text()
    assert "is not committed" in page
    assert "late class" not in page
    assert "99.9" not in page


@pytest.mark.faults("R3")
def test_a_training_run_below_its_updates_is_announced(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=1)
    config = {**run.config, "max_updates": 5000}
    (run.path / "config.json").write_text(json.dumps(config))
    page = build_report(run, None, tmp_path / "r.html").read_text()
    assert "The run is at update 10 of 5,000" in page


def test_the_numbers_are_those_of_the_ledger(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=2)
    with run.database() as database:
        facts = collect_facts(run, run.commits(), database)
    assert [(step.scanned, step.kept) for step in facts.steps] == [(8, 7), (8, 7)]
    assert facts.steps[1].ratio == 7 / 8
    assert facts.num_distinct == 8
    assert sum(facts.histogram) == 16
    assert [(entry.name, entry.num_pairs) for entry in facts.classes] == [
        ("cat", 3),
        ("dog", 3),
        ("owl", 2),
    ]
    assert [e.accuracy for e in facts.evaluations] == [40.0, 50.0]
    page = build_report(run, None, tmp_path / "r.html").read_text()
    for number in ("<dd>2</dd>", "<dd>16</dd>", "<dd>14</dd>", "<dd>87.5 %</dd>", "<dd>50 %</dd>"):
        assert number in page


def test_examples_are_the_best_the_worst_kept_and_the_best_missed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config={}, environment={})
    kept = [
        scanned(index, outer_step=0, similarity=0.99 - index / 100, entry=0, classes=["cat"])
        for index in range(20)
    ]
    missed = [
        scanned(30 + index, outer_step=0, similarity=0.5 - index / 100, entry=0, classes=["cat"])
        for index in range(5)
    ]
    write_step(run, 0, selections=kept, near_misses=missed)
    # The best near miss is kept by the next outer step, so it is none.
    write_step(
        run,
        1,
        selections=[scanned(30, outer_step=1, similarity=0.7, entry=0, classes=["cat"])],
    )
    with run.database(small_pool(tmp_path / "pool", 40)) as database:
        [cat] = collect_facts(run, run.commits(), database).classes

    def numbers(name: str) -> list[int]:
        return [int(example.pair_key[:8]) for example in getattr(cat, name)]

    assert numbers("most_similar") == [0, 1, 2, 3, 4, 5]
    assert numbers("borderline") == [30, 19, 18, 17, 16, 15]
    assert numbers("near_misses") == [31, 32, 33, 34]
    assert cat.most_similar[1].caption == "a picture of thing 1"


def test_a_class_of_few_pairs_shows_each_once(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=1)
    with run.database() as database:
        cat = collect_facts(run, run.commits(), database).classes[0]
    assert len(cat.most_similar) == cat.num_pairs == 3
    assert cat.borderline == ()


def test_pairs_that_no_similarity_chose_are_shown_by_use(tmp_path: Path) -> None:
    """As before `skip_until`, where everything passes unscored."""
    run = Run.create(tmp_path / "run", config={}, environment={})
    unscored = dict.fromkeys(("similarity", "metadata_id", "metadata_text"))
    items = [
        scanned(index, outer_step=0, similarity=0.9, entry=0, classes=["cat"]) | unscored
        for index in (*range(8), 5)
    ]
    names = ("selections", "rounds")
    rows = {
        "selections": items,
        "rounds": [{"outer_step": 0, "lane": 0, "scanned": 9, "kept": 9, "selected": 9}],
    }
    tables = [pa.Table.from_pylist(rows[name], schema=SCHEMAS[name]) for name in names]  # type: ignore[index]
    files = tuple(
        run.write_table(name, table, outer_step=0, lane=0)  # type: ignore[arg-type]
        for name, table in zip(names, tables, strict=True)
    )
    run.commit(Commit(outer_step=0, update=0, cursors=(PoolCursor(),), files=files))
    page = build_report(run, None, tmp_path / "r.html").read_text()
    assert "nan" not in page.lower()
    assert "2 uses" in page
    assert "no similarity chose them" in page
    with run.database() as database:
        [entry] = collect_facts(run, run.commits(), database).classes
    assert [example.pair_key[:8] for example in entry.most_used][:2] == ["00000005", "00000000"]


def test_many_classes_are_cut_and_the_page_says_so(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(MAX_CLASSES + 5)]
    run = Run.create(tmp_path / "run", config={}, environment={})
    items = [
        scanned(index, outer_step=0, similarity=0.9, entry=index, classes=names)
        for index in range(len(names))
    ]
    write_step(run, 0, selections=items)
    page = build_report(run, None, tmp_path / "r.html").read_text()
    assert f"The {MAX_CLASSES} largest of {len(names)} classes" in page
    assert page.count("<article") == MAX_CLASSES


@pytest.mark.faults("R2")
def test_missing_and_broken_pictures_leave_placeholders(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=1)
    pool = small_pool(tmp_path / "pool")
    pool.images["memory:0.png"] = b"broken"
    del pool.images["memory:1.png"]
    page = build_report(run, pool, tmp_path / "r.html").read_text()
    assert "format not allowed" in page
    assert "missing image" in page
    assert page.count("data:image/webp") == 6


def test_a_page_is_the_same_bytes_again(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    pool = small_pool(tmp_path / "pool")
    pages = [build_report(run, pool, tmp_path / f"{n}.html").read_bytes() for n in range(2)]
    assert pages[0] == pages[1]


def test_captions_may_run_from_right_to_left_and_settings_be_broken_text(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=1, classes=["حصان", "鶴", "dog"])
    (run.path / "config.json").write_text('{"name": "\\udcff \\u0007"}')
    page = build_report(run, None, tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<h3 dir="auto">حصان</h3>' in page
    assert "\x07" not in page


def test_nested_settings_become_dotted_rows() -> None:
    rows = flattened({"a": {"b": 1, "c": {}}, "d": [1, "x"], "e": "text", "f": None})
    assert rows == (("a.b", "1"), ("a.c", "{}"), ("d", '[1, "x"]'), ("e", "text"), ("f", "null"))


class NoisePool(MemoryPool):
    """Pictures that compress as badly as pictures can."""

    def image_bytes(self, image_uri: str, source: str, *, max_bytes: int = 1 << 25) -> bytes:
        generator = np.random.default_rng(hash(image_uri) % 1000)
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (160, 160, 3), np.uint8)).save(stream, "PNG")
        return stream.getvalue()


@pytest.mark.faults("R2")
@pytest.mark.slow
def test_a_million_rows_make_a_page_under_20_megabytes_that_opens_in_2_seconds(
    tmp_path: Path, browser: Browser
) -> None:
    num_rows, num_classes = 1_000_000, 1000
    generator = np.random.default_rng(0)
    ids = [f"{index:08d}" for index in range(num_rows)]
    entries = generator.integers(0, num_classes, num_rows)
    columns = {
        "outer_step": np.zeros(num_rows, np.int64),
        "lane": np.zeros(num_rows, np.int32),
        "scan_position": np.arange(num_rows),
        "pair_key": [f"{image_id}_t" for image_id in ids],
        "image_id": ids,
        "text_key": ["t"] * num_rows,
        "similarity": generator.uniform(0.55, 1, num_rows).astype(np.float32),
        "metadata_id": entries.astype(np.int32),
        "metadata_text": [f"class {entry}" for entry in entries],
        "reason": ["threshold"] * num_rows,
        "encoder": ["f"] * num_rows,
        "pool": ["pool"] * num_rows,
    }
    run = Run.create(tmp_path / "run", config={}, environment={})
    selections = pa.table(columns, schema=SCHEMAS["selections"])
    rounds = dict.fromkeys(SCHEMAS["rounds"].names, 1) | {
        "outer_step": 0,
        "lane": 0,
        "histogram": [5] * HISTOGRAM_BINS,
        "pools": [{"pool": "pool", "scanned": 1, "kept": 1, "selected": 1}],
        **{"skipped": None, "audited": None, "recalls": None},
    }
    files = (
        run.write_table("selections", selections, outer_step=0, lane=0),
        run.write_table(
            "rounds",
            pa.Table.from_pylist([rounds], schema=SCHEMAS["rounds"]),
            outer_step=0,
            lane=0,
        ),
    )
    run.commit(Commit(outer_step=0, update=0, cursors=(PoolCursor(),), files=files))
    pool = NoisePool(tmp_path / "pool", [row(index) for index in range(num_rows)], {})
    began = time.monotonic()
    page = build_report(run, pool, tmp_path / "r.html")
    assert time.monotonic() - began < 60
    assert page.stat().st_size < 20_000_000
    assert page.read_text().count("data:image/webp") == MAX_CLASSES * 12
    assert 0 < browser.seconds_to_load(page) < 2
