"""The cluster file: what is wrong in it is named with file and key, and flags win over it."""

from pathlib import Path

import pytest

from cit_curate.errors import ConfigError
from cit_train.launch.cluster import Cluster, read_cluster
from cit_train.launch.flags import LaunchFlags

WHOLE = """
partition = "gpu"
account = "vision"
time = "12:00:00"
cpus_per_task = 8
sbatch = ["--exclusive", "--mail-type=END,FAIL"]
modules = ["cuda/12.4", "gcc"]
python = "/shared/venv/bin/python"

[environment]
HF_HOME = "/shared/hub cache"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.toml"


def test_a_whole_file_is_read(file: Path) -> None:
    file.write_text(WHOLE)
    cluster = read_cluster(file)
    assert (cluster.partition, cluster.account, cluster.qos) == ("gpu", "vision", "")
    assert cluster.options == {"exclusive": True, "mail_type": "END,FAIL"}
    assert cluster.setup == ["module load cuda/12.4 gcc", "export HF_HOME='/shared/hub cache'"]


def test_the_users_own_file_is_in_the_configuration_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert read_cluster() == Cluster()
    (tmp_path / "cit").mkdir()
    (tmp_path / "cit" / "cluster.toml").write_text('partition = "own"')
    assert read_cluster().partition == "own"
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert read_cluster() == Cluster()


@pytest.mark.faults("G1")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partitoin = "gpu"', "no key 'partitoin'; did you mean partition?"),
        ("zzz = 1", "no key 'zzz'; the keys are partition, account"),
        ("partition = ", "is not TOML"),
        ("partition = 3", "partition is 3; it must be one line of text"),
        ('partition = "a\\nb"', "one line of text"),
        ("cpus_per_task = 0", "cpus_per_task is 0; it must be a whole number"),
        ("cpus_per_task = true", "cpus_per_task is True"),
        ('modules = "cuda"', "modules is 'cuda'; it must be a list"),
        ('sbatch = ["exclusive"]', "'exclusive'; an option looks like --name"),
        ('sbatch = ["--signal=USR1@9"]', "which cit sets for each job itself"),
        ('sbatch = ["--job-name=x"]', "which cit sets for each job itself"),
        ("environment = 1", "it must be a table"),
        ('environment = {"A B" = "1"}', "'A B', which is not the name of a variable"),
        ('environment = {A = "1\\n2"}', "environment.A is"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_key(file: Path, text: str, message: str) -> None:
    file.write_text(f"# our cluster\n\n{text}\n")
    with pytest.raises(ConfigError) as error:
        read_cluster(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "line 3" in str(error.value)


@pytest.mark.faults("G1")
def test_a_table_is_named_with_the_line_that_it_begins_in(file: Path) -> None:
    file.write_text('partition = "gpu"\n\n[environment]\nA = 1\n')
    with pytest.raises(ConfigError, match=r"cluster\.toml, line 3: environment\.A is 1"):
        read_cluster(file)


@pytest.mark.faults("G1")
def test_a_named_file_must_be_there(file: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        read_cluster(file)


def test_flags_win_over_the_file(file: Path) -> None:
    file.write_text(WHOLE)
    flags = LaunchFlags(cluster=file, partition="debug", time="30", gpus_per_node=4)
    resources = flags.resources(one_rank=False)
    assert (resources.cluster.partition, resources.cluster.account) == ("debug", "vision")
    assert (resources.minutes, resources.num_ranks) == (30, 4)
    assert LaunchFlags(cluster=file).resources(one_rank=True).minutes == 720


def test_the_clusters_time_limit_is_not_this_machines(file: Path) -> None:
    file.write_text(WHOLE)
    assert LaunchFlags(cluster=file, local=True).resources(one_rank=True).seconds > 12 * 3600
    file.write_text("")
    with pytest.raises(ConfigError, match=f"--time is missing.*{file}"):
        LaunchFlags(cluster=file).resources(one_rank=True)
