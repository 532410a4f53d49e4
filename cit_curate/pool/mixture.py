"""Several pools scanned as one: how they are named and weighed, and what a run writes down of them.

A weight is a share of the captions that are *looked at*; how many of them are kept is up to the
rules. A pool alone is a mixture of one, which changes nothing.
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

# `NAME:PATH=WEIGHT`; the name of `s3://…` or `simplecache::s3://…` is none.
_FORM = re.compile(r"(?:(?P<name>[\w.-]+):(?!//|:))?(?P<path>.+?)(?:=(?P<weight>[^=/]*))?")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+|[0-9]+\.")


@dataclass(frozen=True)
class MixedPool:
    """One pool of a mixture.

    Attributes:
        name: What the ledger calls it.
        pool: The pool.
        share: Its share of the scanned captions.
    """

    name: str
    pool: Pool
    share: Fraction


class PoolMixture:
    """One pool or several, in shares that sum to 1.

    Attributes:
        pools: In the order they were given.
        interleave: Which of them gives the n-th caption.
    """

    def __init__(self, pools: Sequence[tuple[str, Pool, Fraction]]) -> None:
        """Mix opened pools.

        Args:
            pools: Name, pool and weight of each; only the ratios of the weights count.

        Raises:
            ConfigError: There is none, a name or a pool comes twice, or a weight is not above 0.
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
        self._by_name = {each.name: each.pool for each in self.pools}

    @classmethod
    def of(cls, pool: "Pool | PoolMixture") -> "PoolMixture":
        """A mixture as it is, or one of a single pool."""
        return cls([(pool.name, pool, Fraction(1))]) if isinstance(pool, Pool) else pool

    @classmethod
    def open(cls, pools: str | Path | Sequence[str | Path]) -> "PoolMixture":
        """Open `POOL`, or several as `POOL=WEIGHT`; `NAME:POOL=WEIGHT` gives one another name.

        Raises:
            ConfigError: A form, a weight or a name is not as it must be, or there is no such pool.
            DamagedError: See `Pool.open`.
        """
        given = [pools] if isinstance(pools, str | Path) else list(pools)
        forms = [parse_pool(str(each)) for each in given]
        lacking = [path for _, path, weight in forms if weight is None]
        if len(forms) > 1 and lacking:
            raise ConfigError(
                f"--pool {lacking[0]} has no weight; each of several pools needs one, its share of "
                f"the captions that are looked at: --pool {lacking[0]}=0.5"
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
        """The pool, when there is one alone."""
        return self.pools[0].pool if len(self.pools) == 1 else None

    @property
    def pass_images(self) -> int:
        """Images that one pass of the mixture visits, near enough for a progress bar."""
        return max(int(each.pool.num_images / each.share) for each in self.pools)

    @property
    def info_commands(self) -> str:
        """What to type to look at the pools."""
        return " and ".join(f"cit pool info {each.pool.location}" for each in self.pools)

    def settings(self) -> dict[str, Any]:
        """What `config.json` says of the pools: path, fingerprint and, of several, name and weight.

        One pool stands as `pool` and `pool_fingerprint`; several stand in the list `pools`.
        """
        if self.single is not None:
            return {
                "pool": self.single.named,
                "pool_fingerprint": self.single.fingerprint,
            }
        pools = [
            {
                "name": each.name,
                "path": each.pool.named,
                "fingerprint": each.pool.fingerprint,
                "weight": float(each.share),
            }
            for each in self.pools
        ]
        return {"pool": None, "pool_fingerprint": None, "pools": pools}


def parse_pool(text: str) -> tuple[str | None, str, Fraction | None]:
    """Name, path and weight of `POOL`, `POOL=WEIGHT` or `NAME:POOL=WEIGHT`; None = not given.

    A folder that is called just as the whole text is that folder.

    Raises:
        ConfigError: The weight is no number above 0.
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
                "the ledger names pools; call one of them otherwise: --pool "
                f"other:{pool.location}=WEIGHT"
            )
        names[name] = fingerprints[pool.fingerprint] = pool
