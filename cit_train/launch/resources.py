"""What a job asks of a cluster: nodes, ranks, time, and how often it may be queued again."""

import re
from dataclasses import dataclass, replace

from cit_curate.errors import ConfigError
from cit_train.launch.cluster import Cluster

# The forms that sbatch takes: [D-]HH[:MM[:SS]] with days, [HH:]MM:SS or MM without.
_WITH_DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
_WITHOUT_DAYS = re.compile(r"(?:(?:(\d+):)?(\d+):(\d+))|(\d+)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job asks for.

    Attributes:
        cluster: Facts of the cluster, after the flags.
        nodes: Machines.
        gpus_per_node: GPUs of each; 0 = none.
        ranks_per_node: Processes of each that train together.
        seconds: Time limit of one try.
        signal_seconds: How long before the limit a job is told to stop.
        max_requeues: How often a job that was preempted or ran out of time goes on.
        array_parallelism: Jobs of a sweep that run at the same time.
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
                f"--signal-seconds {self.signal_seconds} leaves nothing of a job of "
                f"{self.seconds} seconds; give more --time"
            )

    @property
    def num_ranks(self) -> int:
        """Processes of a job, over all its nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def minutes(self) -> int:
        """The time limit as sbatch counts, rounded up."""
        return -(-self.seconds // 60)

    def __str__(self) -> str:
        gpus = f"{self.gpus_per_node} GPU{'s' * (self.gpus_per_node != 1)} each"
        nodes = f"{self.nodes} node{'s' * (self.nodes != 1)}"
        hours, rest = divmod(self.seconds, 3600)
        ranks = f"{self.num_ranks} rank{'s' * (self.num_ranks != 1)}"
        return f"{nodes}, {gpus}, {ranks}, {hours}:{rest // 60:02d}:{rest % 60:02d}"


def with_flags(cluster: Cluster, **given: str | int | None) -> Cluster:
    """The facts of a file, where a flag that was given wins.

    Raises:
        ConfigError: A number is below 1.
    """
    for name, value in given.items():
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    return replace(cluster, **{name: value for name, value in given.items() if value})  # type: ignore[arg-type]


def seconds_of(time: str) -> int:
    """Seconds of a time limit, in any form that sbatch takes.

    Raises:
        ConfigError: It has none of them.
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
