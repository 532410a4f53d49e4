"""`build.json`: what a build found beside pairs and rejects; it says so again with `pool info`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cit_curate.errors import DamagedError
from cit_curate.storage.durable import read_json, write_sealed

BUILD_REPORT_NAME = "build.json"


@dataclass(frozen=True)
class BuildReport:
    """What a build found beside pairs and rejects.

    Attributes:
        counts: Numbers by name, such as `num_lines`, `num_rows_mended` and `num_text_fixed`.
        notes: What was guessed or mended, a sentence each, with the option that says otherwise.
        warnings: What to look at before the pool is used, a sentence each.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def write_build_report(folder: Path, report: BuildReport) -> None:
    """Write the report into a pool's folder."""
    write_sealed(folder / BUILD_REPORT_NAME, asdict(report))


def read_build_report(folder: Path) -> BuildReport:
    """The report of a pool; an empty one for pools of older versions and for subsets.

    Raises:
        DamagedError: It is damaged.
    """
    path = folder / BUILD_REPORT_NAME
    if not path.is_file():
        return BuildReport()
    value = read_json(path)
    try:
        return BuildReport(dict(value["counts"]), tuple(value["notes"]), tuple(value["warnings"]))
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {error!r}; remove it") from error
