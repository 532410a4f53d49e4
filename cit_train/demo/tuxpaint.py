"""The demo's evaluation: Tux Paint's stamps as an image folder of 22 everyday classes.

(Debian `tuxpaint-stamps-default` 2022.06.04, GPL-2: photos and drawings in category folders.)
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from cit_curate.errors import ConfigError
from cit_curate.storage.lock import writer_lock
from cit_curate.storage.replace_folder import replacing

__all__ = ["CLASSES", "evaluation_pictures", "link_evaluation_pictures"]

# A folder stands for every PNG below it, a path to a .png for that picture alone.
CLASSES: dict[str, tuple[str, ...]] = {
    "mammal": ("animals/mammals", "animals/marsupials"),
    "bird": ("animals/birds",),
    "fish": ("animals/fish",),
    "insect": ("animals/insects",),
    "fruit": ("food/fruit", "plants/trees/rambutan.png"),
    "vegetable": ("food/vegetables",),
    "flower": ("plants/flowers",),
    "tree": (
        "plants/trees/birch.png",
        "plants/trees/holm_oak.png",
        "plants/trees/liberia-palm.png",
        "plants/trees/tree336.png",
    ),
    "house": ("town/houses",),
    "road sign": ("town/roadsigns",),
    "coin": (
        "symbols/money/us/coins",
        "symbols/money/euro/coins",
        "symbols/money/canadian/coins",
        "symbols/money/japanese",
    ),
    "tool": ("household/tools",),
    "musical instrument": ("hobbies/music",),
    "chess piece": ("symbols/chess",),
    "planet": ("space/planets",),
    "clothing": (
        "clothes/t_glove.png",
        "clothes/t_jacket.png",
        "clothes/t_pants.png",
        "clothes/t_poloshirt.png",
        "clothes/t_scarf.png",
        "clothes/t_shirt.png",
        "clothes/t_sock.png",
        "clothes/t_tshirt.png",
    ),
    "hat": ("clothes/hats", "clothes/t_baseballcap.png"),
    "ship": ("vehicles/ship",),
    "car": ("vehicles/auto", "vehicles/race", "vehicles/emergency/sedan_police.png"),
    "airplane": ("vehicles/flight/planes", "military/vehicles/f22_raptor.png"),
    "train": ("vehicles/locomotive",),
    "flag": ("town/flags",),
}

# Pictures in a folder of another class, found by hand.
_MISFILED = frozenset(
    {
        "animals/fish/lobster.png",
        "animals/fish/shrimp.png",
        "animals/insects/Brown_slug.png",
        "animals/insects/Woodlouse.png",
        "animals/insects/cartoon/snail.png",
        "animals/insects/cartoon/snail2.png",
        "animals/insects/cartoon/spider_computer.png",
        "animals/insects/cartoon/spider_fly.png",
        "animals/insects/cartoon/spider_football.png",
        "animals/insects/cartoon/wings.png",
        "animals/mammals/bears/cartoon/teddy_bear.png",
        "animals/mammals/bears/toys/edward_bear.png",
        "space/planets/0_sun.png",
        "town/houses/cartoon/cave_entrance.png",
        "town/roadsigns/traffic_cone.png",
        "vehicles/locomotive/cartoon/trainSign.png",
    }
)
_MIRRORED = "_mirror"


def evaluation_pictures(stamps_root: Path) -> Mapping[str, Path]:
    """The evaluation's pictures: `<class name>/<file>.png` → the stamp, in the order of `CLASSES`.

    Mirrored variants, links, SVG stamps and misfiled pictures are left out. A file's name is the
    stamp's path with `__` for each slash, so that names are unique.

    Raises:
        ConfigError: `stamps_root` lacks a folder or a picture of `CLASSES`.
    """
    pictures: dict[str, Path] = {}
    for name, sources in CLASSES.items():
        for source in sources:
            path = stamps_root / source
            if not path.exists():
                raise ConfigError(
                    f"{path} is missing; point at the folder usr/share/tuxpaint/stamps of Debian's "
                    "tuxpaint-stamps-default 2022.06.04"
                )
            for stamp in sorted(path.rglob("*.png")) if path.is_dir() else [path]:
                relative = stamp.relative_to(stamps_root).as_posix()
                if stamp.is_symlink() or stamp.stem.endswith(_MIRRORED) or relative in _MISFILED:
                    continue
                pictures[f"{name}/{relative.replace('/', '__')}"] = stamp
    return MappingProxyType(pictures)


def link_evaluation_pictures(stamps_root: Path, out: Path) -> int:
    """Create the image folder `out/<class name>/<file>.png` and return its number of pictures.

    Pictures are hard links where the file system allows it, copies elsewhere. An `out` with exactly
    these pictures is kept; an older or incomplete one is replaced atomically.

    Args:
        stamps_root: Tux Paint's folder `stamps`.
        out: The image folder.

    Raises:
        ConfigError: Stamps are missing, or `out` holds foreign files.
        ResourceError: Another process is creating the folder.
    """
    pictures = evaluation_pictures(stamps_root)
    if out.exists():
        present = _present(out)
        if present == {name: stamp.stat().st_size for name, stamp in pictures.items()}:
            return len(pictures)
        foreign = sorted(name for name in present if name.split("/")[0] not in CLASSES)
        if foreign:
            raise ConfigError(
                f"{out} holds {foreign[0]!r}, which is not an evaluation picture; "
                "name a folder that does not exist yet"
            )
    with writer_lock(out), replacing(out) as folder:
        for name, stamp in pictures.items():
            (folder / name).parent.mkdir(exist_ok=True)
            _link_or_copy(stamp, folder / name)
    return len(pictures)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        # Another file system, or a file of another owner (protected_hardlinks).
        shutil.copyfile(source, target)


def _present(out: Path) -> dict[str, int]:
    """The size of every file below `out`, by path."""
    return {
        path.relative_to(out).as_posix(): path.stat().st_size
        for path in out.rglob("*")
        if not path.is_dir()
    }
