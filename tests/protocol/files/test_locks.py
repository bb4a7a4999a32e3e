from pathlib import Path

import pytest

from protocol.errors import Code, Refused
from protocol.files.locks import held


def test_a_lock_is_held_by_one_and_let_go_whatever_happens(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(lock, "Busy.", "Wait."):
        with pytest.raises(Refused, match="Busy") as refused, held(lock, "Busy.", "Wait.", wait_s=0.01):
            pytest.fail("two held it")
        assert (refused.value.code, refused.value.hint) == (Code.WORKSPACE_BUSY, "Wait.")
    with pytest.raises(ValueError, match="mine"), held(lock, "Busy.", "Wait."):
        raise ValueError("mine")
    with held(lock, "Busy.", "Wait."):
        pass
