import functools
import html.parser
import http.server
import io
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
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

from cit_curate.ledger import HISTOGRAM_BINS, SCHEMAS, Commit, Run
from cit_curate.query import RunDatabase
from cit_curate.records import PoolCursor
from cit_curate.report import build_report
from cit_curate.report.facts import MAX_CLASSES, collect_facts, flattened

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


def payload_page(path: Path, server: str = "http://127.0.0.1:9") -> Path:
    """A page with a payload in every caption, class, key and setting."""
    payloads = [payload.format(server=server) for payload in PAYLOADS]
    rows = [
        {**row(index, caption=payload), "image_id": f"{payload}{index}"}
        for index, payload in enumerate(payloads)
    ]
    images = {row["image_uri"]: image_bytes() for row in rows}
    pool = MemoryPool(path / "pool", rows, images)
    config = {payload: payload for payload in payloads} | {"nested": {payloads[0]: [payloads[1]]}}
    run = Run.create(path / "<img src=x onerror=alert(1)>run", config=config, environment=config)
    items = []
    for index in range(len(payloads)):
        item = scanned(index, outer_step=0, similarity=0.9, entry=index, classes=payloads)
        image_id = rows[index]["image_id"]
        items.append({**item, "image_id": image_id, "pair_key": f"{image_id}_t"})
    write_step(run, 0, selections=items)
    return build_report(run, pool, path / "report.html")


@pytest.mark.faults("R1", "C3")
def test_a_payload_in_any_field_stays_text(tmp_path: Path) -> None:
    page = payload_page(tmp_path).read_text(encoding="utf-8")
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
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def rendered_by_chromium(page: Path, profile: Path) -> str:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "this test needs Chromium: apt-get install chromium"
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=3000",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode("utf-8", "replace")


@pytest.mark.faults("R1")
@pytest.mark.slow
def test_chromium_runs_no_payload_and_asks_for_nothing(tmp_path: Path) -> None:
    with counting_server() as (server, asked):
        # The same payloads on a plain page do fire: the listeners work.
        plain = tmp_path / "plain.html"
        plain.write_text("<title>plain</title>" + "".join(PAYLOADS[8:]).format(server=server))
        assert "<title>owned</title>" in rendered_by_chromium(plain, tmp_path / "profile-1")
        assert asked
        asked.clear()
        page = payload_page(tmp_path, server)
        document = rendered_by_chromium(page, tmp_path / "profile-2")
        assert asked == []
    title = document.partition("<title>")[2].partition("</title>")[0]
    assert title == "&lt;img src=x onerror=alert(1)&gt;run · cit report"
    names = {name for name, _ in Tags(document).tags}
    assert names.isdisjoint({"script", "iframe", "object", "link", "base"})
    assert document.count("data:image/webp") == len(PAYLOADS)


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
    with RunDatabase(run) as database:
        facts = collect_facts(run, database)
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
    with RunDatabase(run, small_pool(tmp_path / "pool", 40)) as database:
        [cat] = collect_facts(run, database).classes

    def numbers(name: str) -> list[int]:
        return [int(example.pair_key[:8]) for example in getattr(cat, name)]

    assert numbers("most_similar") == [0, 1, 2, 3, 4, 5]
    assert numbers("borderline") == [30, 19, 18, 17, 16, 15]
    assert numbers("near_misses") == [31, 32, 33, 34]
    assert cat.most_similar[1].caption == "a picture of thing 1"


def test_a_class_of_few_pairs_shows_each_once(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=1)
    with RunDatabase(run) as database:
        cat = collect_facts(run, database).classes[0]
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
    with RunDatabase(run) as database:
        [entry] = collect_facts(run, database).classes
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
def test_a_million_rows_make_a_page_under_20_megabytes(tmp_path: Path) -> None:
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
