"""Facts of the 26 tasks that need no library and no data: sizes, metrics and sources.

From the CLIP paper's protocol (arXiv 2103.00020, table 9) and of docs/method.md.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["FACTS", "TASK_NAMES", "Metric", "TaskFacts"]

Metric = Literal["accuracy", "mean_per_class", "mean_top1_top5", "roc_auc"]


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """The facts of a task that need no library and no data.

    Attributes:
        name: The name on the command line.
        title: The name in papers.
        metric: The reported metric.
        num_classes: The number of classes.
        num_test: The number of test images in CLIP's protocol.
        how_to_get: One sentence: the data set, its source and the split.
        names_key: The key of the names in clip-benchmark; empty = `names/<name>.txt`.
        prompts_key: The key of the prompts in clip-benchmark; empty = prompts.py.
    """

    name: str
    title: str
    metric: Metric = "accuracy"
    num_classes: int
    num_test: int
    how_to_get: str
    names_key: str = ""
    prompts_key: str = ""

    @property
    def names_source(self) -> str:
        """The source of the class names: clip-benchmark, or cit itself."""
        return "clip-benchmark" if self.names_key else "cit"


FACTS = (
    TaskFacts(
        name="food101",
        title="Food-101",
        num_classes=101,
        num_test=25_250,
        how_to_get="Food-101 from data.vision.ee.ethz.ch, or torchvision's Food101; split test.",
        prompts_key="food101",
    ),
    TaskFacts(
        name="cifar10",
        title="CIFAR-10",
        num_classes=10,
        num_test=10_000,
        how_to_get="CIFAR-10 from www.cs.toronto.edu, or torchvision's CIFAR10; test batch.",
        prompts_key="cifar10",
    ),
    TaskFacts(
        name="cifar100",
        title="CIFAR-100",
        num_classes=100,
        num_test=10_000,
        how_to_get="CIFAR-100 from www.cs.toronto.edu, or torchvision's CIFAR100; test batch.",
        prompts_key="cifar100",
    ),
    TaskFacts(
        name="cub200",
        title="CUB-200-2011",
        num_classes=200,
        num_test=5_794,
        how_to_get="Caltech-UCSD Birds-200-2011 from data.caltech.edu; test images of "
        "train_test_split.txt.",
    ),
    TaskFacts(
        name="sun397",
        title="SUN397",
        num_classes=397,
        num_test=19_850,
        how_to_get="SUN397 from vision.princeton.edu; the first published split, Testing_01.txt.",
        prompts_key="sun397",
    ),
    TaskFacts(
        name="cars",
        title="Stanford Cars",
        num_classes=196,
        num_test=8_041,
        how_to_get="Stanford Cars (ai.stanford.edu, mirrored elsewhere); test with its labels.",
        prompts_key="cars",
    ),
    TaskFacts(
        name="aircraft",
        title="FGVC-Aircraft",
        metric="mean_per_class",
        num_classes=100,
        num_test=3_333,
        how_to_get="FGVC-Aircraft 2013b from robots.ox.ac.uk, or torchvision's FGVCAircraft; "
        "test, variants.",
        prompts_key="fgvc_aircraft",
    ),
    TaskFacts(
        name="dtd",
        title="DTD textures",
        num_classes=47,
        num_test=1_880,
        how_to_get="Describable Textures from robots.ox.ac.uk, or torchvision's DTD; test, "
        "partition 1.",
        prompts_key="dtd",
    ),
    TaskFacts(
        name="pets",
        title="Oxford Pets",
        metric="mean_per_class",
        num_classes=37,
        num_test=3_669,
        how_to_get="Oxford-IIIT Pet from robots.ox.ac.uk, or torchvision's OxfordIIITPet; test.",
        prompts_key="pets",
    ),
    TaskFacts(
        name="caltech101",
        title="Caltech-101",
        metric="mean_per_class",
        num_classes=102,
        num_test=6_085,
        how_to_get="Caltech 101 from data.caltech.edu, with the background class; all but 30 "
        "training images of each class.",
        names_key="caltech101",
        prompts_key="caltech101",
    ),
    TaskFacts(
        name="flowers",
        title="Flowers-102",
        metric="mean_per_class",
        num_classes=102,
        num_test=6_149,
        how_to_get="102 Category Flowers from robots.ox.ac.uk, or torchvision's Flowers102; test.",
        names_key="flowers",
        prompts_key="flowers",
    ),
    TaskFacts(
        name="mnist",
        title="MNIST",
        num_classes=10,
        num_test=10_000,
        how_to_get="MNIST from yann.lecun.com, or torchvision's MNIST; the t10k files.",
        names_key="mnist",
        prompts_key="mnist",
    ),
    TaskFacts(
        name="fer2013",
        title="FER2013",
        num_classes=7,
        num_test=3_574,
        how_to_get="FER2013 from Kaggle's facial expression challenge; usage PrivateTest (it has "
        "3,589 images, of which the CLIP paper counts 3,574).",
        prompts_key="fer2013",
    ),
    TaskFacts(
        name="stl10",
        title="STL-10",
        num_classes=10,
        num_test=8_000,
        how_to_get="STL-10 from ai.stanford.edu, or torchvision's STL10; test.",
        prompts_key="stl10",
    ),
    TaskFacts(
        name="eurosat",
        title="EuroSAT",
        num_classes=10,
        num_test=5_000,
        how_to_get="EuroSAT RGB from github.com/phelber/EuroSAT; 500 images of each class.",
        names_key="eurosat",
        prompts_key="eurosat",
    ),
    TaskFacts(
        name="resisc45",
        title="RESISC45",
        num_classes=45,
        num_test=25_200,
        how_to_get="NWPU-RESISC45 from its authors; the images outside the 6,300 of training.",
    ),
    TaskFacts(
        name="gtsrb",
        title="GTSRB",
        num_classes=43,
        num_test=12_630,
        how_to_get="German Traffic Sign Recognition from benchmark.ini.rub.de, or torchvision's "
        "GTSRB; the final test images with GT-final_test.csv.",
        names_key="gtsrb",
        prompts_key="gtsrb",
    ),
    TaskFacts(
        name="kitti_distance",
        title="KITTI distance",
        num_classes=4,
        num_test=711,
        how_to_get="KITTI object detection from cvlibs.net; the test images of VTAB's "
        "closest-vehicle-distance task.",
        names_key="kitti_closest_vehicle_distance",
        prompts_key="kitti_closest_vehicle_distance",
    ),
    TaskFacts(
        name="country211",
        title="Country211",
        num_classes=211,
        num_test=21_100,
        how_to_get="Country211 from OpenAI's CLIP page, or torchvision's Country211; test.",
        names_key="country211",
        prompts_key="country211",
    ),
    TaskFacts(
        name="patch_camelyon",
        title="PatchCamelyon",
        num_classes=2,
        num_test=32_768,
        how_to_get="PatchCamelyon from github.com/basveeling/pcam, or torchvision's PCAM; test.",
        names_key="pcam",
    ),
    TaskFacts(
        name="ucf101_frames",
        title="UCF101",
        num_classes=101,
        num_test=1_794,
        how_to_get="UCF101 from crcv.ucf.edu; the middle frame of each video of CLIP's test split.",
    ),
    TaskFacts(
        name="kinetics700_frames",
        title="Kinetics-700",
        metric="mean_top1_top5",
        num_classes=700,
        num_test=31_669,
        how_to_get="Kinetics-700 (deepmind.com); the middle frame of each video of the "
        "validation split.",
    ),
    TaskFacts(
        name="clevr_counts",
        title="CLEVR counts",
        num_classes=8,
        num_test=500,
        how_to_get="CLEVR v1.0 from cs.stanford.edu, labelled by the number of objects; CLIP drew "
        "500 images for its test.",
    ),
    TaskFacts(
        name="hateful_memes",
        title="Hateful Memes",
        metric="roc_auc",
        num_classes=2,
        num_test=500,
        how_to_get="Hateful Memes from Meta AI's challenge; the development split (dev.jsonl).",
    ),
    TaskFacts(
        name="rendered_sst2",
        title="Rendered SST2",
        num_classes=2,
        num_test=1_821,
        how_to_get="Rendered SST2 from OpenAI's CLIP page, or torchvision's RenderedSST2; test.",
        prompts_key="renderedsst2",
    ),
    TaskFacts(
        name="imagenet",
        title="ImageNet",
        num_classes=1_000,
        num_test=50_000,
        how_to_get="ILSVRC 2012 from image-net.org (a free account is needed); validation, sorted "
        "into folders named by synset.",
        names_key="imagenet1k",
    ),
)

TASK_NAMES = tuple(facts.name for facts in FACTS)
