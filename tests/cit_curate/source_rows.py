"""What comes of a source's rows, for tests of readers."""

from pathlib import Path
from typing import Any, NamedTuple

from cit_curate.sources.pairs import pairs_of
from cit_curate.sources.rows import Reject, SourceReader


class Read(NamedTuple):
    """The pairs and rejects of a source, and the number of its records."""

    pairs: list[dict[str, Any]]
    rejects: list[Reject]
    num_records: int

    def values(self, *names: str) -> list[tuple[Any, ...]]:
        """Some columns of the pairs."""
        return [tuple(pair[name] for name in names) for pair in self.pairs]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """The row and the reason of each reject."""
        return [(reject.row, reject.reason) for reject in self.rejects]


def read_all(reader: SourceReader, root: Path, source: str = "source") -> Read:
    """Everything that a reader reads."""
    assert reader.read is not None
    assert reader.columns is not None
    pairs, rejects, num_records = [], [], 0
    for rows in reader.read():
        raw = pairs_of(rows, reader.columns, image_root=root, source=source)
        pairs += raw.pairs.to_pylist()
        rejects += raw.rejects
        num_records += raw.num_records
    return Read(pairs, rejects, num_records)
