"""Files of class names, and what is read from them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cit_curate.metadata.class_files.read import read_class_file
from cit_curate.metadata.class_list import ClassList

Read = Callable[..., ClassList]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes a file and reads its classes: `read("classes.txt", "cup\\nspoon\\n", column="")`."""

    def written(name: str, content: str | bytes, column: str = "") -> ClassList:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_class_file(path, column)

    return written
