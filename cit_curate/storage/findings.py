"""What is wrong with stored data, file by file: what `verify` tells and `repair` mends."""

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
    """One damaged file: what is wrong with it, and what to do."""

    file: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.file} {self.what}; {self.advice}"


@dataclass
class Findings:
    """What a check has found so far; owned by the check.

    Attributes:
        damage: Every damaged file.
        notes: What is no damage, and good to know.
    """

    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, file: Path | str, what: str, advice: str) -> None:
        """Add a damaged file."""
        self.damage.append(Damage(str(file), what, advice))

    @contextmanager
    def catching(self, file: Path | str, advice: str) -> Iterator[None]:
        """Take the DamagedError of the block for damage of the file it names, else of `file`."""
        try:
            yield
        except DamagedError as error:
            file = error.file or file
            self.add(file, str(error).removeprefix(f"{file} "), advice)

    def raise_damage(self, where: Path | str) -> None:
        """Raise unless nothing is damaged.

        Raises:
            DamagedError: Names every damaged file.
        """
        if self.damage:
            lines = [f"{where} is damaged:", *map(str, self.damage)]
            raise DamagedError("\n  ".join(lines) if len(lines) > 2 else " ".join(lines))

    def as_json(self) -> dict[str, Any]:
        """What `verify --json` prints of them."""
        damage = [asdict(each) for each in self.damage]
        return {"damaged": bool(damage), "damage": damage, "notes": self.notes}


def tell_findings(name: str, found: Findings, *, as_json: bool) -> None:
    """Print what a check of `name` has found.

    Raises:
        DamagedError: Something is damaged, and the message says what.
        SystemExit: With 4, where the JSON document has said so.
    """
    if as_json:
        print_json({"path": name, **found.as_json()})
        if found.damage:
            raise SystemExit(DamagedError.exit_code)
        return
    found.raise_damage(name)
    lines = [f"{name}: every file is as it was written", *(f"note: {each}" for each in found.notes)]
    for line in lines:
        print_line(line)
