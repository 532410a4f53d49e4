"""Our own code never runs what it reads: no unpickling, no shell, no code from text."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cit_curate", "cit_train", "indexes", "scripts")
# They run code, or can, when they read.
MODULES = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve", "yaml"}
NAMES = {"__import__", "compile", "eval", "exec"}
ATTRIBUTES = {
    *("extract", "extractall", "unpack_archive"),
    *("getoutput", "getstatusoutput", "popen", "system"),
}
# What must be said at each call, and what a keyword may only be.
NEEDED = {"torch.load": "weights_only", "np.load": "allow_pickle"}
ONLY = {
    "allow_pickle": False,
    "shell": False,
    "trust_remote_code": False,
    "weights_only": True,
}
# Ray sends our own tasks between its actors like this: nothing from a file or from others.
FINE = {("cit_curate/pool/ray_engine.py", "cloudpickle")}


def unsafe_calls(source: str) -> Iterator[str]:
    """What a module does that it must not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from MODULES & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            yield from MODULES & {(node.module or "").partition(".")[0], *names}
            if node.module in ("pickle", "_pickle"):
                yield "pickle"
        elif isinstance(node, ast.Attribute):
            if ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError":
                yield "pickle"
            yield from MODULES & {node.attr}
        elif isinstance(node, ast.Call):
            yield from unsafe_call(node)


def unsafe_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if isinstance(node.func, ast.Name):
        yield from NAMES & {name}
    elif isinstance(node.func, ast.Attribute):
        yield from ATTRIBUTES & {node.func.attr}
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if NEEDED.get(name) not in (None, *keywords):
        yield name
    for keyword, value in ONLY.items():
        if keyword in keywords and ast.unparse(keywords[keyword]) != str(value):
            yield keyword


@pytest.mark.faults("X1", "E9", "K6")
def test_no_module_of_ours_runs_what_it_reads() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), what)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for what in unsafe_calls(path.read_text(encoding="utf-8"))
    }
    assert found == FINE


UNSAFE = [
    ("import pickle\npickle.load(x)", "pickle", "S301"),
    ("import pickle\npickle.Unpickler(x).load()", "pickle", "S301"),
    ("from pickle import loads", "pickle", None),
    ("import yaml\nyaml.load(x, Loader=yaml.Loader)", "yaml", "S506"),
    ("from joblib import load", "joblib", None),
    ("import marshal\nmarshal.loads(x)", "marshal", "S302"),
    ("eval(x)", "eval", "S307"),
    ("exec(x)", "exec", "S102"),
    ("import os\nos.system(x)", "system", "S605"),
    ("import subprocess\nsubprocess.run(x, shell=True)", "shell", "S602"),
    ("import subprocess\nsubprocess.run(x, shell=y)", "shell", None),
    ("import tarfile\ntarfile.open(x).extractall(y)", "extractall", "S202"),
    ("import zipfile\nzipfile.ZipFile(x).extract(y)", "extract", None),
    ("import shutil\nshutil.unpack_archive(x)", "unpack_archive", None),
    ("import torch\ntorch.load(x)", "torch.load", None),
    ("import torch\ntorch.load(x, weights_only=False)", "weights_only", None),
    ("import numpy as np\nnp.load(x)", "np.load", None),
    ("import numpy as np\nnp.load(x, allow_pickle=True)", "allow_pickle", None),
    ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code", None),
    ("AutoModel.from_pretrained(x, trust_remote_code=y)", "trust_remote_code", None),
]


@pytest.mark.faults("X1")
@pytest.mark.parametrize(("source", "what", "rule"), UNSAFE)
def test_what_runs_code_is_found_here_and_by_ruffs_rules(
    source: str, what: str, rule: str | None
) -> None:
    assert what in set(unsafe_calls(source))
    if rule is None:  # no rule of ruff's
        return
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise"]
    ended = subprocess.run(
        [*command, "--stdin-filename", "cit_curate/new.py", "-"],
        input=source,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert rule in ended.stdout


@pytest.mark.faults("X1")
def test_what_is_safe_is_not_found() -> None:
    source = (
        "import pickle, re, torch\n"
        "try: torch.load(x, weights_only=True)\n"
        "except pickle.UnpicklingError: re.compile(model.eval())\n"
        "subprocess.run(x, shell=False)\n"
    )
    assert not list(unsafe_calls(source))
