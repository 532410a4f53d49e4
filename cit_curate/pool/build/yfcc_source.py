"""The files that a YFCC pool is made from, as a person names them."""

from dataclasses import dataclass
from pathlib import Path

from cit_curate.config import YfccFormat
from cit_curate.errors import ConfigError
from cit_curate.sources.source import Source


@dataclass(frozen=True, kw_only=True)
class YfccSource:
    """The files that a YFCC pool is made from.

    Attributes:
        metadata: `yfcc100m_dataset.txt`, unpacked.
        image_ids: NumPy file with the ids of the images on disk (`flickr_unique_ids.npy`).
        subset: `yfcc100m_subset_data.tsv` of CLIP, for yfcc15m only.
        image_root: Folder that `images/AA/BBB.zip` lie in; default the metadata's own.
        reference_empty_tags: Keep the tag text `,` of images without tags, as the reference does.
    """

    format: YfccFormat
    metadata: Path
    image_ids: Path
    subset: Path | None = None
    image_root: Path | None = None
    reference_empty_tags: bool = False

    def __post_init__(self) -> None:
        if self.format == "yfcc15m" and self.subset is None:
            raise ConfigError(
                "--format yfcc15m needs --subset yfcc100m_subset_data.tsv, CLIP's list of images"
            )
        if self.format == "yfcc100m" and self.subset is not None:
            raise ConfigError(
                "--subset is for --format yfcc15m; yfcc100m takes every image on disk"
            )
        if not self.metadata.is_file():
            raise ConfigError(f"--metadata {self.metadata}: there is no such file")
        with self.metadata.open("rb") as stream:
            if stream.read(3) in (b"BZh", b"\x1f\x8b\x08"):
                raise ConfigError(
                    f"{self.metadata} is compressed; unpack it first (bunzip2 -k), so that it can "
                    "be read in parallel"
                )
        if self.image_root is not None and not self.image_root.is_dir():
            raise ConfigError(f"the image root {self.image_root} is not a folder")

    def as_source(self) -> Source:
        """The metadata as a source of a pool."""
        path = self.metadata.resolve()
        return Source(path.name, path, self.format, (self.image_root or path.parent).resolve())
