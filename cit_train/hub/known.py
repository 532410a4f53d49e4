"""The models that `cit pull` knows, and the sources of their weights.

No direct address has a published SHA-256: `cit pull` records the one of the first download and
checks it from then on.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from cit_curate.errors import ConfigError

__all__ = ["KNOWN_MODELS", "KnownModel", "known_model"]

Role = Literal["vision", "text", "dual encoder"]


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One model that `cit pull` knows by name.

    Attributes:
        name: The name for `cit pull`.
        role: The tower that it is, or both.
        what: A description in a few words.
        source: `https://…` (one file), `hf://…` (a repository of the hub), or `package:…` (inside
            an installed package, so that nothing is pulled).
        license: The licence of the weights, according to their publisher.
        next_step: The command or flag to use it with; `{path}` stands for the pulled file or
            folder, `{name}` for the model's name.
        sha256: The SHA-256 in hex; "" = the publisher states none.
    """

    name: str
    role: Role
    what: str
    source: str
    license: str
    next_step: str
    sha256: str = ""


def _augreg(size: str, patch: int, what: str) -> KnownModel:
    return KnownModel(
        name=f"augreg-vit-{size[0]}{patch}",
        role="vision",
        what=f"AugReg {what}, ImageNet-21k",
        source=f"hf://timm/vit_{size}_patch{patch}_224.augreg_in21k",
        license="Apache-2.0",
        next_step="cit convert augreg {path}/model.safetensors models/{name}",
    )


def _swag(name: str, what: str) -> KnownModel:
    return KnownModel(
        name=f"swag-{name.replace('_', '-')}",
        role="vision",
        what=f"SWAG {what}, 3.6 billion hashtagged pictures",
        source=f"https://dl.fbaipublicfiles.com/SWAG/{name}.torch",
        license="CC-BY-NC-4.0",
        next_step="cit convert swag {path} models/{name}",
    )


def _released(name: str, pool: str) -> KnownModel:
    return KnownModel(
        name=name,
        role="dual encoder",
        what=f"CiT's released model: {pool}, ImageNet metadata",
        source=f"https://dl.fbaipublicfiles.com/MMPT/cit/{name}.tar",
        license="CC-BY-NC-4.0",
        next_step="cit convert checkpoint {path} models/{name}",
    )


_MODELS = (
    KnownModel(
        name="moco-v3-vit-b16",
        role="vision",
        what="MoCo-v3 ViT-B/16, 300 epochs of ImageNet-1k",
        source="https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar",
        license="CC-BY-NC-4.0",
        next_step="cit convert moco {path} models/{name}",
    ),
    _augreg("base", 32, "ViT-B/32"),
    _augreg("base", 16, "ViT-B/16"),
    _augreg("large", 16, "ViT-L/16"),
    _swag("vit_b16", "ViT-B/16"),
    _swag("vit_l16", "ViT-L/16"),
    _swag("vit_h14", "ViT-H/14"),
    KnownModel(
        name="efficientnet-lite0",
        role="vision",
        what="EfficientNet-Lite0, ImageNet-1k, small",
        source="package:efficientnet-lite0",
        license="Apache-2.0",
        next_step="--vision-encoder package:efficientnet-lite0",
    ),
    KnownModel(
        name="simcse",
        role="text",
        what="unsupervised SimCSE BERT-base, the paper's text tower",
        source="hf://princeton-nlp/unsup-simcse-bert-base-uncased",
        license="MIT",
        next_step="--text-encoder {path}",
    ),
    KnownModel(
        name="minilm",
        role="text",
        what="all-MiniLM-L6-v2, small, made for mean pooling",
        source="package:minilm",
        license="Apache-2.0",
        next_step="--text-encoder package:minilm --pooling mean",
    ),
    _released("yfcc15m_in1k_mocob16", "YFCC15M"),
    _released("yfcc100m_in1k_mocob16", "YFCC100M"),
)

KNOWN_MODELS: Mapping[str, KnownModel] = MappingProxyType({model.name: model for model in _MODELS})


def known_model(name: str) -> KnownModel:
    """The model of that name.

    Raises:
        ConfigError: The name is unknown; the message has the nearest spelling.
    """
    if name in KNOWN_MODELS:
        return KNOWN_MODELS[name]
    plain = name.lower().replace("_", "-")
    spelled = {known.lower().replace("_", "-"): known for known in KNOWN_MODELS}
    near = [spelling for spelling in spelled if plain and plain in spelling]
    near = near or difflib.get_close_matches(plain, spelled, n=1, cutoff=0.5)
    hint = f"did you mean {spelled[near[0]]!r}? " if near else ""
    raise ConfigError(
        f"there is no known model {name!r}; {hint}`cit pull list` shows them, and any other model "
        "of the hub is hf://org/name"
    )
