"""Small data sets in the layouts that evaluation data come in, made as their tools make them."""

import csv
import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
import webdataset as wds
from PIL import Image

# Class of the n-th image of every layout; the image is of one grey that tells n.
LABELS = (0, 0, 1, 1, 1, 2)


def grey(number: int) -> int:
    """The grey of the n-th image; JPEG keeps it to within 2."""
    return 20 + 30 * number


def image_bytes(number: int, kind: str = "PNG", size: tuple[int, int] = (40, 36)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (grey(number),) * 3).save(stream, kind)
    return stream.getvalue()


def write_image(path: Path, number: int, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(number, kind))


def image_folder(folder: Path, names: Sequence[str], suffix: str = ".png") -> Path:
    """`folder/NAME/n.png`, sorted so that the n-th image of `LABELS` is the n-th that is found."""
    for number, label in enumerate(LABELS):
        write_image(folder / names[label] / f"{number}{suffix}", number, "PNG")
    return folder


def file_list(folder: Path, labels: Sequence[object], *, header: bool = True) -> Path:
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if header:
            writer.writerow(["label", "path"])
        for number, label in enumerate(labels):
            write_image(folder / "images" / f"{number}.png", number, "PNG")
            row = [label, f"images/{number}.png"]
            writer.writerow(row if header else row[::-1])
    return folder


def webdataset_export(
    folder: Path, labels: Sequence[int] = LABELS, *, names: Sequence[str] = (), per_tar: int = 4
) -> Path:
    """As `clip_benchmark_export_wds` writes it, with the same writer and the same keys."""
    (folder / "test").mkdir(parents=True)
    with wds.ShardWriter(str(folder / "test" / "%d.tar"), maxcount=per_tar, verbose=0) as sink:
        for number, label in enumerate(labels):
            sink.write({"__key__": f"s{number:07d}", "webp": webp(number), "cls": label})
    shards = len(list((folder / "test").glob("*.tar")))
    (folder / "test" / "nshards.txt").write_text(f"{shards}\n")
    if names:
        (folder / "classnames.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        templates = "a photo of {c}\na picture of a {c}\n"
        (folder / "zeroshot_classification_templates.txt").write_text(templates)
    return folder


def webp(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 36), (grey(number),) * 3).save(stream, "WEBP", lossless=True)
    return stream.getvalue()


