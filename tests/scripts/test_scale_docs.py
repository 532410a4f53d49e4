from xml.etree import ElementTree

import pytest

from scripts.bench.scale_docs import (
    DOCS,
    PAGE,
    blocks,
    charts,
    count,
    duration,
    filled,
    num_bytes,
)


def test_the_committed_tables_are_those_that_the_model_gives() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, blocks()) == page, "run: python -m scripts.bench.scale_docs"


def test_the_committed_charts_are_those_that_the_model_draws() -> None:
    for name, markup in charts().items():
        committed = (DOCS / name).read_text(encoding="utf-8")
        assert committed == markup, "run: python -m scripts.bench.scale_docs"


def test_every_chart_is_well_formed_shown_on_the_page_and_has_no_script() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, markup in charts().items():
        root = ElementTree.fromstring(markup)
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert "script" not in tags
        assert f"({name})" in page


def test_a_page_without_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no block <!-- scale:b -->"):
        filled("<!-- scale:a -->\n<!-- /scale:a -->", {"a": "1", "b": "2"})


def test_only_what_stands_in_a_block_is_replaced() -> None:
    page = "before\n<!-- scale:a -->\nold\n<!-- /scale:a -->\nafter"
    expected = "before\n<!-- scale:a -->\nnew\n<!-- /scale:a -->\nafter"
    assert filled(page, {"a": "new"}) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (45, "45 s"),
        (90, "1.5 min"),
        (7_200, "2 h"),
        (5 * 86_400, "5 days"),
        (63_115_200, "2 years"),
    ],
)
def test_a_duration_reads_as_a_person_says_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_bytes_and_counts_have_three_digits() -> None:
    assert num_bytes(160e9) == "160 GB"
    assert count(14_689_580) == "14.7 M"
