"""Our own code never runs what it reads: no unpickling, no shell, no code from text."""

import ast
import builtins
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cit_curate", "cit_train", "indexes", "scripts")
# They run code, or can, when they read.
MODULES = {
    *("_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "runpy"),
    *("shelve", "yaml"),
}
CALLS = {
    *("builtins.__import__", "builtins.compile", "builtins.eval", "builtins.exec"),
    *("os.popen", "os.system", "shutil.unpack_archive"),
    *("pandas.read_pickle", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load", "torch.package"),
    *("torch.distributed.checkpoint.load", "torch.distributed.checkpoint.load_state_dict"),
    *(
        "torch.distributed.checkpoint.state_dict_loader",
        "torch.distributed.checkpoint.format_utils",
    ),
}
# Of whatever object.
METHODS = {
    *("extract", "extractall", "unpack_archive"),
    *("getoutput", "getstatusoutput", "popen", "read_pickle", "system"),
}
# What must be said at each call, and what a keyword may only be.
NEEDED = {"torch.load": "weights_only", "numpy.load": "allow_pickle"}
ONLY = {
    "allow_pickle": False,
    "shell": False,
    "trust_remote_code": False,
    "weights_only": True,
}
# What may be named: an exception runs nothing.
HARMLESS = {"pickle.UnpicklingError"}
# Ray sends our own tasks between its actors like this: nothing from a file or from others.
FINE = {("cit_curate/engines/ray_engine.py", "cloudpickle")}


def unsafe_calls(source: str) -> Iterator[str]:
    """What a module does that it must not, by its full name whatever it is imported as."""
    tree = ast.parse(source)
    names = full_names(tree)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # Of pickle one may have the name of its exception.
            roots = {each.name.partition(".")[0] for each in node.names}
            yield from roots & MODULES - {"pickle"}
        elif isinstance(node, ast.ImportFrom):
            for each in node.names:
                yield from unsafe_name(f"{node.module or ''}.{each.name}")
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = full_name(node, names)
            yield from unsafe_name(name)
            if name in NEEDED and id(node) not in called:  # who calls it may leave the flag out
                yield name
        elif isinstance(node, ast.Call):
            yield from unsafe_call(node, full_name(node.func, names))


def full_names(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: `np` for numpy, `system` for os.system."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                root = each.name.partition(".")[0]
                names[each.asname or root] = each.name if each.asname else root
        elif isinstance(node, ast.ImportFrom):
            for each in node.names:
                names[each.asname or each.name] = f"{node.module or ''}.{each.name}"
    return names


def full_name(node: ast.expr, names: Mapping[str, str]) -> str:
    """A name from its module on; of what is an attribute of no name, that alone after a dot."""
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    if isinstance(node, ast.Name):
        return names.get(node.id, f"builtins.{node.id}" if node.id in vars(builtins) else node.id)
    return ""


def unsafe_name(name: str) -> Iterator[str]:
    if name in HARMLESS:
        return
    if "." in name:
        yield from MODULES & {*name.split(".")}
    yield from (call for call in CALLS if f"{name}.".startswith(f"{call}."))


def unsafe_call(node: ast.Call, name: str) -> Iterator[str]:
    if isinstance(node.func, ast.Attribute):
        yield from METHODS & {node.func.attr}
    if name == "importlib.import_module":
        literals = [value.value for value in node.args if isinstance(value, ast.Constant)]
        yield from MODULES & {*literals}
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


DCP_LOAD = "torch.distributed.checkpoint.load"
UNSAFE = [
    ("import pickle\npickle.load(x)", "pickle", "S301"),
    ("import pickle\npickle.Unpickler(x).load()", "pickle", "S301"),
    ("from pickle import loads", "pickle", None),
    ("import yaml\nyaml.load(x, Loader=yaml.Loader)", "yaml", "S506"),
    ("from joblib import load", "joblib", None),
    ("import marshal\nmarshal.loads(x)", "marshal", "S302"),
    ("eval(x)", "builtins.eval", "S307"),
    ("exec(x)", "builtins.exec", "S102"),
    ("import os\nos.system(x)", "system", "S605"),
    ("import subprocess\nsubprocess.run(x, shell=True)", "shell", "S602"),
    ("import subprocess\nsubprocess.run(x, shell=y)", "shell", None),
    ("import tarfile\ntarfile.open(x).extractall(y)", "extractall", "S202"),
    ("import zipfile\nzipfile.ZipFile(x).extract(y)", "extract", None),
    ("import shutil\nshutil.unpack_archive(x)", "unpack_archive", None),
    ("import torch\ntorch.load(x)", "torch.load", None),
    ("import torch\ntorch.load(x, weights_only=False)", "weights_only", None),
    ("import numpy as np\nnp.load(x)", "numpy.load", None),
    ("import numpy as np\nnp.load(x, allow_pickle=True)", "allow_pickle", None),
    ("import pickle as p\np.load(x)", "pickle", "S301"),
    ("from pickle import load as read\nread(x)", "pickle", "S301"),
    ("from pickle import *", "pickle", None),
    ("import _pickle", "_pickle", None),
    ("import ray\nray.cloudpickle.loads(x)", "cloudpickle", None),
    ("import importlib\nimportlib.import_module('dill')", "dill", None),
    ("import yaml as y\ny.load(x, Loader=y.Loader)", "yaml", "S506"),
    ("from os import system\nsystem(x)", "os.system", "S605"),
    ("from os import system as run\nrun(x)", "os.system", "S605"),
    ("import os as o\no.popen(x)", "os.popen", "S605"),
    ("from subprocess import getoutput as run\nrun(x)", "subprocess.getoutput", "S605"),
    ("from subprocess import run\nrun(x, shell=True)", "shell", "S602"),
    ("from shutil import unpack_archive as u\nu(x)", "shutil.unpack_archive", None),
    ("list(map(eval, x))", "builtins.eval", None),
    ("import builtins as b\nb.exec(x)", "builtins.exec", None),
    ("from torch import load\nload(x)", "torch.load", None),
    ("from torch import load as read\nread(x, weights_only=False)", "weights_only", None),
    ("import torch as t\nt.load(x)", "torch.load", None),
    ("import torch\nlist(map(torch.load, x))", "torch.load", None),
    ("import torch\ntorch.hub.load(x, y)", "torch.hub.load", None),
    ("from torch import hub as h\nh.load(x, y)", "torch.hub.load", None),
    ("from torch.hub import load\nload(x, y)", "torch.hub.load", None),
    ("import torch.distributed.checkpoint as dcp\ndcp.load(x)", DCP_LOAD, None),
    ("from torch.distributed import checkpoint\ncheckpoint.load(x)", DCP_LOAD, None),
    ("from torch.distributed.checkpoint import load\nload(x)", DCP_LOAD, None),
    ("import torch\ntorch.distributed.checkpoint.load(x)", DCP_LOAD, None),
    ("import torch\ntorch.jit.load(x)", "torch.jit.load", None),
    ("import numpy\nnumpy.load(x)", "numpy.load", None),
    ("import numpy as n\nn.load(x, mmap_mode='r')", "numpy.load", None),
    ("from numpy import load\nload(x)", "numpy.load", None),
    ("from numpy import load\nload(x, allow_pickle=True)", "allow_pickle", None),
    ("import runpy\nrunpy.run_path(x)", "runpy", None),
    ("from runpy import run_module as r\nr(x)", "runpy", None),
    ("import pandas as pd\npd.read_pickle(x)", "pandas.read_pickle", "S301"),
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
        "import importlib, numpy, pickle, re, subprocess, torch\n"
        "try: torch.load(x, weights_only=True)\n"
        "except pickle.UnpicklingError: re.compile(model.eval())\n"
        "subprocess.run(x, shell=False)\n"
        "numpy.load(x, allow_pickle=False)\n"
        "class Config: compile: bool = False\n"
        "importlib.import_module(name)\n"
    )
    assert not list(unsafe_calls(source))
