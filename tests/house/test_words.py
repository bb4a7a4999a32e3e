"""One word, one meaning: no two public classes share a name."""

import ast
from collections import defaultdict
from pathlib import Path

from tests.house.sources import ROOMS, ROOT, python_files


def shared(sources: dict[str, str]) -> dict[str, list[str]]:
    """Name the public classes that several files define."""
    found = defaultdict(list)
    for place, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(place)
    return {name: places for name, places in found.items() if len(places) > 1}


def test_no_two_public_classes_share_a_name() -> None:
    def place(path: Path) -> str:
        return str(path.relative_to(ROOT))

    assert shared({place(path): path.read_text() for path in python_files(*ROOMS)}) == {}


def test_a_shared_name_is_found_out() -> None:
    assert shared({"a": "class Plan: ...\nclass _Own: ...", "b": "class Plan: ...\nclass _Own: ..."}) == {
        "Plan": ["a", "b"]
    }
