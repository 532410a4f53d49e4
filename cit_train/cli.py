"""The `cit` command: finds the verb, runs it, and turns an error into an exit code."""

import contextlib
import difflib
import importlib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from cit_curate.errors import CitError, ConfigError
from cit_curate.storage.fail_points import fail_at
from cit_train.ranks.status import STOPPED, exit_code_of, message_of
from cit_train.ranks.stopping import EndedBySignal
from cit_train.standard_streams import open_streams

# Verb -> its line in the help, and its function, which is imported only when it runs.
VERBS = {
    "demo": ("the whole thing on real packaged data, on a CPU", "cit_train.demo.command:demo"),
    "doctor": (
        "what is installed, what is missing, and how to get it",
        "cit_train.doctor_command:doctor",
    ),
    "pool build": (
        "captions and image paths from tables or a folder",
        "cit_curate.pool.commands:build",
    ),
    "pool tokenize": (
        "keep the token ids of a pool's captions beside it",
        "cit_curate.pool.tokenize_command:tokenize",
    ),
    "pool info": ("what is in a pool", "cit_curate.pool.commands:info"),
    "pool verify": ("check every byte of a pool", "cit_curate.pool.commands:verify"),
    "pool repair": ("rebuild a pool's catalog", "cit_curate.pool.commands:repair"),
    "metadata list": (
        "the built-in lists of class names",
        "cit_curate.metadata.commands:list_built_in",
    ),
    "metadata show": (
        "the class names of a built-in list or a file",
        "cit_curate.metadata.commands:show",
    ),
    "curate": (
        "select pairs for class names, without training",
        "cit_curate.curation.command:curate",
    ),
    "train": ("train on pairs that are curated while training", "cit_train.train_command:main"),
    "compare": (
        "several ways to choose pairs, side by side over seeds",
        "cit_train.studies.command:compare",
    ),
    "sweep": ("the runs of a sweep, one after another", "cit_train.launch.sweep_command:main"),
    "sweep status": (
        "how the runs of a sweep, or of a folder, stand",
        "cit_train.launch.status_command:status",
    ),
    "launch slurm": (
        "a recipe, a sweep or an evaluation as jobs of a cluster",
        "cit_train.launch.command:main",
    ),
    "eval": (
        "zero-shot accuracy on the 26 tasks, or an image folder",
        "cit_train.evaluation.command:evaluate",
    ),
    "convert moco": (
        "MoCo-v3's checkpoint to a Hugging Face directory",
        "cit_train.hub.convert_command:convert_moco",
    ),
    "convert augreg": (
        "an AugReg ViT to a Hugging Face directory",
        "cit_train.hub.convert_command:convert_augreg",
    ),
    "convert swag": (
        "a SWAG ViT to a Hugging Face directory",
        "cit_train.hub.convert_command:convert_swag",
    ),
    "convert checkpoint": (
        "the original CiT's checkpoint to a Hugging Face directory",
        "cit_train.hub.convert_command:convert_checkpoint",
    ),
    "predict": (
        "zero-shot classes of one image or many",
        "cit_train.evaluation.predict_command:predict",
    ),
    "pull": ("fetch a model's weights, once and checked", "cit_train.hub.pull_command:pull"),
    "pull list": ("the models that pull knows", "cit_train.hub.pull_command:pull_list"),
    "push": ("a model with its card to the hub, or a folder", "cit_train.hub.push_command:push"),
    "query": ("SQL over a run", "cit_curate.run.commands:query"),
    "export": ("counts, or pairs with images, from a run", "cit_curate.run.commands:export"),
    "import-counts": (
        "a published curated dataset becomes a run",
        "cit_curate.run.exports.counts_command:import_counts",
    ),
    "report": ("one HTML page that shows what was picked", "cit_curate.run.commands:report"),
    "verify": ("check every byte of a run or a pool", "cit_train.loop.recovery.commands:verify"),
    "repair": (
        "repair a run or a pool as far as possible",
        "cit_train.loop.recovery.commands:repair",
    ),
}
# Verbs that parse their own arguments, because the first one decides the flags.
_OWN_ARGUMENTS = ("train", "sweep", "launch slurm")


