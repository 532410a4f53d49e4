"""Several pools scanned as one: their names, their weights, and how a run records them.

A weight is a share of the captions that are *scanned*; how many of them are kept is up to the
selection. A single pool is a mixture of one, which changes nothing.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from cit_curate.errors import ConfigError
from cit_curate.pool.interleave import Interleave
from cit_curate.pool.pool import Pool

# `NAME:PATH=WEIGHT`; the scheme of `s3://…` or `simplecache::s3://…` is no name.
_FORM = re.compile(r"(?:(?P<name>[\w.-]+):(?!//|:))?(?P<path>.+?)(?:=(?P<weight>[^=/]*))?")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+|[0-9]+\.")


@dataclass(frozen=True)
class MixedPool:
    """One pool of a mixture.

    Attributes:
        name: Its name in the ledger.
        pool: The pool.
        share: Its share of the scanned captions.
    """

    name: str
    pool: Pool
    share: Fraction


class PoolMixture:
    """One pool or several, in shares that sum to 1.

    Attributes:
        pools: The pools, in the order of the arguments.
        interleave: The pool of the n-th caption.
    """

    def __init__(self, pools: Sequence[tuple[str, Pool, Fraction]]) -> None:
        """Mix opened pools.

        Args:
            pools: The name, pool and weight of each; only the ratios of the weights count.

        Raises:
            ConfigError: There is no pool, a name or a pool is repeated, or a weight is not above 0.
        """
        _check_distinct(pools)
        try:
            self.interleave = Interleave([weight for _, _, weight in pools])
        except ValueError as error:
            raise ConfigError(f"--pool: {error}") from error
        shares = self.interleave.shares
        self.pools = tuple(
            MixedPool(name, pool, share)
            for (name, pool, _), share in zip(pools, shares, strict=True)
        )
        self._by_name = {member.name: member.pool for member in self.pools}

    @classmethod
    def of(cls, pool: "Pool | PoolMixture") -> "PoolMixture":
        """The mixture itself, or a mixture of a single pool."""
        return cls([(pool.name, pool, Fraction(1))]) if isinstance(pool, Pool) else pool

    @classmethod
    def open(cls, pools: str | Path | Sequence[str | Path]) -> "PoolMixture":
        """Open `POOL`, or several as `POOL=WEIGHT`; `NAME:POOL=WEIGHT` renames one.

        Raises:
            ConfigError: A form, a weight or a name is invalid, or there is no such pool.
            DamagedError: See `Pool.open`.
        """
        listed = [pools] if isinstance(pools, str | Path) else list(pools)
        forms = [parse_pool(str(pool)) for pool in listed]
        unweighted = [path for _, path, weight in forms if weight is None]
        if len(forms) > 1 and unweighted:
            raise ConfigError(
                f"--pool {unweighted[0]} has no weight; each of several pools needs one, its share "
                f"of the captions that are looked at: --pool {unweighted[0]}=0.5"
            )
        opened = []
        for name, path, weight in forms:
            pool = Pool.open(path)
            opened.append((name or pool.name, pool, Fraction(1) if weight is None else weight))
        return cls(opened)

    def __iter__(self) -> Iterator[MixedPool]:
        return iter(self.pools)

    def __len__(self) -> int:
        return len(self.pools)

    def __getitem__(self, name: str) -> Pool:
        return self._by_name[name]

    @property
    def single(self) -> Pool | None:
        """The pool, if there is only one."""
        return self.pools[0].pool if len(self.pools) == 1 else None

    @property
    def pass_images(self) -> int:
        """Approximate number of images in one pass of the mixture, for a progress bar."""
        return max(int(member.pool.num_images / member.share) for member in self.pools)

    @property
    def info_commands(self) -> str:
        """The commands that show the pools."""
        return " and ".join(f"cit pool info {member.pool.location}" for member in self.pools)

    def settings(self) -> dict[str, Any]:
        """The pools in `config.json`: path, fingerprint and, for several, name and weight.

        A single pool has the keys `pool` and `pool_fingerprint`; several are the list `pools`.
        """
        if self.single is not None:
            return {
                "pool": self.single.named,
                "pool_fingerprint": self.single.fingerprint,
            }
        pools = [
            {
                "name": member.name,
                "path": member.pool.named,
                "fingerprint": member.pool.fingerprint,
                "weight": float(member.share),
            }
            for member in self.pools
        ]
        return {"pool": None, "pool_fingerprint": None, "pools": pools}


def parse_pool(text: str) -> tuple[str | None, str, Fraction | None]:
    """Name, path and weight of `POOL`, `POOL=WEIGHT` or `NAME:POOL=WEIGHT`; None = absent.

    A folder whose name is the whole text takes precedence.

    Raises:
        ConfigError: The weight is not a number above 0.
    """
    if Path(text).exists():
        return None, text, None
    form = _FORM.fullmatch(text)
    if form is None:
        raise ConfigError(f"--pool {text!r}: give a folder, or POOL=WEIGHT as in pools/mine=0.7")
    name, path, weight = form["name"], form["path"], form["weight"]
    if name is not None and Path(f"{name}:{path}").exists():
        name, path = None, f"{name}:{path}"
    if weight is None:
        return name, path, None
    if not _NUMBER.fullmatch(weight) or not Fraction(weight):
        raise ConfigError(
            f"--pool {text}: the weight {weight!r} is not a number above 0, as in {path}=0.7"
        )
    return name, path, Fraction(weight)


def _check_distinct(pools: Sequence[tuple[str, Pool, Fraction]]) -> None:
    names: dict[str, Pool] = {}
    fingerprints: dict[str, Pool] = {}
    for name, pool, _ in pools:
        same = fingerprints.get(pool.fingerprint)
        if same is not None:
            raise ConfigError(
                f"--pool: {same.location} and {pool.location} are the same pool (fingerprint "
                f"{pool.fingerprint[:12]}); give it once, with the sum of the weights"
            )
        if name in names:
            raise ConfigError(
                f"--pool: {names[name].location} and {pool.location} are both called {name!r}, and "
                "the ledger names pools; rename one of them: --pool "
                f"other:{pool.location}=WEIGHT"
            )
        names[name] = fingerprints[pool.fingerprint] = pool
