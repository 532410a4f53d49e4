"""The files of a folder and of the folders that links in it lead to, each once."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cit_curate.images.suffixes import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, suffix_of


@dataclass(frozen=True)
class Listing:
    """The files directly in one folder.

    Attributes:
        prefix: The folder's path below the source, with a slash at its end; "" for the source.
        path: The folder itself, links resolved.
        names: The names of its files, sorted; hidden ones are left out.
        problems: The reason and the detail for each entry that cannot be followed, see `walk`.
        repeats: The links that lead to folders that are listed anyway, as `LINK leads to FOLDER`.
    """

    prefix: str
    path: Path
    names: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    repeats: list[str] = field(default_factory=list)


def walk(source: Path, root: Path) -> Iterator[Listing]:
    """The folders of a source in order of name, then those that links lead to.

    A link to a folder is followed if that lies inside `root`, links resolved, and was not listed
    before: every folder is listed once, a folder of the source itself under its own path, and
    circles end. Other links are problems: `path_escapes` for one that leads out of `root` to a
    folder or an image, `missing_image` for one that leads nowhere, or a folder that may not be
    read.

    Args:
        source: The folder, links resolved.
        root: The folder that images must lie in, links resolved.
    """
    yield from _Walk(source, root).listings()


class _Walk:
    def __init__(self, source: Path, root: Path) -> None:
        self._source, self._root = source, root
        self._listed: set[str] = set()
        self._linked: deque[tuple[str, Path]] = deque()  # links to folders, and where they lead

    def listings(self) -> Iterator[Listing]:
        yield from self._tree("", self._source)
        while self._linked:
            name, target = self._linked.popleft()
            if not target.is_relative_to(self._root):
                yield Listing("", self._source, problems=[self._escape(name, target)])
            elif str(target) in self._listed:
                yield Listing("", self._source, repeats=[f"{name!a} leads to {target}"])
            else:
                yield from self._tree(f"{name}/", target)

    def _tree(self, prefix: str, top: Path) -> Iterator[Listing]:
        """The folders of a tree, from the top, without those that were listed."""
        stack = [(prefix, top)]
        while stack:
            prefix, folder = stack.pop()
            if str(folder) in self._listed:
                continue
            self._listed.add(str(folder))
            listing, below = Listing(prefix, folder), []
            for entry in _entries(listing):
                if entry.is_symlink():
                    self._add_link(entry, listing)
                elif entry.is_dir():
                    below.append((f"{prefix}{entry.name}/", folder / entry.name))
                elif entry.is_file():
                    listing.names.append(entry.name)
            yield listing
            stack += reversed(below)

    def _add_link(self, entry: os.DirEntry[str], listing: Listing) -> None:
        name, suffix = listing.prefix + entry.name, suffix_of(entry.name)
        try:
            target = Path(entry.path).resolve(strict=True)
        except (OSError, RuntimeError):  # nothing is there, or a circle of links
            if suffix == ".txt":  # Its image has no text, which says enough.
                listing.names.append(entry.name)
            else:
                leads = str(Path(entry.path).readlink())
                detail = f"the link {name!a} leads to {leads!a}, which is not there"
                listing.problems.append(("missing_image", detail))
            return
        is_image = suffix in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES
        if target.is_dir():
            self._linked.append((name, target))
        elif is_image and not target.is_relative_to(self._root):
            listing.problems.append(self._escape(name, target))
        elif target.is_file():
            listing.names.append(entry.name)

    def _escape(self, name: str, target: Path) -> tuple[str, str]:
        folder = target if target.is_dir() else target.parent
        common = os.path.commonpath([self._source, folder])
        return (
            "path_escapes",
            f"the link {name!a} leads to {target}, outside of {self._root}; it is followed with "
            f"--image-root {common}",
        )


def _entries(listing: Listing) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted, without hidden ones."""
    try:
        with os.scandir(listing.path) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError as error:
        detail = f"the folder {listing.prefix!a} cannot be read: {error.strerror}"
        listing.problems.append(("missing_image", detail))
        return []
    return sorted(shown, key=lambda entry: entry.name)
