"""What an expert adds, in a few numbers by which copies are found without a look at the weights again.

What is compared is the update itself, s B A (for (IA)3 the vector l - 1, for a bottleneck adapter s U D), and never the
bytes: B and A may be multiplied by any matrix and its inverse, tensors re-ordered, headers spaced otherwise.

A sketch is z_j = x_j^T B A y_j for j < k, with signs x_j, y_j drawn from a secret, module by module, divided by its
norm: E[z_j z'_j] = <B A, B' A'>, so that the product of two sketches is the cosine of two updates, but for 1 / sqrt(k)
or so. Whoever knew the signs could hide a copy behind a small change along them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.admission.numerics import decoded
from protocol.bundle import ADAPTER_WEIGHTS
from protocol.spec import ExpertSpec
from protocol.tensors import ADAPTER_PREFIX, DTYPE_BYTES, TensorInfo, read_header

Array = NDArray[np.float64]
_NUMBERS, _FEWEST, _MOST = 1 << 14, 32, 256
"""Of a whole sketch, about; of one module at least and at most."""
_BLOCK = 1 << 13
_FACTORS = (("lora_B.weight", "lora_A.weight"), ("adapter_up.weight", "adapter_down.weight"))


def width(modules: int) -> int:
    """Say how many numbers the sketch of one module has in a pool of so many."""
    return max(_FEWEST, min(_MOST, _NUMBERS // modules))


def sketch(folder: Path, spec: ExpertSpec, modules: Sequence[str], secret: bytes) -> NDArray[np.float16]:
    """Sketch an expert whose weights were checked.

    Args:
        folder: The bundle.
        spec: Its facts.
        modules: Every module path of the pool, in an order that stays.
        secret: The coordinator's.

    Returns:
        [modules, k]; a row is of norm one, or zero where the expert adds nothing.
    """
    k, weights = width(len(modules)), _Weights(folder)
    found = np.zeros((len(modules), k), np.float16)
    for place, path in enumerate(modules):
        if path in spec.modules:
            z = _measure(weights, path, k, secret + path.encode())
            norm = np.linalg.norm(z)
            found[place] = z / norm if norm > 0 else 0
    return found


def touched(rows: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Tell from sketches [..., modules, k] at which modules [..., modules] an expert adds something."""
    found: NDArray[np.bool_] = np.square(rows).sum(-1) > 0
    return found


