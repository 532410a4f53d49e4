"""The token ids of a pool's captions, beside its parts: written once, read in every scan.

`POOL/tokens/KEY/part-000000.parquet` has a column `tokens`, whose rows and row groups are those of
the pool's part of that number. KEY is the start of `TextEncoder.tokenizer_key`. The sealed
`tokens.json` beside the files lists them, and names their pool.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.errors import DamagedError
from cit_curate.pool.format import Part, PoolManifest
from cit_curate.records import TOKENS
from cit_curate.storage.durable import (
    FileEntry,
    check_file,
    describe_file,
    file_entry,
    read_json,
    sweep_temporary,
    write_sealed,
)
from cit_curate.storage.replace_folder import replacing
from cit_curate.text_encoder.tokens import Tokens

FORMAT_VERSION = 1
MANIFEST_NAME = "tokens.json"
# Letters of the key in the name of the folder.
KEY_LETTERS = 16
CURE = "write the tokens again with: cit pool tokenize … --overwrite"


@dataclass(frozen=True)
class TokenFiles:
    """The tokens of one pool under one tokenizer.

    Attributes:
        folder: The folder of the files.
        pool_fingerprint: The fingerprint of their pool.
        key: The tokenizer's key.
        files: The file for each part of the pool.
    """

    folder: Path
    pool_fingerprint: str
    key: str
    files: tuple[FileEntry, ...]

    @classmethod
    def open(cls, pool: Path, manifest: PoolManifest, key: str) -> "TokenFiles | None":
        """The token files in a pool's folder, after a cheap check.

        Returns:
            None if there are none of this tokenizer, or only those of an older state of the pool.

        Raises:
            DamagedError: A file is missing, truncated or changed.
        """
        folder = tokens_folder(pool, key)
        if not folder.is_dir():
            return None
        files = cls.read(folder)
        if (files.key, files.pool_fingerprint) != (key, manifest.fingerprint):
            return None
        try:
            files.check(manifest.parts, full=False)
        except DamagedError as error:
            raise DamagedError(f"{error}; {CURE}", file=error.file) from error
        return files

    @classmethod
    def read(cls, folder: Path) -> "TokenFiles":
        """The token files of a folder's manifest.

        Raises:
            DamagedError: It is missing or damaged, or a newer version wrote it.
        """
        path = folder / MANIFEST_NAME
        value = read_json(path)
        try:
            if (version := value.pop("format_version")) != FORMAT_VERSION:
                known = f"this cit reads {FORMAT_VERSION}"
                raise DamagedError(f"{path} has format version {version}; {known}")
            files = tuple(file_entry(entry, str(path)) for entry in value.pop("files"))
            return cls(folder, files=files, **value)
        except (AttributeError, KeyError, TypeError) as error:
            raise DamagedError(f"{path} is damaged: {error!r}", file=str(path)) from error

    def check(self, parts: Sequence[Part], *, full: bool) -> None:
        """Check that the files are those of the pool's parts; with `full`, byte by byte.

        Raises:
            DamagedError: A file is missing, truncated or changed.
        """
        rows = [part.file.rows for part in parts]
        if [file.rows for file in self.files] != rows:
            path = self.folder / MANIFEST_NAME
            raise DamagedError(f"{path} does not have the parts of its pool", file=str(path))
        for file in self.files:
            check_file(self.folder, file, full=full)

    def with_tokens(self, pairs: pa.Table, part: int, groups: Sequence[int]) -> pa.Table:
        """The pairs of some row groups of a part, with the column `tokens` added.

        Raises:
            DamagedError: The file cannot be read.
        """
        path = self.folder / self.files[part].path
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                tokens = file.read_row_groups(list(groups), columns=[TOKENS])[TOKENS]
            return pairs.append_column(TOKENS, tokens)
        except (pa.ArrowInvalid, OSError) as error:
            raise DamagedError(f"{path} cannot be read: {error}; {CURE}") from error


def tokens_folder(pool: Path, key: str) -> Path:
    """The folder of the tokens of a pool's captions under a tokenizer."""
    return pool / "tokens" / key[:KEY_LETTERS]


def token_folders(pool: Path) -> list[Path]:
    """All folders of tokens in a pool."""
    return sorted(path for path in (pool / "tokens").glob("*") if not path.name.startswith("."))


def write_token_files(
    pool: Path,
    manifest: PoolManifest,
    key: str,
    tokenize: Callable[[list[str]], Tokens],
    *,
    progress: Callable[[int], None] = lambda rows: None,
) -> TokenFiles:
    """Tokenise every caption of a pool; old files of this tokenizer are replaced.

    Args:
        pool: The pool's folder; the caller is its only writer.
        manifest: The pool's manifest.
        key: The tokenizer's key.
        tokenize: Function from captions to their token ids.
        progress: Callback with the number of captions done.
    """
    folder = tokens_folder(pool, key)
    folder.parent.mkdir(exist_ok=True)
    sweep_temporary(folder.parent)
    done = 0
    with replacing(folder) as staged:
        files = []
        for number, part in enumerate(manifest.parts):
            path = staged / f"part-{number:06d}.parquet"
            with (
                pq.ParquetFile(check_file(pool, part.file, full=False)) as pairs,
                pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer,
            ):
                for group in range(pairs.num_row_groups):
                    captions = pairs.read_row_group(group, columns=["caption"])["caption"]
                    lists = _as_lists(tokenize(captions.to_pylist()))
                    writer.write_table(pa.table([lists], schema=_SCHEMA))
                    done += len(lists)
                    progress(done)
            files.append(describe_file(path, staged, rows=part.file.rows))
        written = TokenFiles(folder, manifest.fingerprint, key, tuple(files))
        value = {"format_version": FORMAT_VERSION, **asdict(written)}
        del value["folder"]
        write_sealed(staged / MANIFEST_NAME, value)
    return written


_SCHEMA = pa.schema([pa.field(TOKENS, pa.list_(pa.int32()), nullable=False)])


def _as_lists(tokens: Tokens) -> pa.ListArray:
    ends = np.append(0, np.cumsum(tokens.counts)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(tokens.ids.astype(np.int32)))
