"""The facts of a cluster: a small TOML file of the user, never code."""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cit_curate.errors import ConfigError

# The options that cit sets for each job; other values would break logs, signals or requeueing.
_OWN_OPTIONS = frozenset(
    {"array", "chdir", "error", "gpus_per_node", "job_name", "nodes", "ntasks_per_node"}
    | {"open_mode", "output", "requeue", "no_requeue", "signal", "time"}
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION = re.compile(r"--(?P<name>[a-z][a-z0-9-]*)(=(?P<value>.+))?")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The facts of one cluster; `""` and None mean SLURM's own defaults."""

    partition: str = ""
    """Queue of the jobs."""
    account: str = ""
    """Account that is charged for the time."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Features that the nodes must have."""
    time: str = ""
    """Time limit of a job without --time, as HH:MM:SS."""
    cpus_per_task: int | None = None
    """Cores of each rank."""
    mem_gb: int | None = None
    """Memory of each node, in GB."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, such as "--exclusive" or "--mail-type=END"."""
    modules: tuple[str, ...] = ()
    """Environment modules to load before the job starts."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    python: str = ""
    """Command that starts Python on the nodes; by default the launching Python."""

    @property
    def options(self) -> dict[str, str | bool]:
        """`sbatch` for submitit: values by names with underscores; True = no value."""
        matches = (_OPTION.fullmatch(option) for option in self.sbatch)
        return {m["name"].replace("-", "_"): m["value"] or True for m in matches if m is not None}

    @property
    def setup(self) -> list[str]:
        """The lines of the batch script before the job."""
        import shlex

        lines = [f"module load {shlex.join(self.modules)}"] if self.modules else []
        exports = self.environment.items()
        return [*lines, *(f"export {name}={shlex.quote(value)}" for name, value in exports)]


def cluster_path() -> Path:
    """The default path of the file."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification: a relative path there is invalid and is ignored.
    folder = Path(home) if Path(home).is_absolute() else Path.home() / ".config"
    return folder / "cit" / "cluster.toml"


def read_cluster(path: Path | None = None) -> Cluster:
    """The facts in `path`, or in the user's default file; defaults if that does not exist.

    Raises:
        ConfigError: `path` is missing, or a file is not TOML or has a wrong key or value.
    """
    file = path if path is not None else cluster_path()
    try:
        text = file.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError:
        if path is None:
            return Cluster()
        raise ConfigError(f"--cluster: there is no file {path}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    known = [field.name for field in fields(Cluster)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; the keys are {', '.join(known)}"
            raise ConfigError(f"{_where(file, text, key)}: there is no key {key!r}{hint}")
    checked = {
        key: _CHECKS[key](_where(file, text, key), key, value) for key, value in values.items()
    }
    return Cluster(**checked)


def _where(path: Path, text: str, key: str) -> str:
    """`FILE, line N` of the line that sets the key or starts its table."""
    starts = re.compile(rf"""\s*\[?\s*["']?{re.escape(key)}["']?\s*[\]=.]""")
    lines = enumerate(text.splitlines(), 1)
    number = next((number for number, line in lines if starts.match(line)), None)
    return str(path) if number is None else f"{path}, line {number}"


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ConfigError(f"{where}: {key} is {value!r}; it must be one line of text in quotes")
    return value


def _count(where: str, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{where}: {key} is {value!r}; it must be a whole number of at least 1")
    return value


def _texts(where: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigError(f'{where}: {key} is {value!r}; it must be a list, such as ["…", "…"]')
    return tuple(_text(where, f"an entry of {key}", entry) for entry in value)


def _options(where: str, key: str, value: Any) -> tuple[str, ...]:
    options = _texts(where, key, value)
    for option in options:
        match = _OPTION.fullmatch(option)
        if match is None:
            raise ConfigError(
                f"{where}: {key} has {option!r}; an option looks like --name or --name=value"
            )
        if match["name"].replace("-", "_") in _OWN_OPTIONS:
            raise ConfigError(f"{where}: {key} has {option!r}, which cit sets for each job itself")
    return options


def _environment(where: str, key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} is {value!r}; it must be a table, [{key}]")
    for name, text in value.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{where}: {key} has {name!r}, which is not the name of a variable")
        if not isinstance(text, str) or not (text.isprintable() or not text):
            raise ConfigError(f"{where}: {key}.{name} is {text!r}; write it as text in quotes")
    return dict(value)


_CHECKS: Mapping[str, Callable[[str, str, Any], Any]] = {
    **dict.fromkeys(("partition", "account", "qos", "constraint", "time", "python"), _text),
    **dict.fromkeys(("cpus_per_task", "mem_gb"), _count),
    "sbatch": _options,
    "modules": _texts,
    "environment": _environment,
}
