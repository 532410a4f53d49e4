"""Reader of torchvision's data sets, in the layouts of its classes; nothing is downloaded.

CIFAR is left to `cifar_binary`, because torchvision unpacks pickles, which can run code. Some data
sets need a further package (Flowers102 and StanfordCars: SciPy for `.mat` files; PCAM: h5py).
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
from cit_train.evaluation.readers.labelled_images import SourceImages

__all__ = ["TORCHVISION_SETS", "TorchvisionSet", "open_torchvision_set"]

_ALL_PICTURES = (
    "all pictures of the data set, which has no test split of its own; not {} as in CLIP"
)


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """The way to open one data set.

    Attributes:
        name: The class in `torchvision.datasets`.
        marker: A path below the root that identifies the data set; several for several layouts. It
            must not be a folder that an image folder may have too.
        arguments: The constructor's arguments besides the root, such as the split.
        labels: The attribute with the label of each image, or with tuples that end with the label.
        names: The attribute with the class names; empty = the labels are positions in the task.
        loads: Whether the constructor takes a function that opens an image file.
        requires: A package that it needs besides torchvision.
        note: A remark that a person needs to interpret the result.
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

# The errors of torchvision's classes on missing or malformed files.
_READ_ERRORS = (RuntimeError, OSError, ValueError, LookupError, TypeError, csv.Error)


class TorchvisionImages:
    """The images of a torchvision data set."""

    def __init__(self, dataset: Any, title: str) -> None:
        self._dataset = dataset
        self._title = title

    def __len__(self) -> int:
        return len(self._dataset)

    def content(self, row: int) -> bytes:
        """The size of the image and its pixels."""
        image = self.read(row)
        return f"{image.size} ".encode() + image.tobytes()

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


def open_torchvision_set(task: str, root: Path) -> SourceImages:
    """Open the data set of a task below torchvision's root.

    Args:
        task: One of `TORCHVISION_SETS`.
        root: The root that torchvision unpacked into.

    Raises:
        ConfigError: A package is missing.
        DamagedError: Files are missing or malformed.
    """
    spec = TORCHVISION_SETS[task]
    if spec.requires and importlib.util.find_spec(spec.requires) is None:
        raise ConfigError(
            f"{task}: torchvision's {spec.name} needs a further package; "
            f"run: pip install {spec.requires}"
        )
    from torchvision import datasets

    errors: tuple[type[Exception], ...] = (*_READ_ERRORS, *_errors_of(spec.requires))
    arguments = {**spec.arguments, **({"loader": _load} if spec.loads else {})}
    try:
        dataset = getattr(datasets, spec.name)(str(root), **arguments)
        labels = _pcam_labels(root) if spec.name == "PCAM" else _labels(dataset, spec.labels)
    except errors as error:
        raise DamagedError(f"{root}: torchvision's {spec.name} cannot open it: {error}") from error
    names = _names(dataset, spec)
    if spec.name == "CLEVRClassification":
        # Its labels are numbers of objects.
        names = tuple(MetadataEntry(str(number)) for number in range(int(labels.max()) + 1))
    return SourceImages(
        reader=f"torchvision {spec.name}",
        images=TorchvisionImages(dataset, f"{spec.name} in {root}"),
        labels=labels,
        names=names,
        notes=(spec.note,) if spec.note else (),
    )


def _errors_of(package: str) -> tuple[type[Exception], ...]:
    """The errors of a package on broken files, besides Python's own."""
    if package != "scipy":
        return ()
    matlab = importlib.import_module("scipy.io.matlab")
    return (matlab.MatReadError,)


def _load(path: str | Path) -> Image.Image:
    """Open an image file with our own decoder, which limits the number of pixels."""
    path = Path(path)
    return decoders().read_image(read_image_bytes(path.parent, path.name))


def _labels(dataset: Any, attribute: str) -> Int64:
    values = getattr(dataset, attribute)
    if attribute == "_samples":
        values = [sample[-1] for sample in values]
    if any(value is None for value in values):
        raise ValueError("this copy of the test split has no labels")
    return np.asarray([int(value) for value in values], dtype=np.int64)


def _pcam_labels(root: Path) -> Int64:
    h5py = importlib.import_module("h5py")
    with h5py.File(root / "pcam" / "camelyonpatch_level_2_split_test_y.h5") as file:
        return np.asarray(file["y"], dtype=np.int64).reshape(-1)


def _names(dataset: Any, spec: TorchvisionSet) -> tuple[MetadataEntry, ...] | None:
    if not spec.names:
        return None
    names = [str(name).replace("_", " ").replace("/", " ") for name in getattr(dataset, spec.names)]
    return tuple(MetadataEntry(name) for name in names)
