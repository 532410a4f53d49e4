"""Reader of a WebDataset export, as CLIP benchmark writes it.

The folder `test` has `0.tar`, `1.tar`, … and `nshards.txt`. In a tar, a sample is
`KEY.webp|png|jpg` with `KEY.cls`, the label in decimal digits. Beside `test` lie `classnames.txt`
and `zeroshot_classification_templates.txt`. Members of other kinds, such as pickles, are never
read.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cit_curate.encodings import read_text
from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.images.decoders import decoders
from cit_curate.images.read import MAX_IMAGE_BYTES, ImageRejected
from cit_train.evaluation.readers.file_list import read_class_names
from cit_train.evaluation.readers.labelled_images import SourceImages

__all__ = ["find_shards", "open_webdataset_export", "read_templates"]

_IMAGE_TYPES = ("webp", "png", "jpg", "jpeg")
_LABEL_TYPE = "cls"
_MAX_LABEL_BYTES = 12
_SPLITS = ("test", "val", "validation")
_TEMPLATES = "zeroshot_classification_templates.txt"
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class _Member:
    """The location of a member's bytes."""

    shard: Path
    name: str
    offset: int
    size: int

    def bytes(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class ShardImages:
    """Images inside tars, read by their offsets."""

    members: tuple[_Member, ...]

    def __len__(self) -> int:
        return len(self.members)

    def content(self, row: int) -> bytes:
        """The bytes of the tar's member."""
        member = self.members[row]
        if member.size > MAX_IMAGE_BYTES:
            raise ImageRejected(
                "too_many_bytes", f"{member.size:,} bytes, more than {MAX_IMAGE_BYTES:,}"
            )
        return member.bytes()

    def read(self, row: int) -> Image.Image:
        """The image as RGB."""
        return decoders().read_image(self.content(row))

    def title(self, row: int) -> str:
        """The tar and the member."""
        return f"{self.members[row].shard}: {self.members[row].name}"


def find_shards(folder: Path) -> Path | None:
    """The folder of the tars: a split of an export, or the folder itself; None = no tar."""
    for parent in (*(folder / split for split in _SPLITS), folder):
        if parent.is_dir() and any(parent.glob("*.tar")):
            return parent
    return None


def open_webdataset_export(folder: Path) -> SourceImages:
    """List the samples of an export; the images themselves are read on request.

    Raises:
        ConfigError: The export is for retrieval or has several labels an image.
        DamagedError: A tar is missing, truncated or not a tar.
        BadInputError: An image has no label, or a label is not a number.
    """
    split = find_shards(folder)
    if split is None:
        raise ConfigError(f"there is no tar in {folder} or {folder / 'test'}")
    _check_type(folder)
    images, labels = [], []
    for shard in _shards(split):
        samples = _samples(shard)
        images += [image for image, _ in samples]
        labels += [_label(label) for _, label in samples]
    if not images:
        raise BadInputError(f"the tars in {split} hold no image with a .{_LABEL_TYPE} beside it")
    names = read_class_names(folder)
    if names is not None and max(labels) >= len(names):
        raise BadInputError(
            f"{split} has the label {max(labels)}, and {folder / 'classnames.txt'} names "
            f"{len(names)} classes"
        )
    return SourceImages(
        reader="WebDataset export",
        images=ShardImages(tuple(images)),
        labels=np.array(labels, dtype=np.int64),
        names=names,
        prompts=read_templates(folder),
    )


def read_templates(folder: Path) -> tuple[str, ...]:
    """The prompts of an export, with `{}` for its `{c}`; empty = none."""
    path = folder / _TEMPLATES
    if not path.is_file():
        return ()
    lines = [line.strip().replace("{c}", "{}") for line in read_text(path).splitlines()]
    return tuple(line for line in lines if line.count("{}") == 1)


def _check_type(folder: Path) -> None:
    path = folder / "dataset_type.txt"
    kind = read_text(path).strip().lower() if path.is_file() else "classification"
    if kind != "classification":
        raise ConfigError(f"{path} says {kind!r}; only classification with one label an image fits")


def _shards(split: Path) -> list[Path]:
    """The tars in numerical order, as many as `nshards.txt` says."""
    count = split / "nshards.txt"
    if not count.is_file():
        return sorted(split.glob("*.tar"))
    text = read_text(count).strip()
    if not text.isdecimal() or len(text) > 6:
        raise DamagedError(f"{count} holds {text[:20]!r}; it must be the number of tars")
    shards = [split / f"{number}.tar" for number in range(int(text))]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise DamagedError(f"{missing[0]} is missing; {count} says there are {text} tars")
    return shards


def _samples(shard: Path) -> list[tuple[_Member, _Member]]:
    """The image and the label of each sample, in the order of the images."""
    images: dict[str, _Member] = {}
    labels: dict[str, _Member] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                if not info.isreg():
                    continue
                key, kind = _split(info.name)
                member = _Member(shard, info.name, info.offset_data, info.size)
                if kind in _IMAGE_TYPES:
                    images.setdefault(key, member)
                elif kind == _LABEL_TYPE:
                    labels[key] = member
            end = tar.offset
    except tarfile.TarError as error:
        raise _damaged(shard, str(error)) from error
    # tarfile accepts a tar that was truncated between two members.
    with shard.open("rb") as file:
        file.seek(max(0, end - _BLOCK))
        if bytes(_BLOCK) not in file.read(2 * _BLOCK):
            raise _damaged(shard, "it has no end-of-archive block")
    unlabelled = [key for key in images if key not in labels]
    if unlabelled:
        raise BadInputError(
            f"{shard}: {images[unlabelled[0]].name} has no .{_LABEL_TYPE} beside it "
            f"(and {len(unlabelled) - 1} further images)"
        )
    return [(image, labels[key]) for key, image in images.items()]


def _split(name: str) -> tuple[str, str]:
    """The key and the kind of a member, which the first dot after its folder separates."""
    folder, _, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return f"{folder}/{stem}", kind.lower()


def _label(member: _Member) -> int:
    text = member.bytes().strip() if member.size <= _MAX_LABEL_BYTES else b""
    if not text.isdigit():
        raise BadInputError(
            f"{member.shard}: {member.name} holds {text!r} ({member.size:,} bytes); "
            "a label is a whole number in decimal digits"
        )
    return int(text)


def _damaged(shard: Path, detail: str) -> DamagedError:
    size = shard.stat().st_size
    return DamagedError(f"{shard} ({size:,} bytes) is damaged or still being copied: {detail}")
