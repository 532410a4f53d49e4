"""Other spellings of an image's path; pure text, no file is opened."""

import unicodedata
from collections.abc import Iterator
from itertools import islice, product

# A path with several folders has as many combinations of Unicode forms.
_MAX_FORMS = 16


def spellings(path: str) -> Iterator[str]:
    r"""The ways to write a path that people's tables have, from the path itself on, each once.

    They are: the path, trimmed, with `/` for `\`, and each of these in other Unicode forms. A name
    such as `pêche.jpg` is written with 10 letters or with 11 (NFC, NFD), and no reader sees it.
    """
    trimmed = path.strip()
    plain = dict.fromkeys((path, trimmed, trimmed.replace("\\", "/")))
    yield from plain
    if path.isascii():
        return
    seen = set(plain)
    for written in plain:
        for form in _unicode_forms(written):
            if form not in seen:
                seen.add(form)
                yield form


def _unicode_forms(path: str) -> Iterator[str]:
    """A path as NFC, as NFD, then with a form of its own for each folder and name."""
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, path)
    names = [
        dict.fromkeys((unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)))
        for name in path.split("/")
    ]
    yield from map("/".join, islice(product(*names), _MAX_FORMS))
