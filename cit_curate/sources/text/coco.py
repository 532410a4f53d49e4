"""Readers of COCO's captions, and of Karpathy's splits: one object with lists of images and texts.

Of COCO (https://cocodataset.org/#format-data, "Image Captioning"), each of the `annotations` has a
caption and the id of one of the `images`, in any order. Of Karpathy's splits, each of the `images`
has its `sentences`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cit_curate.errors import ConfigError
from cit_curate.sources.columns import Columns, peek_hint
from cit_curate.sources.rows import SourceReader
from cit_curate.sources.text.files import TextLines
from cit_curate.sources.text.json_text import Held, array_under
from cit_curate.sources.text.jsonl import (
    FieldError,
    Objects,
    id_text,
    keys_of,
    numbered,
    reader_of,
)

_IMAGES, _ANNOTATIONS, _SENTENCES = "images", "annotations", "sentences"
# The first of these that its images have is where a COCO image lies.
_PLACES = ("file_name", "path", "coco_url", "flickr_url", "url")
# The first of these that an image of Karpathy's splits has is its id.
_IDS = ("cocoid", "imgid", "id")
_MAX_SHOWN = 12


def is_coco(held: Mapping[str, Held]) -> bool:
    """Whether an object has the lists of COCO, of captions or of anything else."""
    return all(key in held and held[key].kind == "objects" for key in (_IMAGES, _ANNOTATIONS))


def is_karpathy(held: Mapping[str, Held]) -> bool:
    """Whether an object has images with sentences."""
    return _IMAGES in held and isinstance(held[_IMAGES].keys.get(_SENTENCES), list)


def open_coco(lines: TextLines, columns: Columns) -> SourceReader:
    """Open COCO's captions; a row is an annotation, with the keys of its image behind its own.

    By default the text is `caption`, the image `file_name` and the image id `image_id`. An
    annotation whose image is not listed is rejected as `text_without_image`, and an image without
    annotations as `image_without_text`. Memory holds what is chosen of each image.

    Raises:
        ConfigError: A chosen column is missing, or the annotations have no captions.
        DamagedError: The file is no JSON.
    """
    columns = _with_caption(columns)
    texts = tuple(filter(None, (*columns.text, columns.caption)))
    annotations = numbered(array_under(lines, _ANNOTATIONS))
    own = keys_of(annotations, Columns(image_id=None, text=texts))
    if not set(texts) & set(own):
        raise ConfigError(_no_captions(lines, texts, own))
    further = tuple(name for name in (columns.image, *columns.extra) if name and name not in own)
    of_images = keys_of(numbered(array_under(lines, _IMAGES)), Columns(image_id=None, text=further))
    if not columns.image:
        place = next((name for name in _PLACES if name in of_images), None)
        columns = replace(columns, image=place)
    columns = columns.found_in([*own, *(name for name in of_images if name not in own)], lines.path)
    wanted = (*columns.names, *columns.extra)
    return reader_of(lambda log: _captioned(lines, wanted), columns, lines, _notes(columns))


def open_karpathy(lines: TextLines, columns: Columns) -> SourceReader:
    """Open Karpathy's splits; a row is a sentence, with the keys of its image.

    Further columns are `caption`, the sentence as it was written (`raw`), `image`, the image's
    folder and file, and `image_id`, the first of `cocoid`, `imgid` and `id` that it has. These are
    the default.

    Raises:
        ConfigError: A chosen column is missing.
        DamagedError: The file is no JSON.
    """
    columns = _with_caption(columns)
    if not columns.image:
        columns = replace(columns, image="image")
    keys = keys_of(_sentences(lines), columns)
    columns = columns.found_in(keys, lines.path)
    return reader_of(lambda log: _sentences(lines), columns, lines, _notes(columns))


def _with_caption(columns: Columns) -> Columns:
    return columns if columns.text or columns.caption else replace(columns, caption="caption")


def _notes(columns: Columns) -> tuple[str, ...]:
    texts = ", ".join(filter(None, (*columns.text, columns.caption)))
    return (f"read as lists of images and captions: text {texts}, image {columns.image}",)


def _no_captions(lines: TextLines, texts: Sequence[str], own: Sequence[str]) -> str:
    objects = {"bbox", "segmentation", "category_id", "keypoints", "segments_info"}
    what = "object instances" if objects & set(own) else "images and annotations"
    return (
        f"{lines.path} holds {what}, no captions: its annotations have "
        f"{', '.join(own[:_MAX_SHOWN])}, and no {' or '.join(texts)}; COCO's captions are in files "
        f"of their own, captions_*.json; --caption names another text{peek_hint(lines.path)}"
    )


def _captioned(lines: TextLines, wanted: Sequence[str]) -> Objects:
    """The annotations, each with the wanted keys of its image; then the images without any."""
    images: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, image in numbered(array_under(lines, _IMAGES), "image"):
        key = "" if isinstance(image, FieldError) else _key(image.get("id"))
        if isinstance(image, FieldError):
            yield number, image
        elif not key:
            yield number, FieldError(f"image {number} has no id")
        elif key in images:
            yield number, FieldError(f"image {number} has the id {key} of image {images[key][0]}")
        else:
            images[key] = number, {name: image[name] for name in wanted if name in image}
    with_caption: set[str] = set()
    for number, annotation in numbered(array_under(lines, _ANNOTATIONS), "annotation"):
        if isinstance(annotation, FieldError):
            yield number, annotation
            continue
        key = _key(annotation.get("image_id"))
        if key in images:
            with_caption.add(key)
            yield number, {**images[key][1], **annotation}
        else:
            name = annotation.get("id", f"number {number}")
            what = f"annotation {name}: there is no image {key or 'id'} among the images"
            yield number, FieldError(what, "text_without_image")
    for key, (number, _) in images.items():
        if key not in with_caption:
            yield number, FieldError(f"image {key} has no annotation", "image_without_text")


def _sentences(lines: TextLines) -> Objects:
    """The sentences, numbered through the file, each with the keys of its image."""
    number = 0
    for count, image in numbered(array_under(lines, _IMAGES), "image"):
        sentences = [] if isinstance(image, FieldError) else image.get(_SENTENCES)
        if isinstance(image, FieldError) or not isinstance(sentences, list) or not sentences:
            number += 1
            error = FieldError(f"image {count} has no sentences", "image_without_text")
            yield number, image if isinstance(image, FieldError) else error
            continue
        folder, file = image.get("filepath"), image.get("filename", image.get("file_name"))
        place = f"{folder}/{file}" if folder and file else file
        fields = {key: value for key, value in image.items() if key != _SENTENCES}
        fields |= {"image_id": next((image[key] for key in _IDS if key in image), place)}
        for sentence in sentences:
            number += 1
            own = sentence if isinstance(sentence, dict) else {"raw": sentence}
            yield number, {**fields, **own, "image": place, "caption": own.get("raw")}


def _key(value: Any) -> str:
    """An id for looking up; "" for none. Files differ in whether ids are numbers or texts."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    try:
        return id_text(value)
    except FieldError:
        return ""