def main() -> None:
    """Run the command line and exit with its code (see the contract in docs/formats.md)."""
    args = sys.argv[1:]
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    open_streams()
    shown = logging.StreamHandler()
    shown.setFormatter(_PrintableLines("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[shown])
    logging.captureWarnings(True)
    # It has its own handler; without this, its retries would be logged twice.
    logging.getLogger("huggingface_hub").propagate = False
    # Privacy: no hub is contacted unless a name refers to it.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # A rank that loses another reports it in one line; torch would add a page of C++ frames.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if os.environ.get("NO_COLOR"):  # tyro ignores it
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
    try:
        code = _run_and_flush(args)
    except KeyboardInterrupt as error:
        _print_error(str(error) or "stopped")
        code = 130
    except Exception as error:  # noqa: BLE001 - the one handler of all errors
        if debug:
            _print_error(traceback.format_exc().rstrip())
        code = _report(error)
    sys.exit(code)


def _run_and_flush(args: Sequence[str]) -> int:
    """Run one command and flush stdout, so that a full disk is an error here, not at exit."""
    try:
        code = run(args)
    except EndedBySignal as end:
        _print_error(str(end))
        code = 128 + end.number
    except SystemExit as end:  # tyro has shown help (0) or a wrong flag (2)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    return code


def run(args: Sequence[str]) -> int:
    """Run one command.

    Raises:
        CitError: The command failed; `main` turns it into a message and an exit code.
        SystemExit: The arguments are wrong (2), or help was shown (0).
    """
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0 if args else 2
    if args[0] == "--version":
        from importlib import metadata

        sys.stdout.write(f"cit {metadata.version('cit')}\n")
        return 0
    group = [] if args[0] in VERBS else _verbs_of(args[0])
    if group and list(args[1:]) in (["-h"], ["--help"]):  # `cit pool --help`
        lines = [f"usage: cit {args[0]} COMMAND ...", "", *_lines_of(group), ""]
        sys.stdout.write("\n".join(lines))
        return 0
    _check_fail_point()
    verb = find_verb(args)
    rest = list(args[len(verb.split()) :])
    module, name = VERBS[verb][1].split(":")
    function = getattr(importlib.import_module(module), name)
    if verb in _OWN_ARGUMENTS:
        function(rest)
    else:
        import tyro

        style = (
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.DisallowNone,
            tyro.conf.PositionalMetavarFromFieldName,
        )
        tyro.cli(function, prog=f"cit {verb}", args=rest, config=style)
    return 0


def _check_fail_point() -> None:
    try:
        fail_at()
    except ValueError as error:
        raise ConfigError(str(error)) from None


def find_verb(args: Sequence[str]) -> str:
    """The verb that the arguments begin with, of one word or two.

    Raises:
        ConfigError: There is no such verb; the message has the nearest spelling.
    """
    for words in (2, 1):
        verb = " ".join(args[:words])
        if verb in VERBS:
            return verb
    group = _verbs_of(args[0])
    command = " ".join(args[: 2 if group else 1])
    known = group or [*VERBS, *(verb.split()[0] for verb in VERBS)]
    close = difflib.get_close_matches(command, known, n=1)
    hint = f"; did you mean `cit {close[0]}`?" if close else ""
    if group:
        raise ConfigError(f"`cit {args[0]}` needs one of: {', '.join(group)}{hint}")
    raise ConfigError(f"there is no command `cit {command}`{hint}; `cit --help` lists them")


def _verbs_of(group: str) -> list[str]:
    return [verb for verb in VERBS if verb.split()[0] == group]


def _lines_of(verbs: Sequence[str]) -> list[str]:
    width = max(map(len, verbs))
    return [f"  cit {verb:<{width}} {VERBS[verb][0]}" for verb in verbs]


def overview() -> str:
    """The text of `cit --help`."""
    lines = [
        "usage: cit COMMAND ...",
        "",
        "Curation in training: pick the image-caption pairs worth training on, while training.",
        "",
    ]
    lines += _lines_of([*VERBS])
    lines += [
        "",
        "examples:",
        "  cit demo",
        "  cit pool build captions.csv --image-id id --image path --text title,desc --out POOL",
        "  cit curate POOL --metadata classes.txt --text-encoder package:minilm --pooling mean"
        " --dry-run",
        "  cit train laptop --pool POOL --metadata classes.txt --out RUN",
        "  cit report RUN",
        "",
        "`cit COMMAND --help` shows a command's flags; --debug adds a traceback to errors.",
        "",
    ]
    return "\n".join(lines)


class _PrintableLines(logging.Formatter):
    """Makes log lines safe for a terminal: they may quote a caption with control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as lines without control characters."""
        from cit_curate.terminal import printable_lines  # rich, which not every command needs

        return printable_lines(super().format(record))


def _print_error(message: str) -> None:
    from cit_curate.terminal import printable_lines

    sys.stderr.write(f"{printable_lines(message)}\n")


def _report(error: Exception) -> int:
    """Print an error to stderr, and return the exit code."""
    code = exit_code_of(error)
    if isinstance(error, CitError):
        # A requested stop is not an error; and only one of several ranks prints its error.
        prefix = "" if code == STOPPED else "error: "
        if not error.is_reported:
            _print_error(f"{prefix}{error}")
        return code
    if code != 1:
        _print_error(f"error: {message_of(error)}")
        return code
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    log = _save_traceback(error)
    _print_error(f"error: this is a bug in cit: {what}; the traceback is {log}")
    return code


def _save_traceback(error: Exception) -> str:
    """Write the traceback to a new file that only its owner can read, and return where it is."""
    lines = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        opened, path = tempfile.mkstemp(prefix="cit-error-", suffix=".log")
        with open(opened, "w", encoding="utf-8", errors="backslashreplace") as log:  # noqa: PTH123
            log.write(lines)
        return f"in {path}"
    _print_error(lines)
    return "above, because no file could be written"


if __name__ == "__main__":
    main()
