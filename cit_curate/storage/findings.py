"""Damage in stored data, file by file, as `verify` reports and `repair` mends it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cit_curate.errors import DamagedError
from cit_curate.printing import print_json
from cit_curate.terminal import print_line


@dataclass(frozen=True)
class Damage:
    """One damaged file, with the advice on what to do about it."""

    file: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.file} {self.what}; {self.advice}"


@dataclass
class Findings:
    """The results of a check so far; owned by the check.

    Attributes:
        damage: Every damaged file.
        notes: Remarks that are worth knowing, but are not damage.
    """

    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, file: Path | str, what: str, advice: str) -> None:
        """Add a damaged file."""
        self.damage.append(Damage(str(file), what, advice))

    @contextmanager
    def catching(self, file: Path | str, advice: str) -> Iterator[None]:
        """Record a DamagedError of the block as damage to the file it names, else to `file`."""
        try:
            yield
        except DamagedError as error:
            file = error.file or file
            self.add(file, str(error).removeprefix(f"{file} "), advice)

    def raise_damage(self, where: Path | str) -> None:
        """Raise an error if any file is damaged.

        Raises:
            DamagedError: The message names every damaged file.
        """
        if self.damage:
            lines = [f"{where} is damaged:", *map(str, self.damage)]
            raise DamagedError("\n  ".join(lines) if len(lines) > 2 else " ".join(lines))

    def as_json(self) -> dict[str, Any]:
        """The findings as `verify --json` prints them."""
        damage = [asdict(damaged) for damaged in self.damage]
        return {"damaged": bool(damage), "damage": damage, "notes": self.notes}


def print_findings(name: str, findings: Findings, *, as_json: bool) -> None:
    """Print the findings of a check of `name`.

    Raises:
        DamagedError: There is damage, which the message lists.
        SystemExit: With code 4, where the JSON document lists the damage.
    """
    if as_json:
        print_json({"path": name, **findings.as_json()})
        if findings.damage:
            raise SystemExit(DamagedError.exit_code)
        return
    findings.raise_damage(name)
    lines = [
        f"{name}: every file is as it was written",
        *(f"note: {note}" for note in findings.notes),
    ]
    for line in lines:
        print_line(line)
