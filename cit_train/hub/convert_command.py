"""What `cit convert` does: foreign weights into Hugging Face directories."""

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

# Names that are shown of tensors that were left out.
_SHOWN = 3


def convert_moco(
    source: tyro.conf.Positional[str], out: tyro.conf.Positional[Path], *, json: bool = False
) -> None:
    """MoCo-v3's own checkpoint into a Hugging Face directory, with its projector.

        cit convert moco vit-b-300ep.pth.tar moco-v3-b16
        cit train laptop --vision-encoder moco-v3-b16 --pool POOL --metadata classes.txt --out RUN

    The momentum encoder and the predictor are left out.

    Args:
        source: The file, with names under module.base_encoder.
        out: The directory to write.
        json: Print one JSON document.
    """
    _convert("moco", source, out, json=json)


def convert_augreg(
    source: tyro.conf.Positional[str], out: tyro.conf.Positional[Path], *, json: bool = False
) -> None:
    """An AugReg ViT of timm into a Hugging Face directory.

        cit convert augreg model.safetensors augreg-b16
        cit convert augreg timm:vit_base_patch16_224 augreg-b16

    Args:
        source: A weight file under timm's names, the folder that has it, or a timm name.
            A name is fetched from the hub; without a tag it means .augreg_in21k.
        out: The directory to write.
        json: Print one JSON document.
    """
    _convert("augreg", source, out, json=json)


def convert_swag(
    source: tyro.conf.Positional[str], out: tyro.conf.Positional[Path], *, json: bool = False
) -> None:
    """A SWAG ViT into a Hugging Face directory.

        cit convert swag vit_b16.torch swag-b16

    A classifier is left out. torchvision's files of the same weights work too.

    Args:
        source: The weight file. Of a torch hub name (vit_b16) no code is run: fetch its file.
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
    """A checkpoint of the original CiT into a Hugging Face directory with safetensors.

        cit convert checkpoint yfcc15m_in1k_mocob16.tar yfcc15m_in1k_mocob16
        cit convert checkpoint checkpoint-best.pth best --tokenizer TOKENIZER

    Args:
        source: A folder with config.json and pytorch_model.bin, its tar, or checkpoint-best.pth.
        out: The directory to write.
        tokenizer: Directory, or hub id to fetch: the original's is
            princeton-nlp/unsup-simcse-bert-base-uncased. Left out, the source's own, else the
            original's if a hub's cache has it, else none.
        config: The model's config.json, when a .pth has other towers than a known ViT and a BERT.
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
        done = convert()
    if json:
        value = {
            "folder": str(done.folder),
            "model_type": done.model_type,
            "architecture": done.architecture,
            "image_size": done.image_size,
            "pooled_size": done.pooled_size,
            "num_tensors": done.num_tensors,
            "left_out": list(done.left_out),
            "tokenizer": done.tokenizer,
        }
        print_json(value)
        return
    text = (
        f"{done.folder}: {done.model_type}, {done.architecture}, {done.image_size} pixels, "
        f"pooled output of {done.pooled_size}, {done.num_tensors} tensors; loads back equal"
    )
    print_line(text)
    if done.left_out:
        more = ", …" if len(done.left_out) > _SHOWN else ""
        names = ", ".join(done.left_out[:_SHOWN])
        left_out = f"left out of the source's tensors: {len(done.left_out)} ({names}{more})"
        print_line(left_out)
    if done.model_type == "vision-text-dual-encoder" and not done.tokenizer:
        print_line(
            "there is no tokenizer in it: convert again with --tokenizer "
            f"(a directory, or {TextTowerConfig.text_encoder}, which is fetched), "
            "or give it to `cit eval --tokenizer`",
            stderr=True,
        )
