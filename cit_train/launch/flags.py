"""The launcher's own flags; all others belong to the command that it launches."""

from dataclasses import dataclass
from pathlib import Path

from cit_curate.errors import ConfigError
from cit_train.launch.cluster import Cluster, cluster_path, read_cluster
from cit_train.launch.resources import Resources, seconds_of, with_flags

# The time limit on this machine without --time, long enough to be none.
_LOCAL_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """Run a recipe, a sweep or an evaluation as jobs of a SLURM cluster.

    All other flags are those of `cit train RECIPE`, `cit sweep SWEEP` or `cit eval`; their --help
    lists them. A job that is preempted or out of time saves, is queued again and resumes. A sweep
    is an array with one job for each run.

        cit launch slurm RECIPE --pool POOL --out RUN --nodes 2 --gpus-per-node 8 --time 24:00:00
        cit launch slurm SWEEP --pool POOL --eval-data ROOT --array-parallelism 8
        cit launch slurm eval RUN --tasks all --data ROOT --time 2:00:00
        cit launch slurm RECIPE --pool POOL --dry-run
    """

    out: Path | None = None
    """As for the command; runs/NAME by default. NAME.jobs lies beside it."""
    only: str = ""
    """Names of the runs of a sweep to launch, separated by commas."""
    nodes: int = 1
    """Machines of a job."""
    gpus_per_node: int = 1
    """GPUs of each machine; 0 for CPUs."""
    ranks_per_node: int | None = None
    """Processes of each machine; one for each GPU by default."""
    partition: str = ""
    """Queue."""
    time: str = ""
    """Time limit of one try, HH:MM:SS; the next try resumes."""
    account: str = ""
    """Account that is charged for the time."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Features that the nodes must have."""
    cpus_per_task: int | None = None
    """Cores of each rank."""
    mem_gb: int | None = None
    """Memory of each node, in GB."""
    signal_seconds: int = 120
    """Seconds before the time limit at which a job is signalled to save and end."""
    max_requeues: int = 50
    """Maximum number of times that a job is queued again."""
    array_parallelism: int | None = None
    """Maximum runs of a sweep at the same time; 256 on a cluster, 1 with --local."""
    cluster: Path | None = None
    """File with the facts of the cluster; ~/.config/cit/cluster.toml by default."""
    local: bool = False
    """Run the jobs on this machine instead, and wait for them."""
    dry_run: bool = False
    """Print the batch script and submit nothing."""
    json: bool = False
    """Print one JSON document."""

    def resources(self, *, one_rank: bool) -> Resources:
        """The resources of a job, from the flags and the cluster file.

        Args:
            one_rank: Whether the command cannot run on several ranks.

        Raises:
            ConfigError: A flag or the cluster file is wrong, or there is no time limit.
        """
        cluster = with_flags(
            read_cluster(self.cluster),
            partition=self.partition,
            account=self.account,
            qos=self.qos,
            constraint=self.constraint,
            time=self.time,
            cpus_per_task=self.cpus_per_task,
            mem_gb=self.mem_gb,
        )
        ranks = self.ranks_per_node
        if ranks is None:
            ranks = 1 if one_rank else max(1, self.gpus_per_node)
        return Resources(
            cluster=cluster,
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            ranks_per_node=ranks,
            seconds=self._seconds(cluster),
            signal_seconds=self.signal_seconds,
            max_requeues=self.max_requeues,
            array_parallelism=(
                (1 if self.local else 256)
                if self.array_parallelism is None
                else self.array_parallelism
            ),
        )

    def _seconds(self, cluster: Cluster) -> int:
        if self.local and not self.time:  # the file's limit is the cluster's
            return _LOCAL_SECONDS
        if not cluster.time:
            raise ConfigError(
                '--time is missing: give HH:MM:SS, or write time = "HH:MM:SS" into '
                f"{self.cluster or cluster_path()}"
            )
        return seconds_of(cluster.time)
