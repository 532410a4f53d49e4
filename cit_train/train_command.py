"""The command `cit train`: a recipe, its fields as flags, and a run."""

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cit_curate.errors import ConfigError
from cit_curate.importing import long_imports
from cit_curate.printing import print_json
from cit_curate.terminal import print_line
from cit_train.config import RunConfig, flat
from cit_train.recipes import EVAL_RECIPES, RECIPES, recipe_help
from cit_train.resolve import RunFlags, call_with_flags
from cit_train.sweeps import SWEEPS


def main(args: Sequence[str]) -> None:
    """Run `cit train RECIPE …`; the fields of the recipe are the defaults of the flags.

    Raises:
        ConfigError: There is no such recipe; the message has the nearest spelling.
    """
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return
    name = args[0]
    if name not in RECIPES:
        for verb, others in (("eval", EVAL_RECIPES), ("sweep", SWEEPS)):
            if name in others:
                raise ConfigError(
                    f"{name} is not trained by itself; run it with: cit {verb} {name}"
                )
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}{hint}")
    recipe = RECIPES[name]()

    def train(
        config: RunFlags = recipe,
        *,
        out: Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        allow_change: tuple[str, ...] = (),
        nproc: int | None = None,
        print_config: bool = False,
        json: bool = False,
    ) -> None:
        """Train a dual encoder on pairs curated from a pool while it trains.

        Every field of the recipe is a flag; --print-config shows the resulting values.

            cit train RECIPE --pool POOL --metadata classes.txt --out RUN
            cit train RECIPE --pool POOL --metadata classes.txt --out RUN --resume
            cit train RECIPE --pool POOL --metadata classes.txt --out RUN --nproc 4
            cit train RECIPE --pool A=0.7 --pool B=0.3 --metadata classes.txt --out RUN

        TERM, INT, USR1, USR2 and HUP save the run at its current update and end with code 75.

        Args:
            config: The config of the run.
            out: Folder of the run; runs/RECIPE when left out.
            resume: Continue from the last saved state, with the same flags as before; the number
                of ranks may differ.
            overwrite: Replace the run at --out.
            allow_change: With --resume: settings (keys of config.json, such as pool_fingerprint or
                cit_version) that may differ from before; config.json then records each change and
                its update.
            nproc: Processes (ranks) on this machine, one per GPU, which share the recipe's lanes.
            print_config: Print the resolved fields and do nothing else.
            json: Print one JSON document at the end instead of a summary.
        """
        if print_config:
            print_json(flat(config))
            return
        folder = out or Path("runs") / name
        if nproc is not None:
            _launch(config, nproc, args, folder)
            return
        if allow_change and not resume:
            raise ConfigError("--allow-change is for a run that goes on; give --resume too")
        _train(config, folder, resume, overwrite, allow_change, as_json=json)

    call_with_flags(train, args[1:], prog=f"cit train {name}")


def _launch(config: RunConfig, num_ranks: int, args: Sequence[str], out: Path) -> None:
    from cit_train.ranks.torchrun import launch

    if num_ranks < 1 or config.curate.lanes % num_ranks:
        raise ConfigError(
            f"--nproc {num_ranks} does not divide the {config.curate.lanes} lanes of this recipe; "
            "take one of their divisors, or another --lanes"
        )
    code = launch(num_ranks, ["train", *_without_nproc(args)], out)
    if code:
        raise SystemExit(code)


def _without_nproc(args: Sequence[str]) -> list[str]:
    left: list[str] = []
    skip = False
    for arg in args:
        if not skip and arg != "--nproc" and not arg.startswith("--nproc="):
            left.append(arg)
        skip = arg == "--nproc"
    return left


def _train(
    config: RunConfig,
    out: Path,
    resume: bool,
    overwrite: bool,
    allow_change: Sequence[str],
    *,
    as_json: bool,
) -> None:
    from cit_curate.run.ledger import Run
    from cit_train.loop.inputs import check_inputs

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if "WORLD_SIZE" not in os.environ:  # else another rank may have begun the run already
        check_inputs(config, out, resume=resume, overwrite=overwrite)
    # Names are right. These import torch, which takes seconds.
    with long_imports():
        from cit_train.loop.progress import is_shown, watching
        from cit_train.outer_loop import train

    is_there = resume and (out / "config.json").is_file()
    before = Run.open(out).commits()[-1:] if is_there else []
    with watching(config.train.max_updates) as watcher:
        run = train(
            config,
            out,
            resume=resume,
            overwrite=overwrite,
            allow_change=allow_change,
            watcher=watcher,
        )
    if not is_shown():
        return
    last = run.commits()[-1]
    summary: dict[str, Any] = {
        "path": str(run.path),
        "updates": last.update,
        "outer_steps": last.outer_step + 1,
        "model": str(run.path / "checkpoints" / ("best" if last.best else "last")),
        "best": dict(last.best) if last.best else None,
    }
    if as_json:
        print_json(summary)
        return
    model = f"the model is in {summary['model']}"
    finished = "already finished" if [last] == before else "finished"
    print_line(f"{finished}: {last.update:,} updates; {model}", stderr=True)
    print_line(f"what was picked: cit report {run.path}", stderr=True)


def _overview() -> str:
    lines = ["usage: cit train RECIPE [--FIELD VALUE ...] [--out RUN] [--resume]", ""]
    docs = {name: recipe.__doc__ or "" for name, recipe in RECIPES.items()}
    lines += ["recipes:", *recipe_help(docs), ""]
    lines += ["The fields of a recipe, with their defaults: cit train RECIPE --help", ""]
    return "\n".join(lines)
