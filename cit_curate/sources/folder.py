"""Reader of a folder of images, each with a `.txt` of the same name beside it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cit_curate.captions import MAX_RAW_CHARS
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import Problem, SourceReader, batches_of

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
FOLDER_COLUMNS = Columns(image_id="image_id", image="image", text=("caption",))


def open_folder(path: Path) -> SourceReader:
    """Open a folder of images; the caption is the whole `.txt`, stripped, with text key `caption`.

    Subfolders are read in order of name. Links to folders, and hidden files and folders, are
    skipped. The image id is the path below the folder, without its suffix; where several images
    have one name before the suffix, all but the first keep theirs.
    """
    return SourceReader(
        columns=FOLDER_COLUMNS,
        extra_types={},
        read=lambda: batches_of(_records(path), FOLDER_COLUMNS, has_names=True),
    )


def _records(root: Path) -> Iterator[tuple[int, Sequence[str | None] | Problem]]:
    for number, (relative, name, caption) in enumerate(_walk(root), 1):
        if caption is None:
            is_image = Path(relative).suffix.lower() in IMAGE_SUFFIXES
            reason = "image_without_text" if is_image else "text_without_image"
            yield number, Problem(reason, f"{relative!a} stands alone")
        else:
            yield number, (None, relative, caption, name)


def _walk(root: Path) -> Iterator[tuple[str, str, str | None]]:
    """(path below root, image id, caption) of each image; no caption for one without the other."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = os.path.relpath(folder, root)
        prefix = "" if prefix == "." else prefix + "/"
        stems: dict[str, str] = {}
        images = []
        for name in sorted(name for name in names if not name.startswith(".")):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if suffix.lower() == ".txt":
                stems[stem] = name
            elif suffix.lower() in IMAGE_SUFFIXES:
                images.append((stem, name))
        taken: set[str] = set()
        for stem, name in images:
            text = stems.get(stem)
            # A whole name is taken by no earlier image: a name sorts before all it begins.
            own = name if stem in taken else stem
            taken.add(own)
            yield (
                prefix + name,
                prefix + own,
                None if text is None else _caption(Path(folder, text)),
            )
        with_image = {stem for stem, _ in images}
        for stem, name in stems.items():
            if stem not in with_image:
                yield prefix + name, "", None


def _caption(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
        return stream.read(MAX_RAW_CHARS).strip()
