"""What public text looks like inside a pool's base, worked out once by its founder: a file named by the signed pool.

safetensors; of every module input and kind that the pool's methods read a mean, a basis, its variances and the rest
(`router.methods.features.covariance.Spread`). The basis, which is nearly all of it, is kept in float16 and made
orthonormal again when it is read: what rounding turns it by is far below the ridge that methods add.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
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


def read_statistics(path: Path, kind: str, widths: Mapping[str, int]) -> dict[str, Spread]:
    """Read the spreads of a kind, by input and kind; none if the pool tells none of it.

    Args:
        path: The file, whose bytes were held against the pool.
        kind: Of vectors.
        widths: d of every input that has some of that kind.

    Raises:
        Refused: `TENSOR_HEADER`, `TENSOR_NAMES`, `TENSOR_SHAPE` or `NOT_FINITE`.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        hint = "Fetch it again with: greylag-router pull"
        raise Refused(Code.TENSOR_HEADER, "What the pool tells of public text cannot be read.", hint) from error
    told = {name for name in tensors if name.rsplit(".", 2)[-2:-1] == [kind]}
    if not told:
        return {}
    if told != {f"{path}.{kind}.{field}" for path in widths for field in Spread._fields}:
        raise Refused(Code.TENSOR_NAMES, "What the pool tells of public text is of other modules.", _HINT)
    spreads = {
        f"{path}.{kind}": Spread(*(tensors[f"{path}.{kind}.{field}"].float() for field in Spread._fields))
        for path in widths
    }
    return {name: _sound(name, each, d) for (name, each), d in zip(spreads.items(), widths.values(), strict=True)}


def _sound(name: str, read: Spread, d: int) -> Spread:
    r = len(read.variances)
    if [tensor.shape for tensor in read] != [(d,), (r, d), (r,), (1,)] or r > d:
        raise Refused(Code.TENSOR_SHAPE, f"What the pool tells of public text does not fit {name}.", _HINT)
    # The root of a negative variance is no number either.
    if not all(tensor.isfinite().all() for tensor in (read.mean, read.basis, read.variances.sqrt(), read.rest.sqrt())):
        raise Refused(Code.NOT_FINITE, f"What the pool tells of public text at {name} is no number.", _HINT)
    return read._replace(basis=torch.linalg.qr(read.basis.double().T).Q.T.float().contiguous())
