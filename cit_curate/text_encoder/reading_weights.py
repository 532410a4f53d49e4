"""What a model folder's weights may do wrong while transformers reads them."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from cit_curate.errors import DamagedError


@contextmanager
def reading_weights(model: str) -> Iterator[None]:
    """Name the model whose weights cannot be read.

    PyTorch unpickles tensors alone, and its own message tells how to switch that off.

    Args:
        model: What the messages call it.

    Raises:
        DamagedError: The weights are cut, or pickled and more than tensors.
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
