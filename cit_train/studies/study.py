"""A study: arms that differ in how they choose pairs, each trained with several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cit_curate.errors import ConfigError
from cit_curate.own_functions import own_function
from cit_train.config import RunConfig, replace_fields


@dataclass(frozen=True)
class Arm:
    """One way to choose pairs.

    Attributes:
        changes: What differs from the study's config, by the names of the flags.
        offline: Whether the pairs are selected once, before training, with the text encoder of the
            start: what a filter of the pool does. Training then takes them in the order of a scan.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    offline: bool = False


@dataclass(frozen=True)
class Study:
    """Arms that share everything else.

    Attributes:
        config: The config of all arms: pool, classes, pictures, towers and updates.
        arms: The arms, by name.
        seeds: The seeds of each arm.
        reference: The arm that the others are compared with; "" = the first one.
        metric: What is compared: a number of the last evaluation.
    """

    config: RunConfig
    arms: Mapping[str, Arm]
    seeds: Sequence[int] = (0, 1, 2)
    reference: str = ""
    metric: str = "mean_per_class"

    def __post_init__(self) -> None:
        if not self.arms or not self.seeds:
            raise ConfigError("a study needs at least one arm and one seed")
        if self.reference and self.reference not in self.arms:
            raise ConfigError(
                f"the study's reference {self.reference!r} is none of its arms: "
                f"{', '.join(self.arms)}"
            )

    def config_of(self, arm: str, seed: int) -> RunConfig:
        """The config of one run.

        Raises:
            ConfigError: A change names no setting, or has a value out of range.
        """
        return replace_fields(self.config, **{**self.arms[arm].changes, "seed": seed})


def load_study(name: str) -> Study:
    """The study that a function returns: `package.module:function` or `file.py:function`.

    Raises:
        ConfigError: There is no such function, or it returns something else.
    """
    study = own_function(name, flag="the study")()
    if not isinstance(study, Study):
        raise ConfigError(f"{name} returned a {type(study).__name__} and no Study")
    return study


def parse_seeds(text: str) -> list[int]:
    """Different seeds, separated by commas.

    Raises:
        ConfigError: One is no whole number, or there is none.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        raise ConfigError(f"--seeds is {text!r}; give whole numbers separated by commas: 0,1,2")
    return list(dict.fromkeys(int(part) for part in parts))
