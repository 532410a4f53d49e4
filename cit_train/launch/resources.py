"""The resources of a job: nodes, ranks, time, and its limit of requeues."""

import re
from dataclasses import dataclass, replace

from cit_curate.errors import ConfigError
from cit_train.launch.cluster import Cluster

# The forms that sbatch accepts: [D-]HH[:MM[:SS]] with days, [HH:]MM:SS or MM without.
_WITH_DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
_WITHOUT_DAYS = re.compile(r"(?:(?:(\d+):)?(\d+):(\d+))|(\d+)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of one job.

    Attributes:
        cluster: The facts of the cluster, overridden by the flags.
        nodes: The number of machines.
        gpus_per_node: The GPUs of each machine; 0 = none.
        ranks_per_node: The processes of each machine that train together.
        seconds: The time limit of one try.
        signal_seconds: The seconds before the limit at which a job is signalled to stop.
        max_requeues: The maximum number of times that a job is queued again.
        array_parallelism: The maximum number of a sweep's jobs that run at the same time.
    """

    cluster: Cluster
    nodes: int = 1
    gpus_per_node: int = 1
    ranks_per_node: int = 1
    seconds: int
    signal_seconds: int = 120
    max_requeues: int = 50
    array_parallelism: int = 256

    def __post_init__(self) -> None:
        for name, least in (
            ("nodes", 1),
            ("gpus_per_node", 0),
            ("ranks_per_node", 1),
            ("seconds", 1),
            ("signal_seconds", 1),
            ("max_requeues", 0),
            ("array_parallelism", 1),
        ):
            if getattr(self, name) < least:
                flag = "time" if name == "seconds" else name.replace("_", "-")
                raise ConfigError(f"--{flag} is {getattr(self, name)}; it must be at least {least}")
        if self.signal_seconds >= self.seconds:
            raise ConfigError(
                f"--signal-seconds {self.signal_seconds} leaves no time in a job of "
                f"{self.seconds} seconds; give more --time"
            )

    @property
    def num_ranks(self) -> int:
        """The number of processes of a job, over all its nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def minutes(self) -> int:
        """The time limit in minutes, the unit of sbatch, rounded up."""
        return -(-self.seconds // 60)

    def __str__(self) -> str:
        gpus = f"{self.gpus_per_node} GPU{'s' * (self.gpus_per_node != 1)} each"
        nodes = f"{self.nodes} node{'s' * (self.nodes != 1)}"
        hours, rest = divmod(self.seconds, 3600)
        ranks = f"{self.num_ranks} rank{'s' * (self.num_ranks != 1)}"
        return f"{nodes}, {gpus}, {ranks}, {hours}:{rest // 60:02d}:{rest % 60:02d}"


def with_flags(cluster: Cluster, **flags: str | int | None) -> Cluster:
    """The facts of a cluster, overridden by the flags that are set.

    Raises:
        ConfigError: A number is below 1.
    """
    for name, value in flags.items():
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    return replace(cluster, **{name: value for name, value in flags.items() if value})  # type: ignore[arg-type]


def seconds_of(time: str) -> int:
    """The seconds of a time limit, in any form that sbatch accepts.

    Raises:
        ConfigError: It has another form.
    """
    if match := _WITH_DAYS.fullmatch(time):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    elif match := _WITHOUT_DAYS.fullmatch(time):
        days = 0
        hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
        minutes += int(match[4] or 0)
    else:
        raise ConfigError(f"--time is {time!r}; write it as HH:MM:SS, or D-HH:MM:SS")
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
