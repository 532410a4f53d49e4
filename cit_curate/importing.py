"""Imports that take seconds, such as those of torch and transformers."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def long_imports() -> Iterator[None]:
    """A block of imports without garbage collection, which finds next to nothing in them.

    Measured on `cit_train.outer_loop`: it takes a sixth of the processor time, since each of many
    collections goes through all modules loaded so far.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
