"""The clip-art pool's table: every openclipart picture with the texts of its SVG.

The SVG's RDF `<metadata>` holds a Dublin Core title, description and keywords: three text keys per
picture, a YFCC in miniature. (`openclipart-png`, `openclipart-svg` 0.18 of Debian; public domain.)
"""

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from cit_curate.errors import ConfigError
from cit_curate.storage.durable import atomic_file

__all__ = ["ClipartTexts", "read_svg_texts", "write_clipart_table"]

_logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16
# RDF sits at the head of a drawing; the longest entity that openclipart declares has 50 characters.
_MAX_ENTITY_CHARACTERS = 1_000
# LookupError and ValueError: an encoding that neither expat nor Python reads.
_PARSE_ERRORS = (expat.ExpatError, LookupError, ValueError)


@dataclass(frozen=True)
class ClipartTexts:
    """The texts of one drawing, on one line each; empty where the drawing has none."""

    title: str = ""
    desc: str = ""
    tag: str = ""


class _MetadataEnd(Exception):  # noqa: N818  (ends the parse early; not an error)
    """The drawing's metadata have been read."""


def write_clipart_table(png_root: Path, svg_root: Path, out: Path) -> int:
    """Write the CSV table of the pool and return its number of rows.

    Columns: image_id (8 digits: the row's number in the order of the paths), image (path relative
    to `png_root`, with slashes), title, desc, tag (keywords joined by commas). The same folders
    make the same bytes. Links, which are duplicates, are skipped. A picture whose SVG is missing or
    broken keeps its row with empty texts, and the log counts these.

    Args:
        png_root: The folder of the pictures, such as `usr/share/openclipart/png`.
        svg_root: The folder of the SVGs, with the same relative paths.
        out: The CSV file, which is replaced atomically.

    Raises:
        ConfigError: A folder is missing or has no PNG.
    """
    for root, package in ((png_root, "openclipart-png"), (svg_root, "openclipart-svg")):
        if not root.is_dir():
            raise ConfigError(f"{root} is not a folder; point it at the {package} package's files")
    pictures = sorted(
        path.relative_to(png_root).as_posix()
        for path in png_root.rglob("*.png")
        if path.is_file() and not path.is_symlink()
    )
    if not pictures:
        raise ConfigError(f"{png_root} has no PNG; point it at the openclipart-png package's files")
    unread = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_file(out) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image_id", "image", "title", "desc", "tag"))
        for number, picture in enumerate(pictures):
            try:
                texts = read_svg_texts((svg_root / picture).with_suffix(".svg"))
            except (OSError, ValueError) as error:
                _logger.debug("no texts for %s: %s", picture, error)
                texts = ClipartTexts()
                unread += 1
            writer.writerow((f"{number:08d}", picture, texts.title, texts.desc, texts.tag))
    if unread:
        _logger.warning("%d of %d pictures have no readable SVG", unread, len(pictures))
    return len(pictures)


def read_svg_texts(path: Path) -> ClipartTexts:
    """The title, description and keywords in an SVG's metadata.

    White space is collapsed. Nothing outside the file is read. Entities that the file declares are
    not expanded in texts; a file whose entities refer to others or to files is rejected.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not well-formed XML up to the end of its metadata, or is unsafe.
    """
    reader = _MetadataReader()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                reader.parser.Parse(chunk, False)
            reader.parser.Parse(b"", True)
    except _MetadataEnd:
        pass
    except _PARSE_ERRORS as error:
        raise ValueError(f"{path}: {error}") from error
    return reader.texts()


class _MetadataReader:
    """Expat handlers that collect the texts of the first RDF work."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.EntityDeclHandler = self._entity
        # With a plain default handler expat leaves internal entities in texts unexpanded; external
        # ones are never fetched since there is no ExternalEntityRefHandler.
        self.parser.DefaultHandler = self._ignore
        self._path: list[str] = []
        self._pieces: list[str] = []
        self._title = ""
        self._desc = ""
        self._keywords: list[str] = []

    def texts(self) -> ClipartTexts:
        return ClipartTexts(self._title, self._desc, ",".join(self._keywords))

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        # Names are compared without their prefix: some drawings bind other prefixes, or none.
        self._path.append(name.rpartition(":")[2])
        self._pieces.clear()

    def _end(self, name: str) -> None:
        text = " ".join("".join(self._pieces).split())
        self._pieces.clear()
        match tuple(self._path):
            case (*_, "Work", "title") if self._in_work():
                self._title = self._title or text
            case (*_, "Work", "description") if self._in_work():
                self._desc = self._desc or text
            case (*_, "Work", "subject") | (*_, "Work", "subject", _, "li") if self._in_work():
                self._keywords += [text] if text else []
            case (*_, "RDF", "Work"):
                raise _MetadataEnd
        self._path.pop()

    def _in_work(self) -> bool:
        return "metadata" in self._path

    def _characters(self, text: str) -> None:
        self._pieces.append(text)

    def _entity(
        self,
        name: str,
        is_parameter: bool,
        value: str | None,
        base: str | None,
        system_id: str | None,
        public_id: str | None,
        notation: str | None,
    ) -> None:
        if is_parameter or value is None or "&" in value or len(value) > _MAX_ENTITY_CHARACTERS:
            raise ValueError(f"the entity {name!r} refers to others or is too long")

    def _ignore(self, text: str) -> None:
        pass
