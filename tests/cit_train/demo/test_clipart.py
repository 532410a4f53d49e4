import csv
import logging
from pathlib import Path

import pytest

from cit_curate.errors import ConfigError
from cit_train.demo.clipart import ClipartTexts, read_svg_texts, write_clipart_table

RDF = """<metadata><rdf:RDF xmlns:rdf="r" xmlns:dc="d" xmlns:cc="c"><cc:Work rdf:about="">
 {work}
 <dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
</cc:Work></rdf:RDF></metadata>"""
FROG = RDF.format(
    work="""<dc:title> Green
    frog</dc:title><dc:description>It sits, and "waits"</dc:description>
    <dc:subject><rdf:Bag><rdf:li>frog</rdf:li><rdf:li/><rdf:li>hash(0x8a)</rdf:li></rdf:Bag>
    </dc:subject>"""
)


def svg(body: str, head: str = "") -> str:
    return f'<?xml version="1.0"?>{head}<svg xmlns="http://www.w3.org/2000/svg">{body}</svg>'


def written(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    png, vector = tmp_path / "png", tmp_path / "svg"
    for name in ("b/frog.png", "a/broken.png", "a/no_svg.png", "c.v2.png"):
        written(png / name, b"png")
    (png / "a" / "copy.png").symlink_to("../b/frog.png")
    written(vector / "b/frog.svg", svg(FROG))
    written(vector / "a/copy.svg", svg(FROG))
    written(vector / "a/broken.svg", "<svg><metadata>")
    written(vector / "c.v2.svg", svg("<title>A drawing's own title is no metadata</title>"))
    return png, vector


def test_the_table_has_a_row_for_each_picture_that_is_no_link(
    roots: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "new" / "table.csv"
    with caplog.at_level(logging.WARNING):
        assert write_clipart_table(*roots, out) == 4
    with out.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert rows == [
        ["image_id", "image", "title", "desc", "tag"],
        ["00000000", "a/broken.png", "", "", ""],
        ["00000001", "a/no_svg.png", "", "", ""],
        ["00000002", "b/frog.png", "Green frog", 'It sits, and "waits"', "frog,hash(0x8a)"],
        ["00000003", "c.v2.png", "", "", ""],
    ]
    assert "2 of 4 pictures have no readable SVG" in caplog.text


def test_the_table_is_the_same_bytes_again_and_replaces_an_older_one(
    roots: tuple[Path, Path], tmp_path: Path
) -> None:
    out = written(tmp_path / "table.csv", "older")
    write_clipart_table(*roots, out)
    first = out.read_bytes()
    write_clipart_table(*roots, out)
    assert out.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["png", "svg", "table.csv"]


def test_a_missing_or_empty_folder_is_named(roots: tuple[Path, Path], tmp_path: Path) -> None:
    png, vector = roots
    out = tmp_path / "table.csv"
    with pytest.raises(ConfigError, match=r"nowhere is not a folder.*openclipart-svg"):
        write_clipart_table(png, tmp_path / "nowhere", out)
    with pytest.raises(ConfigError, match="has no PNG"):
        write_clipart_table(vector, vector, out)
    assert not out.exists()


def test_entities_in_attributes_and_a_doctype_do_not_hide_the_texts(tmp_path: Path) -> None:
    doctype = """<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "http://nowhere.invalid/svg.dtd" [
        <!ENTITY ns_svg "http://www.w3.org/2000/svg"> ]>"""
    path = written(tmp_path / "a.svg", svg(f'<g xmlns="&ns_svg;"/>{FROG}', doctype))
    assert read_svg_texts(path).title == "Green frog"


def test_an_entity_in_a_text_is_not_expanded(tmp_path: Path) -> None:
    doctype = '<!DOCTYPE svg [<!ENTITY word "word">]>'
    body = RDF.format(work="<dc:title>a &word; &amp; b</dc:title>")
    assert read_svg_texts(written(tmp_path / "a.svg", svg(body, doctype))).title == "a & b"


@pytest.mark.parametrize(
    "entity",
    [
        '<!ENTITY a "lol"><!ENTITY b "&a;&a;">',
        '<!ENTITY a "&#38;a;">',
        '<!ENTITY a SYSTEM "file:///etc/passwd">',
        '<!ENTITY % a "lol">',
        f'<!ENTITY a "{"x" * 1001}">',
    ],
    ids=["nested", "nested by a character reference", "external", "parameter", "long"],
)
def test_a_drawing_with_entities_that_could_explode_is_refused(tmp_path: Path, entity: str) -> None:
    path = written(tmp_path / "a.svg", svg(FROG, f"<!DOCTYPE svg [{entity}]>"))
    with pytest.raises(ValueError, match=r"a.svg: the entity"):
        read_svg_texts(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"no xml", b'<?xml version="1.0" encoding="x-nowhere"?><svg/>', b"<svg>\xff</svg>"],
)
def test_a_broken_drawing_raises_value_error_with_its_path(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"a\.svg"):
        read_svg_texts(written(tmp_path / "a.svg", content))


def test_what_is_broken_after_the_metadata_does_not_matter(tmp_path: Path) -> None:
    path = written(tmp_path / "a.svg", f"<svg>{FROG}<path d='")
    assert read_svg_texts(path) == ClipartTexts(
        "Green frog", 'It sits, and "waits"', "frog,hash(0x8a)"
    )


def test_metadata_without_prefixes_in_latin_1_and_a_bare_subject_are_read(tmp_path: Path) -> None:
    text = (
        '<?xml version="1.0" encoding="iso-8859-1"?><svg><metadata><RDF><Work>'
        "<title>Grenouille verte \xe9t\xe9</title><subject>frog, pond</subject>"
        "</Work></RDF></metadata></svg>"
    )
    path = written(tmp_path / "a.svg", text.encode("latin-1"))
    assert read_svg_texts(path) == ClipartTexts("Grenouille verte \xe9t\xe9", "", "frog, pond")


def test_metadata_behind_a_long_drawing_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.svg", svg(f"<path d='{'M0 0 ' * 50_000}'/>{FROG}"))
    assert read_svg_texts(path).title == "Green frog"
