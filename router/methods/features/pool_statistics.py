"""What public text looks like inside a pool's base, worked out once by its founder: a file named by the signed pool.

safetensors; of every module input and kind that the pool's methods read a mean, a basis, its variances and the rest
(`router.methods.features.covariance.Spread`). The basis, which is nearly all of it, is kept in float16 and made
orthonormal again when it is read: what rounding turns it by is far below the ridge that methods add.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from protocol.errors import Code, Refused
from router.methods.features.covariance import Spread

_HINT = "Tell the pool's operator; name public text of your own with the setting public_text meanwhile."


def dump_statistics(spreads: Mapping[str, Spread]) -> bytes:
    """Write spreads, by input and kind, as the file."""
    return save(
        tensors_of({name: each._replace(basis=each.basis.half()) for name, each in spreads.items()}), {"format": "pt"}
    )


def tensors_of(spreads: Mapping[str, Spread]) -> dict[str, Tensor]:
    """Name each tensor of spreads, which are by input and kind, such as the mean [d]."""
    return {f"{name}.{field}": tensor for name, each in spreads.items() for field, tensor in each._asdict().items()}


def read_spread(path: Path, name: str, width: int) -> Spread | None:
    """Read the spread of an input and kind; None if the pool does not tell it.

    Args:
        path: The file, whose bytes were held against the pool.
        name: Of input and kind.
        width: d, of the input.

    Raises:
        Refused: `TENSOR_HEADER`, `TENSOR_SHAPE` or `NOT_FINITE`.
    """
    try:
        with safe_open(path, "pt") as file:
            if f"{name}.mean" not in file.keys():  # noqa: SIM118 - no mapping
                return None
            # Copied, since the file's pages would go with the file.
            read = Spread(*(file.get_tensor(f"{name}.{field}").float().clone() for field in Spread._fields))
    except (OSError, SafetensorError) as error:
        raise Refused(Code.TENSOR_HEADER, f"The pool's statistics {path} cannot be read: {error}.", _HINT) from error
    rank = len(read.variances)
    if [tensor.shape for tensor in read] != [(width,), (rank, width), (rank,), (1,)] or rank > width:
        raise Refused(Code.TENSOR_SHAPE, f"The pool's statistics do not fit the input of {name}.", _HINT)
    # The root of a negative variance is no number either.
    if not all(tensor.isfinite().all() for tensor in (read.mean, read.basis, read.variances.sqrt(), read.rest.sqrt())):
        raise Refused(Code.NOT_FINITE, f"The pool's statistics of {name} are no numbers.", _HINT)
    return read._replace(basis=torch.linalg.qr(read.basis.double().T).Q.T.float().contiguous())
