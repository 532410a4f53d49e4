"""Prompts of the tasks for which no library ships the CLIP paper's prompts.

As published with the CLIP paper (arXiv 2103.00020, appendix; `data/prompts.md` and the
ImageNet notebook of its repository); CUB-200 uses Birdsnap's.
"""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["IMAGENET_EXTRA_PROMPTS", "PROMPTS"]

# Only for ImageNet, and only when it is evaluated alone (docs/method.md).
IMAGENET_EXTRA_PROMPTS = ("A photo of a {}", "{}")

_MEDIA = ("photo", "video", "example", "demonstration")
_VERBS = ("", "using ", "doing ", "during ", "performing ", "practicing ")

PROMPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cub200": ("a photo of a {}, a type of bird.",),
        # The first seven picks of a search over all eighty.
        "imagenet": (
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
        ),
        "resisc45": tuple(
            f"{view} of {article}{{}}."
            for article in ("", "a ", "the ")
            for view in (
                "satellite imagery",
                "aerial imagery",
                "satellite photo",
                "aerial photo",
                "satellite view",
                "aerial view",
            )
        ),
        "patch_camelyon": ("this is a photo of {}",),
        "ucf101_frames": tuple(
            f"a {medium} of {article} person {verb}{{}}."
            for verb in _VERBS
            for article in ("a", "the")
            for medium in _MEDIA
        ),
        "kinetics700_frames": tuple(
            f"a {medium} of {who}{{}}."
            for medium in _MEDIA
            for who in ("", *(f"a person {verb}" for verb in _VERBS))
        ),
        "clevr_counts": ("a photo of {} objects.",),
        "hateful_memes": ("a {}.",),
    }
)
