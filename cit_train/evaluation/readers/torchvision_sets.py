"""Reader of torchvision's own data sets, as its classes lay them out; nothing is downloaded.

CIFAR is read from its binary version here: the one that torchvision unpacks consists of pickles,
which can run code. What needs a further package (Flowers102 and StanfordCars: SciPy for `.mat`
files; PCAM: h5py) says so.
"""

import csv
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.images.decoders import decoders
from cit_curate.images.read import ImageRejected, read_image_bytes
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.records import Int64
from cit_train.evaluation.readers.labelled_images import FoundImages

__all__ = ["TORCHVISION_SETS", "TorchvisionSet", "open_torchvision_set"]

_ALL_PICTURES = (
    "all pictures of the data set, which has no test split of its own; not {} as in CLIP"
)


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """How one data set is opened.

    Attributes:
        name: The class in `torchvision.datasets`.
        marker: Path below the root that is there when the data set is; several where its files may
            have other names. A folder that class folders may have as well does not do.
        arguments: Of the constructor besides the root, such as the split.
        labels: Attribute with the label of each image, or with tuples that end in it.
        names: Attribute with the class names; empty = the labels are the task's positions.
        loads: Whether the class takes a function that opens an image file.
        requires: Package that it needs besides torchvision.
        note: What a person must know to read the result.
    """

    name: str
    marker: str | tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    labels: str = "_labels"
    names: str = ""
    loads: bool = True
    requires: str = ""
    note: str = ""

    def is_below(self, root: Path) -> bool:
        """Whether the data set lies below torchvision's root."""
        markers = (self.marker,) if isinstance(self.marker, str) else self.marker
        return any((root / marker).exists() for marker in markers)


_TEST: Mapping[str, Any] = MappingProxyType({"split": "test"})

TORCHVISION_SETS: Mapping[str, TorchvisionSet] = MappingProxyType(
    {
        "food101": TorchvisionSet(
            name="Food101", marker="food-101/meta", arguments=_TEST, names="classes"
        ),
        "sun397": TorchvisionSet(
            name="SUN397",
            marker="SUN397/ClassName.txt",
            names="classes",
            note=_ALL_PICTURES.format("the 19,850"),
        ),
        "cars": TorchvisionSet(
            name="StanfordCars",
            marker="stanford_cars/devkit",
            arguments=_TEST,
            labels="_samples",
            names="classes",
            requires="scipy",
        ),
        "aircraft": TorchvisionSet(
            name="FGVCAircraft",
            marker="fgvc-aircraft-2013b/data",
            arguments=_TEST,
            names="classes",
        ),
        "dtd": TorchvisionSet(name="DTD", marker="dtd/dtd", arguments=_TEST, names="classes"),
        "pets": TorchvisionSet(
            name="OxfordIIITPet",
            marker="oxford-iiit-pet/annotations",
            arguments=_TEST,
            names="classes",
            loads=False,
        ),
        "caltech101": TorchvisionSet(
            name="Caltech101",
            marker="caltech101/101_ObjectCategories",
            labels="y",
            names="categories",
            loads=False,
            note=_ALL_PICTURES.format("the 6,085") + ", and no picture of the class background",
        ),
        "flowers": TorchvisionSet(
            name="Flowers102", marker="flowers-102/jpg", arguments=_TEST, requires="scipy"
        ),
        "mnist": TorchvisionSet(
            name="MNIST",
            marker="MNIST/raw",
            arguments={"train": False},
            labels="targets",
            loads=False,
        ),
        "fer2013": TorchvisionSet(
            name="FER2013",
            marker=("fer2013/fer2013.csv", "fer2013/icml_face_data.csv", "fer2013/test.csv"),
            arguments=_TEST,
            labels="_samples",
            loads=False,
        ),
        "stl10": TorchvisionSet(
            name="STL10", marker="stl10_binary", arguments=_TEST, labels="labels", loads=False
        ),
        "eurosat": TorchvisionSet(
            name="EuroSAT",
            marker="eurosat/2750",
            labels="targets",
            names="classes",
            note=_ALL_PICTURES.format("the 5,000"),
        ),
        "gtsrb": TorchvisionSet(
            name="GTSRB", marker="gtsrb/GTSRB", arguments=_TEST, labels="_samples", loads=False
        ),
        "country211": TorchvisionSet(
            name="Country211",
            marker="country211/test",
            arguments=_TEST,
            labels="targets",
            names="classes",
        ),
        "patch_camelyon": TorchvisionSet(
            name="PCAM",
            marker="pcam/camelyonpatch_level_2_split_test_x.h5",
            arguments=_TEST,
            loads=False,
            requires="h5py",
        ),
        "clevr_counts": TorchvisionSet(
            name="CLEVRClassification",
            marker="clevr/CLEVR_v1.0",
            arguments={"split": "val"},
            note="the 15,000 pictures of the validation split",
        ),
        "rendered_sst2": TorchvisionSet(
            name="RenderedSST2",
            marker="rendered-sst2/test",
            arguments=_TEST,
            labels="_samples",
            names="classes",
        ),
    }
)

