"""Errors of a model's weights while transformers reads them."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from cit_curate.errors import DamagedError


@contextmanager
def reading_weights(model: str) -> Iterator[None]:
    """Turn errors about weights into a DamagedError that names the model.

    PyTorch unpickles only tensors, and its own message explains how to switch that off.

    Args:
        model: The name of the model in the messages.

    Raises:
        DamagedError: The weights are cut, or are a pickle of more than tensors.
    """
    try:
        yield
    except SafetensorError as error:
        raise DamagedError(
            f"{model}: its weights are cut or damaged ({error}); copy or fetch them again"
        ) from error
    except pickle.UnpicklingError as error:
        raise DamagedError(
            f"{model} is refused: its pickled weights are damaged or hold more than tensors; "
            "nothing in them was run. Take the same weights as model.safetensors"
        ) from error
