"""`cit convert`: foreign weights into Hugging Face directories."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cit_curate.config import TextTowerConfig
from cit_curate.printing import print_json
from cit_curate.terminal import console, print_line

if TYPE_CHECKING:
    from cit_train.models.convert import Conversion

__all__ = ["convert_augreg", "convert_checkpoint", "convert_moco", "convert_swag"]

# Names shown of the tensors that were left out.
_SHOWN = 3


def convert_moco(
    source: tyro.conf.Positional[str], out: tyro.conf.Positional[Path], *, json: bool = False
) -> None:
    """Convert a MoCo-v3 checkpoint, with its projector, into a Hugging Face directory.

        cit convert moco vit-b-300ep.pth.tar moco-v3-b16
        cit train laptop --vision-encoder moco-v3-b16 --pool POOL --metadata classes.txt --out RUN

    The momentum encoder and the predictor are left out.

    Args:
        source: The checkpoint file, with tensors under module.base_encoder.
        out: The directory to write.
        json: Print one JSON document.
    """
    _convert("moco", source, out, json=json)


def convert_augreg(
    source: tyro.conf.Positional[str], out: tyro.conf.Positional[Path], *, json: bool = False
) -> None:
    """Convert an AugReg ViT of timm into a Hugging Face directory.

        cit convert augreg model.safetensors augreg-b16
        cit convert augreg timm:vit_base_patch16_224 augreg-b16

    Args:
        source: A weight file with timm's tensor names, its folder, or a timm model name.
            A model name is fetched from the hub; its default tag is .augreg_in21k.
        out: The directory to write.
        json: Print one JSON document.
    """
    _convert("augreg", source, out, json=json)


def convert_swag(
    source: tyro.conf.Positional[str], out: tyro.conf.Positional[Path], *, json: bool = False
) -> None:
    """Convert a SWAG ViT into a Hugging Face directory.

        cit convert swag vit_b16.torch swag-b16

    A classifier is left out. torchvision's files of the same weights work too.

    Args:
        source: The weight file. A torch hub name (vit_b16) would run code: fetch its file instead.
        out: The directory to write.
        json: Print one JSON document.
    """
    _convert("swag", source, out, json=json)


def convert_checkpoint(
    source: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    *,
    tokenizer: str | None = None,
    config: Path | None = None,
    json: bool = False,
) -> None:
    """Convert a checkpoint of the original CiT into a Hugging Face directory with safetensors.

        cit convert checkpoint yfcc15m_in1k_mocob16.tar yfcc15m_in1k_mocob16
        cit convert checkpoint checkpoint-best.pth best --tokenizer TOKENIZER

    Args:
        source: A folder with config.json and pytorch_model.bin, its tar, or checkpoint-best.pth.
        out: The directory to write.
        tokenizer: Directory, or hub id to fetch: the original's is
            princeton-nlp/unsup-simcse-bert-base-uncased. By default the source's own, else the
            original's if it is in the hub's cache, else none.
        config: The model's config.json, for a .pth whose towers are not a known ViT and a BERT.
        json: Print one JSON document.
    """
    from cit_train.models import convert

    _show(
        lambda: convert.convert_checkpoint(source, out, tokenizer=tokenizer, config=config),
        json=json,
    )


def _convert(family: str, source: str, out: Path, *, json: bool) -> None:
    from cit_train.models.convert import convert_tower

    _show(lambda: convert_tower(family, source, out), json=json)


def _show(convert: Callable[[], "Conversion"], *, json: bool) -> None:
    with console(stderr=True).status("converting"):
        result = convert()
    if json:
        value = {
            "folder": str(result.folder),
            "model_type": result.model_type,
            "architecture": result.architecture,
            "image_size": result.image_size,
            "pooled_size": result.pooled_size,
            "num_tensors": result.num_tensors,
            "left_out": list(result.left_out),
            "tokenizer": result.tokenizer,
        }
        print_json(value)
        return
    text = (
        f"{result.folder}: {result.model_type}, {result.architecture}, {result.image_size} pixels, "
        f"pooled output of {result.pooled_size}, {result.num_tensors} tensors; loads back equal"
    )
    print_line(text)
    if result.left_out:
        more = ", …" if len(result.left_out) > _SHOWN else ""
        names = ", ".join(result.left_out[:_SHOWN])
        left_out = f"left out of the source's tensors: {len(result.left_out)} ({names}{more})"
        print_line(left_out)
    if result.model_type == "vision-text-dual-encoder" and not result.tokenizer:
        print_line(
            "it has no tokenizer: convert again with --tokenizer "
            f"(a directory, or {TextTowerConfig.text_encoder}, which is fetched), "
            "or use `cit eval --tokenizer`",
            stderr=True,
        )
