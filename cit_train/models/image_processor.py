"""The evaluation view as a saved config that `AutoImageProcessor` reads."""

from transformers import CLIPImageProcessor

from cit_train.transforms import EVAL_RESIZE_RATIO, ImageStatistics

__all__ = ["make_image_processor"]


def make_image_processor(statistics: ImageStatistics) -> CLIPImageProcessor:
    """A bilinear resize to 256/224 of the side, a centre crop, and the tower's normalisation."""
    side = statistics.side
    return CLIPImageProcessor(
        do_resize=True,
        size={"shortest_edge": round(side * EVAL_RESIZE_RATIO)},
        resample=2,  # bilinear
        do_center_crop=True,
        crop_size={"height": side, "width": side},
        do_convert_rgb=True,
        image_mean=list(statistics.mean),
        image_std=list(statistics.std),
    )