def nearness(cosines: NDArray[np.floating], mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Say how much of the smaller of two experts is the other's: the mean cosine over its modules, 0 to 1.

    A mean by module does not depend on how large the updates are, so that nothing can be drowned. A negative cosine
    counts as a positive one: nothing can be set off, and an update that is turned round is nobody's own.

    Args:
        cosines: [..., modules] of what both add; whatever where one adds nothing.
        mine: [modules] where the one adds something.
        theirs: [..., modules] where the other does.
    """
    both = np.where(mine & theirs, np.abs(cosines), 0).sum(-1)
    smaller: NDArray[np.floating] = both / np.maximum(np.minimum(mine.sum(), theirs.sum(-1)), 1)
    return smaller


def compare(one: tuple[Path, ExpertSpec], other: tuple[Path, ExpertSpec]) -> float:
    """As `nearness` of two experts, from their weights: <B A, B' A'> = sum((B'^T B) o (A' A^T))."""
    (_, mine), (_, theirs) = one, other
    a, b = _Weights(one[0]), _Weights(other[0])
    modules = sorted({*mine.modules, *theirs.modules})
    norms = [
        np.array([np.sqrt(_product(w, w, p)) if p in spec.modules else 0.0 for p in modules])
        for w, spec in ((a, mine), (b, theirs))
    ]
    cosines = np.zeros(len(modules))
    for place, path in enumerate(modules):
        if norms[0][place] > 0 and norms[1][place] > 0:
            cosines[place] = _product(a, b, path) / norms[0][place] / norms[1][place]
    return float(nearness(cosines, norms[0] > 0, norms[1] > 0))


class _Factor(NamedTuple):
    """A matrix in a file, which is never in memory as a whole."""

    path: Path
    info: TensorInfo

    def rows(self) -> Iterator[tuple[int, Array]]:
        """Yield blocks [n, columns] of rows, each with the number of its first."""
        rows, columns = self.info.shape
        with self.path.open("rb") as file:
            file.seek(self.info.offset)
            for start in range(0, rows, _BLOCK):
                count = min(_BLOCK, rows - start)
                raw = file.read(count * columns * DTYPE_BYTES[self.info.dtype])
                yield start, decoded(raw, self.info.dtype).astype(np.float64).reshape(count, columns)

    def columns(self) -> Iterator[tuple[int, Array]]:
        """Yield blocks [rows, n] of columns, each with the number of its first."""
        rows, columns = self.info.shape
        size = DTYPE_BYTES[self.info.dtype]
        with self.path.open("rb") as file:
            for start in range(0, columns, _BLOCK):
                count, block = min(_BLOCK, columns - start), []
                for row in range(rows):
                    file.seek(self.info.offset + (row * columns + start) * size)
                    block.append(decoded(file.read(count * size), self.info.dtype).astype(np.float64))
                yield start, np.stack(block)


class _Weights:
    """The tensors of a bundle's adapter."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ADAPTER_WEIGHTS
        self._header = read_header(self._path)

    def factors(self, path: str) -> tuple[_Factor, _Factor] | None:
        """B [d_out, r] and A [r, d_in] of a module; None for a vector."""
        for names in _FACTORS:
            infos = [self._header.get(f"{ADAPTER_PREFIX}{path}.{name}") for name in names]
            if infos[0] is not None and infos[1] is not None:
                return _Factor(self._path, infos[0]), _Factor(self._path, infos[1])
        return None

    def vector(self, path: str) -> Array:
        """What an (IA)3 vector differs from one by."""
        info = self._header[f"{ADAPTER_PREFIX}{path}.ia3_l"]
        with self._path.open("rb") as file:
            file.seek(info.offset)
            return decoded(file.read(info.nbytes), info.dtype).astype(np.float64) - 1

    def side(self, path: str) -> tuple[int, ...]:
        """The shape of an (IA)3 vector, a column or a row; nothing for factors."""
        info = self._header.get(f"{ADAPTER_PREFIX}{path}.ia3_l")
        return info.shape if info else ()


def _measure(weights: _Weights, path: str, k: int, seed: bytes) -> Array:
    factors = weights.factors(path)
    if factors is None:
        vector, side = weights.vector(path), repr(weights.side(path))
        blocks = ((start, vector[start : start + _BLOCK]) for start in range(0, len(vector), _BLOCK))
        summed = sum((_signs(k, len(v), seed + f"{side}{start}".encode()) @ v for start, v in blocks), np.zeros(k))
        return np.asarray(summed)
    b, a = factors
    left, right = np.zeros((k, b.info.shape[1])), np.zeros((a.info.shape[0], k))
    for start, block in b.rows():
        left += _signs(k, len(block), seed + f"out{start}".encode()) @ block
    for start, block in a.columns():
        right += block @ _signs(k, block.shape[1], seed + f"in{start}".encode()).T
    z: Array = (left * right.T).sum(axis=1)
    return z


def _signs(k: int, count: int, seed: bytes) -> Array:
    bits = np.frombuffer(hashlib.shake_256(seed).digest(-(-k * count // 8)), np.uint8)
    signs: Array = np.unpackbits(bits)[: k * count].reshape(k, count).astype(np.float64) * 2 - 1
    return signs


def _product(a: _Weights, b: _Weights, path: str) -> float:
    """<U, V> of two updates of one module; 0 where one is a vector and the other a matrix, or they differ in side."""
    mine, theirs = a.factors(path), b.factors(path)
    if mine is None or theirs is None:
        return float(a.vector(path) @ b.vector(path)) if a.side(path) == b.side(path) else 0.0
    left = sum(v.T @ u for (_, u), (_, v) in zip(mine[0].rows(), theirs[0].rows(), strict=True))
    right = sum(v @ u.T for (_, u), (_, v) in zip(mine[1].columns(), theirs[1].columns(), strict=True))
    return float(np.sum(left * right))
