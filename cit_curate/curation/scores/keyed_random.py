"""Random generators for many keys at once, since `default_rng` takes 13 us per generator.

How NumPy seeds a generator is part of its promise of reproducible streams (NEP 19), so it can be
done here for all keys together. `SeedSequence` mixes the words of a key into four words of 32 bits
and draws eight from them (O'Neill's `seed_seq_fe`); PCG64 takes a step from these. Drawing from the
generators is left to NumPy.
"""

from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np
import numpy.typing as npt

from cit_curate.records import Int64

Words = npt.NDArray[np.uint32]

_POOL_WORDS = 4
_MIX_LEFT, _MIX_RIGHT = 0xCA01F9DD, 0x4973F715
# The first constant of a series of hashes, and the factor from each to the next.
_ABSORB = (0x43B0D7E5, 0x931E8875)
_DRAW = (0x8B51F9DD, 0x58F38DED)
_PCG64_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_MASK_128 = (1 << 128) - 1


def keyed_generators(
    key: Sequence[int], *columns: Int64 | Sequence[int]
) -> Iterator[np.random.Generator]:
    """The generators `default_rng((*key, columns[0][n], columns[1][n], …))`, for each n.

    Args:
        key: The words that all keys begin with; none is negative.
        columns: int64 [generators] each, the words that follow; none is negative.

    Yields:
        The generators. They are one object, seeded again: use each before the next one is taken.
    """
    rows = np.stack([np.asarray(column, dtype=np.int64) for column in columns], axis=1)
    if rows.size and rows.max() >= 1 << 32:
        # A word of more than 32 bits counts as two, which no scan of a pool on disk reaches.
        for row in rows.tolist():
            yield np.random.default_rng((*key, *row))
        return
    constant = [word for each in key for word in _words(each)]
    columns_of_words = [np.full(len(rows), word, dtype=np.uint32) for word in constant]
    columns_of_words += [*rows.T.astype(np.uint32)]
    bits = np.random.PCG64(0)
    generator = np.random.Generator(bits)
    for state, increment in zip(*_seeds(columns_of_words), strict=True):
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": increment},
            "has_uint32": 0,
            "uinteger": 0,
        }
        yield generator


def keyed_uniform(key: Sequence[int], *columns: Int64) -> npt.NDArray[np.float64]:
    """A number from 0 to below 1 for each key: the first word of its `SeedSequence` over 2^32.

    Args:
        key: The words that all keys begin with; none is negative.
        columns: int64 [numbers] each, the words that follow, from 0 to below 2^32.

    Returns:
        float64 [numbers].
    """
    words = [np.full(len(columns[0]), word, np.uint32) for each in key for word in _words(each)]
    pool = _absorb([*words, *(column.astype(np.uint32) for column in columns)])
    return _hash(pool[0], _constants(*_DRAW)) / 2.0**32


def _seeds(words: Sequence[Words]) -> tuple[list[int], list[int]]:
    """The state and increment of PCG64 for each row of words, of 128 bits each."""
    pool = _absorb(words)
    constants = _constants(*_DRAW)
    drawn = [_hash(pool[n % _POOL_WORDS], constants) for n in range(8)]
    # Two words of 32 bits make one of 64, the lower half first; two of these make one of 128, the
    # upper half first.
    halves = [
        (drawn[2 * n].astype(np.uint64) | drawn[2 * n + 1].astype(np.uint64) << np.uint64(32))
        for n in range(4)
    ]
    states, increments = [], []
    for upper, lower, stream_upper, stream_lower in zip(*(h.tolist() for h in halves), strict=True):
        increment = ((stream_upper << 64 | stream_lower) << 1 | 1) & _MASK_128
        start = increment + (upper << 64 | lower)
        increments.append(increment)
        states.append((start * _PCG64_MULTIPLIER + increment) & _MASK_128)
    return states, increments


def _absorb(words: Sequence[Words]) -> list[Words]:
    """The four words that the words of each key are mixed into."""
    constants = _constants(*_ABSORB)
    padded = [*words, *[np.zeros_like(words[0])] * max(_POOL_WORDS - len(words), 0)]
    pool = [_hash(word, constants) for word in padded[:_POOL_WORDS]]
    for source, target in permutations(range(_POOL_WORDS), 2):
        pool[target] = _mix(pool[target], _hash(pool[source], constants))
    for word in padded[_POOL_WORDS:]:
        for target in range(_POOL_WORDS):
            pool[target] = _mix(pool[target], _hash(word, constants))
    return pool


def _hash(word: Words, constants: Iterator[tuple[int, int]]) -> Words:
    before, after = next(constants)
    mixed: Words = (word ^ np.uint32(before)) * np.uint32(after)
    return mixed ^ mixed >> np.uint32(16)


def _mix(one: Words, other: Words) -> Words:
    mixed: Words = one * np.uint32(_MIX_LEFT) - other * np.uint32(_MIX_RIGHT)
    return mixed ^ mixed >> np.uint32(16)


def _constants(first: int, factor: int) -> Iterator[tuple[int, int]]:
    """Each constant with the next one."""
    while True:
        following = first * factor & 0xFFFFFFFF
        yield first, following
        first = following


def _words(value: int) -> list[int]:
    """A number as words of 32 bits, the lowest first; 0 is one word."""
    words = [value & 0xFFFFFFFF]
    while value := value >> 32:
        words.append(value & 0xFFFFFFFF)
    return words
