"""Compressed text files: by suffix, by content, whole, in several pieces, and cut."""

import bz2
import gzip
import io
import lzma
import tarfile

import pyarrow as pa
import pytest
from source_rows import read_all

from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.sources.columns import Columns
from cit_curate.sources.source import find_sources, open_source
from cit_curate.sources.text.files import compression_of

COLUMNS = Columns(image_id="id", text=("text",))
TABLE = "id,text\n" + "".join(f"{number},a bell that rings {number % 7}\n" for number in range(60))
LINES = "".join(f'{{"id": {n}, "text": "a bell that rings {n % 7}"}}\n' for n in range(60))


def zstd(content):
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as packed:
        packed.write(content)
    return stream.getvalue().to_pybytes()


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def read(path, **options):
    (source,) = find_sources([path], **options)
    return read_all(open_source(source, COLUMNS), path.parent, source.name)


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize(
    ("name", "text", "format"),
    [
        ("t.csv{}", TABLE, "auto"),
        ("T.CSV{}", TABLE, "auto"),
        ("t.tab{}", TABLE.replace(",", "\t"), "auto"),
        ("t.tsv{}", TABLE.replace(",", "\t"), "auto"),
        ("t.jsonl{}", LINES, "auto"),
        ("t.json{}", LINES, "auto"),
        ("t.ndjson{}", LINES, "auto"),
        ("t.txt{}", TABLE, "csv"),
        ("t{}", LINES, "jsonl"),
    ],
)
def test_a_compressed_table_is_read_by_its_suffix(tmp_path, suffix, name, text, format):
    for spelled in (suffix, suffix.upper()):
        path = write(tmp_path / name.format(spelled), PACKED[suffix](text.encode()))
        assert len(read(path, format=format).pairs) == 60


@pytest.mark.parametrize("suffix", PACKED)
def test_the_content_counts_and_not_the_name(tmp_path, suffix):
    for name, text in (
        ("t.csv", TABLE),
        ("t.jsonl", LINES),
        ("t.json", LINES),
        ("u.csv.gz", TABLE),
    ):
        assert len(read(write(tmp_path / name, PACKED[suffix](text.encode()))).pairs) == 60
    path = write(tmp_path / f"plain.csv{suffix}", TABLE.encode())
    assert compression_of(path) == ""
    assert len(read(path).pairs) == 60


@pytest.mark.parametrize("suffix", PACKED)
def test_a_file_of_several_compressed_pieces_is_read_to_its_end(tmp_path, suffix):
    middle = TABLE.index("30,")
    pieces = [TABLE[:middle], TABLE[middle:]]
    packed = b"".join(PACKED[suffix](piece.encode()) for piece in pieces)
    assert len(read(write(tmp_path / f"t.csv{suffix}", packed)).pairs) == 60


@pytest.mark.faults("P3")
@pytest.mark.parametrize("suffix", PACKED)
def test_a_compressed_file_cut_anywhere_is_damaged(tmp_path, suffix):
    packed = PACKED[suffix](TABLE.encode())
    for size in range(1, len(packed), 3):
        path = write(tmp_path / f"cut.csv{suffix}", packed[:size])
        with pytest.raises(DamagedError, match=rf"cut\.csv{suffix} is damaged, cut or still"):
            read(path)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    with pytest.raises((DamagedError, BadInputError)):
        read(write(tmp_path / f"flipped.csv{suffix}", bytes(flipped)))


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"PK\x03\x04\x14\0", "a zip, or a workbook of Excel"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"\x04\x22\x4d\x18", "compressed with lz4"),
        (b"PAR1", "a Parquet file; call it .parquet"),
        (b"ARROW1\0\0", "an Arrow file; call it .arrow"),
        (b"SQLite format 3\0", "a database of SQLite"),
    ],
)
def test_a_file_that_is_no_text_is_named_for_what_it_is(tmp_path, head, said):
    for name in ("t.csv", "t.tsv", "t.jsonl", "t.json"):
        with pytest.raises(ConfigError) as error:
            read(write(tmp_path / name, head + bytes(range(256))))
        assert f"{name} is no text but {said}" in str(error.value)
        assert "\0" not in str(error.value)


@pytest.mark.parametrize("suffix", PACKED)
def test_a_compressed_tar_is_refused_by_name_whatever_it_is_called(tmp_path, suffix):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    packed = PACKED[suffix](stream.getvalue())
    names = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
    for name in ("t.tar", f"t.tar{suffix}"):
        path = write(tmp_path / name, packed)
        with pytest.raises(ConfigError, match=rf"compressed with {names[suffix]}; unpack it first"):
            read(path)
    write(tmp_path / "u.tar.lz4", b"\x04\x22\x4d\x18")
    with pytest.raises(ConfigError, match="is compressed, by its name; unpack it"):
        read(tmp_path / "u.tar.lz4")
