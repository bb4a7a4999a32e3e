"""Rows of a batch are told apart only where they are known to be whole."""

import pytest
import torch

from protocol.errors import Code, Refused
from router.layer.batch_rows import BatchRows


@pytest.mark.parametrize("shape", [(6, 4), (5, 4), (3, 5, 4), (1, 2, 4)])
def test_what_may_be_some_of_the_tokens_is_refused(shape: tuple[int, ...]) -> None:
    rows = BatchRows(2)
    assert rows.entries("m", torch.zeros(2, 5, 4)) == 1
    with pytest.raises(Refused) as refused:
        rows.entries("m", torch.zeros(shape))
    assert refused.value.code is Code.REQUEST_INVALID


def test_flattened_tokens_are_whole_rows_at_a_length_that_was_seen() -> None:
    rows = BatchRows(2)
    for length in (3, 1):
        with pytest.raises(Refused):
            rows.entries("m", torch.zeros(2 * length, 4))
        rows.entries("m", torch.zeros(2, length, 4))
        assert rows.entries("m", torch.zeros(2 * length, 4)) == length
