"""What the demo over a pre-trained base is made of."""

import pytest

from protocol.errors import Code, Refused
from tests.real import demo
from tests.real.packages import find
from tests.real.tasks import contributed, every, split


def sources(*names: str) -> set[str]:
    return {source for name in names for source in every()[name].sources}


def test_contributors_differ_and_nobody_contributes_what_is_public_or_what_needs_two() -> None:
    tasks = [*demo.CONTRIBUTORS.values()]
    assert len({*tasks}) == 6
    assert all(contributed(every()[name]) for name in tasks)
    assert not {*tasks} & {*demo.PUBLIC}
    assert split()[demo.BOTH] == "tuning"  # what confirms is not looked at
    assert {*demo.PAIR} < {*demo.CONTRIBUTORS}


def test_public_text_is_not_of_big_bench() -> None:
    assert "bigbench" not in sources(*demo.PUBLIC)


def test_every_machine_can_have_what_it_reads() -> None:
    kinds = {find(name).kind for name in sources(*demo.CONTRIBUTORS.values(), demo.BOTH, *demo.PUBLIC)}
    assert kinds <= {"wheel", "sdist", "installed"}


def test_what_is_missing_is_named_once_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "is_here", lambda name: name not in ("bigbench", "emoji"))
    with pytest.raises(Refused, match="not here: bigbench, emoji") as refused:
        demo.story()
    assert refused.value.code is Code.DATA_UNREADABLE
    assert "make real" in refused.value.hint
