"""COCO's captions and Karpathy's splits as sources."""

import json

import pytest
from source_rows import read_all

from cit_curate.errors import ConfigError
from cit_curate.sources.columns import Columns
from cit_curate.sources.text.json_array import open_json

IMAGES = [
    {"id": 31, "file_name": "p/31.jpg", "width": 6, "coco_url": "http://pictures.example/31"},
    {"id": 32, "file_name": "p/32.jpg", "width": 7, "coco_url": "http://pictures.example/32"},
    {"id": 33, "file_name": "p/33.jpg", "width": 8, "coco_url": "http://pictures.example/33"},
]
ANNOTATIONS = [
    {"id": 5, "image_id": 32, "caption": "a jug"},
    {"id": 6, "image_id": 31, "caption": "a spoon"},
    {"id": 7, "image_id": 32, "caption": "a jug on a shelf"},
    {"id": 8, "image_id": 33, "caption": "a lid"},
]
FILE = {
    "info": {"year": 2030, "about": {"made": "up"}},
    "licenses": [{"id": 1, "name": "free"}],
    "images": IMAGES,
    "annotations": ANNOTATIONS,
}


def read(tmp_path, content, columns=None, *, indent=None):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content, indent=indent))
    return read_all(open_json(path, columns or Columns(), "json"), tmp_path)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("keys", [list(FILE), list(reversed(FILE))])
def test_a_row_is_an_annotation_with_its_image(tmp_path, keys, indent):
    found = read(tmp_path, {key: FILE[key] for key in keys}, indent=indent)
    assert found.values("image_id", "text_key", "caption", "image_uri") == [
        ("32", "caption", "a jug", "p/32.jpg"),
        ("31", "caption", "a spoon", "p/31.jpg"),
        ("32", "caption", "a jug on a shelf", "p/32.jpg"),
        ("33", "caption", "a lid", "p/33.jpg"),
    ]
    assert found.rejects == []


def test_keys_of_the_annotation_and_of_the_image_are_columns(tmp_path):
    columns = Columns(image="coco_url", caption="caption", extra=("id", "width"))
    found = read(tmp_path, FILE, columns)
    assert found.values("image_id", "image_uri", "id", "width")[1:] == [
        ("31", "http://pictures.example/31", "6", "6"),
        ("32", "http://pictures.example/32", "7", "7"),
        ("33", "http://pictures.example/33", "8", "8"),
    ]
    with pytest.raises(ConfigError, match=r"no column 'nowhere'; it has id, image_id, caption, fi"):
        read(tmp_path, FILE, Columns(image="nowhere", caption="caption"))


def test_what_has_no_other_half_is_rejected_by_its_id(tmp_path):
    annotations = [
        *ANNOTATIONS[:3],
        {"id": 9, "image_id": 99, "caption": "of nothing"},
        {"id": 10, "caption": "of nothing"},
        {"id": 11, "image_id": 31, "caption": " "},
        "no object",
    ]
    images = [*IMAGES, {"file_name": "p/34.jpg"}, {"id": 31, "file_name": "p/x.jpg"}, 4]
    found = read(tmp_path, {**FILE, "images": images, "annotations": annotations})
    assert [p["caption"] for p in found.pairs] == ["a jug", "a spoon", "a jug on a shelf"]
    assert [(r.reason, r.detail) for r in found.rejects] == [
        ("bad_row", "image 4 has no id"),
        ("bad_row", "image 5 has the id 31 of image 1"),
        ("bad_row", "image 6 is no object {…}: '4'"),
        ("text_without_image", "annotation 9: there is no image 99 among the images"),
        ("text_without_image", "annotation 10: there is no image id among the images"),
        ("empty_text", "image 31: no text in caption"),
        ("bad_row", "annotation 7 is no object {…}: '\"no object\"'"),
        ("image_without_text", "image 33 has no annotation"),
    ]


def test_ids_may_be_texts_in_one_list_and_numbers_in_the_other(tmp_path):
    images = [{"id": "31", "file_name": "a.jpg"}, {"id": 32.0, "file_name": "b.jpg"}]
    found = read(tmp_path, {"images": images, "annotations": ANNOTATIONS[:3]})
    assert [p["image_uri"] for p in found.pairs] == ["b.jpg", "a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    "annotation",
    [
        {"id": 1, "image_id": 31, "category_id": 2, "bbox": [0, 0, 1, 1], "segmentation": []},
        {"id": 1, "image_id": 31, "category_id": 2, "keypoints": [0, 0, 1]},
    ],
)
def test_instances_are_refused_by_saying_what_they_are(tmp_path, annotation):
    content = {"images": IMAGES, "annotations": [annotation], "categories": [{"id": 2}]}
    with pytest.raises(
        ConfigError, match=r"holds object instances, no captions: .*category_id.*capt"
    ):
        read(tmp_path, content)


def test_questions_are_refused_unless_a_text_is_chosen(tmp_path):
    annotations = [{"image_id": 31, "question": "what is it?", "id": 1}]
    content = {"images": IMAGES, "annotations": annotations}
    with pytest.raises(ConfigError, match=r"holds images and annotations, no captions.*question"):
        read(tmp_path, content)
    found = read(tmp_path, content, Columns(caption="question"))
    assert found.values("text_key", "caption") == [("question", "what is it?")]


def test_annotations_without_images_are_a_list_of_rows(tmp_path):
    found = read(tmp_path, {"annotations": ANNOTATIONS}, Columns(caption="caption"))
    assert found.values("image_id", "caption")[0] == ("32", "a jug")


def karpathy(**fields):
    return {
        "filename": "7.jpg",
        "imgid": 4,
        "split": "train",
        "sentids": [0, 1],
        "sentences": [
            {"tokens": ["a", "cup"], "raw": "A cup.", "imgid": 4, "sentid": 0},
            {"tokens": ["tea"], "raw": "Tea!", "imgid": 4, "sentid": 1},
        ],
        **fields,
    }


def test_of_karpathys_splits_a_row_is_a_sentence(tmp_path):
    images = [
        karpathy(),
        karpathy(filepath="val", cocoid=90, split="val"),
        karpathy(imgid=5, sentences=[]),
    ]
    found = read(tmp_path, {"images": images, "dataset": "made up"}, Columns(extra=("split",)))
    assert found.values("image_id", "text_key", "caption", "image_uri", "split") == [
        ("4", "caption", "A cup.", "7.jpg", "train"),
        ("4", "caption", "Tea!", "7.jpg", "train"),
        ("90", "caption", "A cup.", "val/7.jpg", "val"),
        ("90", "caption", "Tea!", "val/7.jpg", "val"),
    ]
    assert found.reasons == [(5, "image_without_text")]
    columns = Columns(image_id="sentid", image="filename", caption="raw")
    chosen = read(tmp_path, {"images": images[:1]}, columns)
    assert chosen.values("image_id", "image_uri", "text_key") == [
        ("0", "7.jpg", "raw"),
        ("1", "7.jpg", "raw"),
    ]
