"""Which rows of a flattened batch belong to which request."""

from torch import Tensor

from protocol.errors import Code, Refused

_TOKENS_BY_WIDTH = 2


class BatchRows:
    """Tells the rows of a batch apart in what a module is given.

    Args:
        rows: Inputs in the batch.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._lengths: set[int] = set()

    def entries(self, path: str, u: Tensor) -> int:
        """Count the entries of u [b, s, d], or [b * s, d] as some feed-forwards flatten it, that one row has.

        Raises:
            Refused: `REQUEST_INVALID` if the rows cannot be told apart, as where a base model with experts of its
                own hands each some tokens.
        """
        length, odd = divmod(len(u), self._rows)
        if u.dim() > _TOKENS_BY_WIDTH and length == 1 and not odd:
            self._lengths.add(u.shape[1:-1].numel())
            return 1
        # Flattened tokens are believed to be whole rows only at a length that was seen before.
        if u.dim() == _TOKENS_BY_WIDTH and not odd and length in self._lengths:
            return length
        raise inseparable(path)


def inseparable(path: str) -> Refused:
    """Refuse what a module was given, since nobody knows which of the request's tokens it holds."""
    return Refused(
        Code.REQUEST_INVALID,
        f"{path} is not given every token of every input, as where a base model has experts of its own, so the "
        "inputs cannot be told apart there.",
        "Ask with one routing choice at a time, and for no explanation.",
    )
