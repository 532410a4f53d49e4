"""Checking the ledger file by file: which outer steps are whole, and what damages the others."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from cit_curate.errors import DamagedError
from cit_curate.run.ledger import Commit, Run, read_commit
from cit_curate.run.ledger_tables import LEDGER_TABLES
from cit_curate.run.paths import step_folder
from cit_curate.storage.durable import TEMPORARY_PREFIX, FileEntry, check_file
from cit_curate.storage.findings import Findings

_STEP = re.compile(r"step=(\d{6,})")


@dataclass(frozen=True)
class LedgerState:
    """The whole part of a ledger.

    Attributes:
        commits: The whole outer steps before the first damaged one.
        num_steps: Outer steps that were committed.
    """

    commits: tuple[Commit, ...]
    num_steps: int


def check_ledger(run: Run, findings: Findings) -> LedgerState:
    """Check every manifest, and every byte of the files that it names.

    A damaged `metadata.json` and extra files are findings, but the outer steps count as whole.
    """
    advice = f"set the run back to its last whole outer step with: cit repair {run.path}"
    num_steps = _check_names(run, findings, advice)
    commits: list[Commit] = []
    for number in range(num_steps):
        path = run.path / "manifests" / f"{step_folder(number)}.json"
        before = len(findings.damage)
        with findings.catching(path, advice):
            commit = read_commit(path)
            if commit.outer_step != number:
                raise DamagedError(f"{path} is the manifest of outer step {commit.outer_step}")
            tables = [entry for entry in commit.files if entry.path != "metadata.json"]
            for entry in tables:
                with findings.catching(run.path / entry.path, advice):
                    _check_table(run.path, entry)
            if len(findings.damage) == before and len(commits) == number:
                commits.append(commit)
            for path in extra_files(run, commit):
                aside = f"set it aside with: cit repair {run.path}"
                findings.add(path, "belongs to no manifest", aside)
            if len(tables) < len(commit.files):
                _check_metadata(run, commit, findings)
    return LedgerState(tuple(commits), num_steps)


def uncommitted(run: Run, num_steps: int) -> list[Path]:
    """Table folders of outer steps without a manifest: of a running or a killed attempt."""
    return [folder for number, folder in _step_folders(run) if number >= num_steps]


def extra_files(run: Run, commit: Commit) -> list[Path]:
    """Files in the table folders of a committed outer step that its manifest does not name."""
    named = {run.path / entry.path for entry in commit.files}
    folders = [run.path / table / step_folder(commit.outer_step) for table in LEDGER_TABLES]
    paths = {path for folder in folders for path in folder.glob("*")}
    return sorted(p for p in paths - named if not p.name.startswith(TEMPORARY_PREFIX))


def stray_manifests(run: Run) -> list[Path]:
    """Files in the manifest folder that are not the manifest of an outer step."""
    folder = run.path / "manifests"
    return [
        path
        for path in sorted(folder.glob("*"))
        if _step_of(path) is None and not path.name.startswith(TEMPORARY_PREFIX)
    ]


def _check_names(run: Run, findings: Findings, advice: str) -> int:
    """The number of outer steps up to the last manifest; adds a finding for each stray file."""
    folder = run.path / "manifests"
    if not folder.is_dir():
        findings.add(folder, "is missing", advice)
    for path in stray_manifests(run):
        findings.add(
            path, "is not a manifest of an outer step", f"set it aside with: cit repair {run.path}"
        )
    steps = [step for path in folder.glob("*") if (step := _step_of(path)) is not None]
    return max(steps, default=-1) + 1


def _step_of(path: Path) -> int | None:
    match = _STEP.fullmatch(path.stem)
    step = int(match[1]) if match and path.suffix == ".json" else None
    return step if step is not None and path.name == f"{step_folder(step)}.json" else None


def _check_table(folder: Path, entry: FileEntry) -> None:
    path = check_file(folder, entry)
    if pq.read_metadata(path).num_rows != entry.rows:
        raise DamagedError(f"{path} does not have the {entry.rows:,} rows of its manifest")


def _check_metadata(run: Run, commit: Commit, findings: Findings) -> None:
    advice = f"write it again with: cit repair {run.path}"
    for entry in commit.files:
        if entry.path == "metadata.json":
            with findings.catching(run.path / entry.path, advice):
                check_file(run.path, entry)


def _step_folders(run: Run) -> Iterator[tuple[int, Path]]:
    for table in LEDGER_TABLES:
        for folder in sorted((run.path / table).glob("step=*")):
            match = _STEP.fullmatch(folder.name)
            if match and folder.is_dir():
                yield int(match[1]), folder
