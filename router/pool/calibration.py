"""What a release adds to scores: a bias for each module and expert, and a temperature for each module.

Federated calibration learns them, and a release's cap (`router.model.capture`) is biases alone; both may be there.

A module scores expert z by a_z / sqrt(d) + bias_z, a_z as in `router.layer.topk`, takes the k best, and weighs them by
softmax(score / tau). Biases are in units of that softmax, so that one step means the same at modules of any width; the
temperature is kept as log tau. Zeros everywhere are plain PHATGOOSE.

The file (safetensors) names experts by bundle, so it serves longer and shorter lists as well: an expert that it does
not know has bias 0, and a release that grows carries the same file on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from protocol.errors import Code, Refused

METHOD = "phatgoose"
"""Whose scores are calibrated."""
REQUEST = "request"
"""Stands among modules for the whole of a request: what is added to the logarithm of an expert's share of a mixture."""
MAX_BIAS = 64.0
"""Largest bias, either way; more than any score, far less than what float32 holds."""
MAX_LOG_TEMPERATURE = 4.0
"""Largest log tau, either way."""
_EXPERTS, _BIAS, _LOG_TEMPERATURE = "experts", ".bias", ".log_temperature"
_DIGEST_BYTES = 32
_SEVERAL = 2
_Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Biases and temperatures of a release."""

    experts: tuple[str, ...]
    """Bundle digests."""
    modules: tuple[str, ...]
    """Paths."""
    bias: _Floats
    """[m, n] by module and expert; 0 where an expert leaves a module alone."""
    log_temperature: _Floats
    """[m]."""

    @classmethod
    def zeros(cls, experts: Sequence[str], modules: Sequence[str]) -> "Calibration":
        """Calibrate nothing yet."""
        m, n = len(modules), len(experts)
        return cls(tuple(experts), tuple(modules), np.zeros((m, n), np.float32), np.zeros(m, np.float32))

    @classmethod
    def load(cls, content: bytes) -> "Calibration":
        """Read a file.

        Raises:
            Refused: `TENSOR_HEADER`, `TENSOR_NAMES`, `TENSOR_SHAPE` or `NOT_FINITE`.
        """
        try:
            tensors = load(content)
        except (SafetensorError, KeyError, ValueError) as error:
            raise Refused(Code.TENSOR_HEADER, "The calibration is no safetensors file.") from error
        listed = tensors.pop(_EXPERTS, np.zeros((0, 0)))
        modules = sorted(name.removesuffix(_BIAS) for name in tensors if name.endswith(_BIAS))
        if tensors.keys() != {f"{path}{kind}" for path in modules for kind in (_BIAS, _LOG_TEMPERATURE)}:
            raise Refused(Code.TENSOR_NAMES, "The calibration holds other tensors than biases and temperatures.")
        fits = listed.dtype == np.uint8 and listed.shape[1:] == (_DIGEST_BYTES,)
        for name, tensor in tensors.items():
            shape = (len(listed),) if name.endswith(_BIAS) else (1,)
            fits = fits and tensor.dtype == np.float32 and tensor.shape == shape
        if not fits:
            raise Refused(Code.TENSOR_SHAPE, "The calibration's tensors do not fit its list of experts.")
        empty = cls.zeros([row.tobytes().hex() for row in listed], modules)
        bias, log_temperature = ([tensors[path + kind] for path in modules] for kind in (_BIAS, _LOG_TEMPERATURE))
        return empty.at(np.concatenate([*bias, *log_temperature, np.zeros(0, np.float32)]))

    @cached_property
    def content(self) -> bytes:
        """The file; equal calibrations give equal bytes."""
        digests = np.frombuffer(bytes.fromhex("".join(self.experts)), np.uint8).reshape(-1, _DIGEST_BYTES)
        tensors = {_EXPERTS: digests}
        for path, bias, log_temperature in zip(self.modules, self.bias, self.log_temperature, strict=True):
            tensors[path + _BIAS], tensors[path + _LOG_TEMPERATURE] = bias, log_temperature[None]
        return save(tensors)

    @cached_property
    def digest(self) -> str:
        """The file's sha256."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def vector(self) -> _Floats:
        """[m n + m], all numbers: what campaigns average."""
        return np.concatenate([self.bias.ravel(), self.log_temperature])

    def at(self, vector: _Floats) -> "Calibration":
        """Take other numbers, [m n + m] as `vector` gives them.

        Raises:
            Refused: `TENSOR_SHAPE`, or `NOT_FINITE` for numbers that no calibration holds.
        """
        m, n = self.bias.shape
        if vector.shape != (m * n + m,):
            raise Refused(
                Code.TENSOR_SHAPE, f"A calibration of {n} experts at {m} modules does not have {vector.size} numbers."
            )
        limits = np.repeat(np.array([MAX_BIAS, MAX_LOG_TEMPERATURE]), [m * n, m])
        if not bool((np.abs(vector) <= limits).all()):  # also where something is no number
            raise Refused(Code.NOT_FINITE, "A calibration holds numbers that are not finite, or far too large.")
        bias, log_temperature = vector[: m * n].reshape(m, n), vector[m * n :]
        return Calibration(self.experts, self.modules, bias.astype(np.float32), log_temperature.astype(np.float32))

    def over(self, experts: Sequence[str], modules: Sequence[str]) -> "Calibration":
        """Say the same about another list of experts and modules; what is new is at 0."""
        rows, paths = _places(experts, self.experts), _places(modules, self.modules)
        bias = np.pad(self.bias, ((0, 1), (0, 1)))[paths[:, None], rows]
        return Calibration(tuple(experts), tuple(modules), bias, np.pad(self.log_temperature, (0, 1))[paths])


def added(*calibrations: Calibration | None) -> Calibration | None:
    """Add up what several say: a campaign's biases, and those of a release's cap; None for none."""
    known = [each for each in calibrations if each is not None]
    if len(known) < _SEVERAL:
        return known[0] if known else None
    experts = tuple(dict.fromkeys(expert for each in known for expert in each.experts))
    modules = sorted({path for each in known for path in each.modules})
    total = np.sum([each.over(experts, modules).vector for each in known], axis=0)
    limits = np.repeat(np.array([MAX_BIAS, MAX_LOG_TEMPERATURE]), [len(modules) * len(experts), len(modules)])
    return Calibration.zeros(experts, modules).at(np.clip(total, -limits, limits))


def _places(wanted: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """Position of each name among known ones, and -1, the place of a zero, for others."""
    at = {name: place for place, name in enumerate(known)}
    return np.array([at.get(name, -1) for name in wanted], np.int64)