def parquet_export(
    folder: Path,
    labels: Sequence[Any] = LABELS,
    *,
    names: Sequence[str] = (),
    plain: bool = False,
    split: str = "test",
) -> Path:
    """As Hugging Face's `datasets` pushes it: an image struct, ClassLabel names in the metadata."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    images: list[Any] = [image_bytes(number) for number in range(len(labels))]
    if not plain:
        images = [{"bytes": each, "path": f"{row}.png"} for row, each in enumerate(images)]
    table = pa.table({"image": images, "label": list(labels)})
    if names:
        feature = {"names": list(names), "_type": "ClassLabel"}
        info = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    half = len(labels) // 2
    for part, rows in enumerate((table.slice(0, half), table.slice(half))):
        path = folder / "data" / f"{split}-0000{part}-of-00002.parquet"
        pq.write_table(rows, path, row_group_size=2)
    return folder


def cifar_binary(root: Path, *, fine: bool = False) -> Path:
    """The test batch of the binary version."""
    records = []
    for number, label in enumerate(LABELS):
        pixels = np.full((3, 32, 32), grey(number), dtype=np.uint8)
        records.append(bytes([0, label] if fine else [label]) + pixels.tobytes())
    name = "cifar-100-binary/test.bin" if fine else "cifar-10-batches-bin/test_batch.bin"
    (root / name).parent.mkdir(parents=True)
    (root / name).write_bytes(b"".join(records))
    return root


def _mnist(root: Path, names: Sequence[str]) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    count = len(LABELS)
    pixels = np.stack([np.full((28, 28), grey(number), np.uint8) for number in range(count)])
    for split in ("train", "t10k"):
        header = struct.pack(">4I", 0x803, count, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = struct.pack(">2I", 0x801, count) + bytes(LABELS)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(labels)


def _food101(root: Path, names: Sequence[str]) -> None:
    listed: dict[str, list[str]] = {}
    for number, label in enumerate(LABELS):
        name = names[label].lower().replace(" ", "_")
        listed.setdefault(name, []).append(f"{name}/{number}")
        write_image(root / "food-101" / "images" / name / f"{number}.jpg", number)
    (root / "food-101" / "meta").mkdir()
    for split in ("train", "test"):
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(listed))


def _sun397(root: Path, names: Sequence[str]) -> None:
    base = root / "SUN397"
    for number, label in enumerate(LABELS):
        name = names[label].replace(" ", "_")
        write_image(base / name[0] / name / f"sun_{number}.jpg", number)
    lines = [f"/{name[0]}/{name.replace(' ', '_')}" for name in names]
    (base / "ClassName.txt").write_text("\n".join(lines) + "\n")


def _cars(root: Path, names: Sequence[str]) -> None:
    base = root / "stanford_cars"
    kind = [("fname", object), ("class", object)]
    annotations = np.empty(len(LABELS), dtype=kind)
    for number, label in enumerate(LABELS):
        write_image(base / "cars_test" / f"{number:05}.jpg", number)
        annotations[number] = (f"{number:05}.jpg", label + 1)
    (base / "devkit").mkdir()
    scipy.io.savemat(base / "cars_test_annos_withlabels.mat", {"annotations": annotations})
    meta = {"class_names": np.array(list(names), dtype=object)}
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", meta)


def _aircraft(root: Path, names: Sequence[str]) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    lines = []
    for number, label in enumerate(LABELS):
        write_image(base / "images" / f"{number:07}.jpg", number)
        lines.append(f"{number:07} {names[label]}")
    (base / "variants.txt").write_text("\n".join(names) + "\n")
    (base / "images_variant_test.txt").write_text("\n".join(lines) + "\n")


def _dtd(root: Path, names: Sequence[str]) -> None:
    base = root / "dtd" / "dtd"
    lines = []
    for number, label in enumerate(LABELS):
        write_image(base / "images" / names[label] / f"{number}.jpg", number)
        lines.append(f"{names[label]}/{number}.jpg")
    (base / "labels").mkdir()
    (base / "labels" / "test1.txt").write_text("\n".join(lines) + "\n")


def _pets(root: Path, names: Sequence[str]) -> None:
    base = root / "oxford-iiit-pet"
    lines = []
    for number, label in enumerate(LABELS):
        image = f"{names[label].replace(' ', '_')}_{number}"
        write_image(base / "images" / f"{image}.jpg", number)
        lines.append(f"{image} {label + 1} 1 1")
    (base / "annotations").mkdir()
    (base / "annotations" / "test.txt").write_text("\n".join(lines) + "\n")


def _caltech101(root: Path, names: Sequence[str]) -> None:
    base = root / "caltech101" / "101_ObjectCategories"
    counts: dict[str, int] = {}
    for number, label in enumerate(LABELS):
        name = ("Faces", "Leopards", "yin_yang")[label]
        counts[name] = counts.get(name, 0) + 1
        write_image(base / name / f"image_{counts[name]:04}.jpg", number)
    write_image(base / "BACKGROUND_Google" / "image_0001.jpg", 0)


def _flowers(root: Path, names: Sequence[str]) -> None:
    base = root / "flowers-102"
    for number in range(len(LABELS)):
        write_image(base / "jpg" / f"image_{number + 1:05}.jpg", number)
    ids = np.arange(1, len(LABELS) + 1)
    scipy.io.savemat(base / "setid.mat", {"tstid": ids, "trnid": ids, "valid": ids})
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.array(LABELS) + 1})


def _fer2013(root: Path, names: Sequence[str]) -> None:
    (root / "fer2013").mkdir()
    with (root / "fer2013" / "fer2013.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["emotion", "pixels", "Usage"])
        for number, label in enumerate(LABELS):
            pixels = " ".join([str(grey(number))] * (48 * 48))
            writer.writerow([label, pixels, "PrivateTest"])
            writer.writerow([label, pixels, "Training"])


def _stl10(root: Path, names: Sequence[str]) -> None:
    base = root / "stl10_binary"
    base.mkdir()
    pixels = [np.full((3, 96, 96), grey(number), np.uint8) for number in range(len(LABELS))]
    (base / "test_X.bin").write_bytes(np.stack(pixels).tobytes())
    (base / "test_y.bin").write_bytes(bytes(label + 1 for label in LABELS))


def _eurosat(root: Path, names: Sequence[str]) -> None:
    folders = ("AnnualCrop", "Forest", "HerbaceousVegetation")
    for number, label in enumerate(LABELS):
        write_image(root / "eurosat" / "2750" / folders[label] / f"{number}.jpg", number)


def _gtsrb(root: Path, names: Sequence[str]) -> None:
    base = root / "gtsrb"
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number, label in enumerate(LABELS):
        path = base / "GTSRB" / "Final_Test" / "Images" / f"{number:05}.ppm"
        write_image(path, number, "PPM")
        lines.append(f"{path.name};40;36;5;5;30;30;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(lines) + "\n")


def _country211(root: Path, names: Sequence[str]) -> None:
    codes = [chr(65 + row // 26) + chr(65 + row % 26) for row in range(211)]
    base = root / "country211" / "test"
    for number, label in enumerate(LABELS):
        write_image(base / codes[label] / f"{number}.jpg", number)
    for code in codes[3:]:
        write_image(base / code / "other.jpg", 0)


def _patch_camelyon(root: Path, names: Sequence[str]) -> None:
    base = root / "pcam"
    base.mkdir()
    pixels = [np.full((96, 96, 3), grey(number), np.uint8) for number in range(len(LABELS))]
    with h5py.File(base / "camelyonpatch_level_2_split_test_x.h5", "w") as file:
        file["x"] = np.stack(pixels)
    labels = np.array([min(label, 1) for label in LABELS], dtype=np.uint8)
    with h5py.File(base / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
        file["y"] = labels.reshape(-1, 1, 1, 1)


def _clevr_counts(root: Path, names: Sequence[str]) -> None:
    base = root / "clevr" / "CLEVR_v1.0"
    scenes = []
    for number, label in enumerate(LABELS):
        name = f"CLEVR_val_{number:06}.png"
        write_image(base / "images" / "val" / name, number, "PNG")
        scenes.append({"image_filename": name, "objects": [{}] * (label + 3)})
    (base / "scenes").mkdir()
    (base / "scenes" / "CLEVR_val_scenes.json").write_text(json.dumps({"scenes": scenes}))


def _rendered_sst2(root: Path, names: Sequence[str]) -> None:
    for number, label in enumerate(LABELS):
        name = names[min(label, 1)]
        write_image(root / "rendered-sst2" / "test" / name / f"{number}.png", number, "PNG")


TORCHVISION_LAYOUTS = {
    "aircraft": _aircraft,
    "caltech101": _caltech101,
    "cars": _cars,
    "clevr_counts": _clevr_counts,
    "country211": _country211,
    "dtd": _dtd,
    "eurosat": _eurosat,
    "fer2013": _fer2013,
    "flowers": _flowers,
    "food101": _food101,
    "gtsrb": _gtsrb,
    "mnist": _mnist,
    "patch_camelyon": _patch_camelyon,
    "pets": _pets,
    "rendered_sst2": _rendered_sst2,
    "stl10": _stl10,
    "sun397": _sun397,
}
