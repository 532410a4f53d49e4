"""The spelling under which the file of an image is there."""

from pathlib import Path

from cit_curate.images.presence import is_there
from cit_curate.images.root import ImageRoot
from cit_curate.images.spellings import spellings
from cit_curate.sources.pairs import RejectRowError, checked_image_uri


def spelling_on_disk(root: ImageRoot, image_uri: str) -> str | None:
    """The uri of an image whose file is there, spelled as it is there; None if it is not.

    Args:
        root: The image root.
        image_uri: The uri as it is written, relative to the root; a web address, which is never
            fetched, counts as there when it is only trimmed.

    Raises:
        ResourceError: The network failed at every try.
    """
    folder = root if isinstance(root, Path) else Path(root.url)
    for written in spellings(image_uri):
        if written == image_uri:
            spelled = written
        else:
            try:
                spelled = checked_image_uri(written, folder)
            except RejectRowError:
                continue
        if spelled.startswith(("http://", "https://")) or is_there(root, spelled):
            return spelled
    return None
