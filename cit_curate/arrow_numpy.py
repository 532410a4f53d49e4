"""Columns of numbers between NumPy and Arrow, by their buffers.

`pa.array` and `Array.to_numpy` import pandas at their first call, where it is installed. That costs
a worker process 0.3 seconds, and it never needs pandas.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def arrow_of(values: npt.NDArray[Any]) -> pa.Array:
    """Numbers or booleans as an Arrow array; only booleans are copied."""
    if values.dtype == np.bool_:
        kind, content = pa.bool_(), np.packbits(values, bitorder="little")
    else:
        kind, content = pa.from_numpy_dtype(values.dtype), np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(content)])


def numpy_of(values: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """The numbers or booleans of an Arrow array without nulls, as `Array.to_numpy` returns them."""
    dtype = values.type.to_pandas_dtype()
    if isinstance(values, pa.ChunkedArray):
        return np.concatenate([np.zeros(0, dtype), *map(numpy_of, values.chunks)])
    start, stop, content = values.offset, values.offset + len(values), values.buffers()[1]
    if content is None:
        content = b""
    if pa.types.is_boolean(values.type):
        bits = np.unpackbits(np.frombuffer(content, np.uint8), count=stop, bitorder="little")
        return bits[start:].view(np.bool_)
    return np.frombuffer(content, dtype, count=stop)[start:]


def strings_of(texts: Sequence[str]) -> pa.Array:
    """Texts as an Arrow array of strings, of at most 2 GiB."""
    encoded = [text.encode() for text in texts]
    ends = np.fromiter(accumulate(map(len, encoded), initial=0), np.int32, len(texts) + 1)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def repeated(text: str, count: int) -> pa.Array:
    """A text `count` times, as an Arrow array of strings."""
    return pa.repeat(strings_of([text])[0], count)