# What torchvision's classes raise on files that are missing or not as they must be.
_READ_ERRORS = (RuntimeError, OSError, ValueError, LookupError, TypeError, csv.Error)


class TorchvisionImages:
    """Images of a torchvision data set."""

    def __init__(self, dataset: Any, title: str) -> None:
        self._dataset = dataset
        self._title = title

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, row: int) -> Image.Image:
        """The image as RGB."""
        try:
            image: Image.Image = self._dataset[row][0]
            return image.convert("RGB")
        except ImageRejected:
            raise
        except (*_READ_ERRORS, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageRejected("undecodable_image", str(error)) from error

    def title(self, row: int) -> str:
        """The data set and the row."""
        return f"{self._title}: image {row}"


def open_torchvision_set(task: str, root: Path) -> FoundImages:
    """Open the data set of a task below torchvision's root.

    Args:
        task: One of `TORCHVISION_SETS`.
        root: The folder that was given to torchvision.

    Raises:
        ConfigError: A package is missing.
        DamagedError: Files are missing or not as torchvision wants them.
    """
    known = TORCHVISION_SETS[task]
    if known.requires and importlib.util.find_spec(known.requires) is None:
        raise ConfigError(
            f"{task}: torchvision's {known.name} needs a further package; "
            f"run: pip install {known.requires}"
        )
    from torchvision import datasets

    errors: tuple[type[Exception], ...] = (*_READ_ERRORS, *_errors_of(known.requires))
    arguments = {**known.arguments, **({"loader": _load} if known.loads else {})}
    try:
        dataset = getattr(datasets, known.name)(str(root), **arguments)
        labels = _pcam_labels(root) if known.name == "PCAM" else _labels(dataset, known.labels)
    except errors as error:
        raise DamagedError(f"{root}: torchvision's {known.name} cannot open it: {error}") from error
    names = _names(dataset, known)
    if known.name == "CLEVRClassification":
        # Its label is the number of objects itself.
        names = tuple(MetadataEntry(str(number)) for number in range(int(labels.max()) + 1))
    return FoundImages(
        source=f"torchvision {known.name}",
        images=TorchvisionImages(dataset, f"{known.name} in {root}"),
        labels=labels,
        names=names,
        notes=(known.note,) if known.note else (),
    )


def _errors_of(package: str) -> tuple[type[Exception], ...]:
    """What a package raises on broken files besides Python's own errors."""
    if package != "scipy":
        return ()
    matlab = importlib.import_module("scipy.io.matlab")
    return (matlab.MatReadError,)


def _load(path: str | Path) -> Image.Image:
    """Open an image file as everything here is opened: by its bytes, with a limit of pixels."""
    path = Path(path)
    return decoders().read_image(read_image_bytes(path.parent, path.name))


def _labels(dataset: Any, attribute: str) -> Int64:
    values = getattr(dataset, attribute)
    if attribute == "_samples":
        values = [sample[-1] for sample in values]
    if any(value is None for value in values):
        raise ValueError("the test split that is there has no labels")
    return np.asarray([int(value) for value in values], dtype=np.int64)


def _pcam_labels(root: Path) -> Int64:
    h5py = importlib.import_module("h5py")
    with h5py.File(root / "pcam" / "camelyonpatch_level_2_split_test_y.h5") as file:
        return np.asarray(file["y"], dtype=np.int64).reshape(-1)


def _names(dataset: Any, known: TorchvisionSet) -> tuple[MetadataEntry, ...] | None:
    if not known.names:
        return None
    names = [
        str(name).replace("_", " ").replace("/", " ") for name in getattr(dataset, known.names)
    ]
    return tuple(MetadataEntry(name) for name in names)
