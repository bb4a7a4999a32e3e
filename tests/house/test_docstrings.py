"""Everything public says what it is, and what carries tensors says of which shape."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.house.sources import ROOMS, ROOT, python_files

# Letters of the legend in router/__init__.py, numbers, what min() makes of them, and ... for leading axes.
AXIS = r"(?:\.\.\.|[bstdornk]|[0-9]+|min\([bstdornk], [bstdornk]\))"
SHAPE = re.compile(rf"\[{AXIS}(?:, {AXIS})*\]")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Public(NamedTuple):
    """Something that a reader may use, under its name."""

    name: str
    node: ast.Module | ast.ClassDef | Function


def public(module: ast.Module) -> Iterator[Public]:
    """Walk over a module, and its public classes and functions; what stands inside a function is nobody's business."""
    yield Public("module", module)
    for node in module.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield Public(node.name, node)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.ClassDef | Function) and not inner.name.startswith("_"):
                    yield Public(f"{node.name}.{inner.name}", inner)


def undocumented(module: ast.Module) -> list[str]:
    return [name for name, node in public(module) if not ast.get_docstring(node)]


def is_tensor(annotation: ast.expr | None) -> bool:
    return annotation is not None and "Tensor" in re.findall(r"\w+", ast.unparse(annotation))


def shapeless(module: ast.Module) -> list[str]:
    """Name the functions, and the fields of classes, that carry tensors without a word on their shape."""
    found = []
    for name, node in public(module):
        if isinstance(node, Function):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            carries = any(is_tensor(each.annotation) for each in arguments) or is_tensor(node.returns)
            if carries and not SHAPE.search(ast.get_docstring(node) or ""):
                found.append(name)
        if isinstance(node, ast.ClassDef):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and is_tensor(field.annotation):
                    text = after.value if isinstance(after, ast.Expr) else None
                    said = text.value if isinstance(text, ast.Constant) else ""
                    if not SHAPE.search(str(said)):
                        found.append(f"{name}.{ast.unparse(field.target)}")
    return found


@pytest.mark.parametrize("room", [*ROOMS, "deploy"])
def test_everything_public_says_what_it_is(room: str) -> None:
    missing = {path.relative_to(ROOT): undocumented(ast.parse(path.read_text())) for path in python_files(room)}
    assert {path: names for path, names in missing.items() if names} == {}


@pytest.mark.parametrize("path", python_files("router"), ids=lambda path: path.stem)
def test_tensors_have_shapes(path: Path) -> None:
    assert shapeless(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("source", "bare", "without_shape"),
    [
        ("def f(u: Tensor): ...", ["module", "f"], ["f"]),
        ('"""M."""\ndef f(u: Tensor):\n    """Takes u [t, d]."""', [], []),
        ('"""M."""\ndef f(u: Tensor):\n    """Takes a list [of things]."""', [], ["f"]),
        ('"""M."""\ndef f() -> dict[str, torch.Tensor] | None:\n    """Give."""', [], ["f"]),
        ('"""M."""\nclass C:\n    """C."""\n    def m(self, *, u: "Tensor"): ...', ["C.m"], ["C.m"]),
        ('"""M."""\nclass C:\n    """C."""\n    a: Tensor\n    b: Tensor\n    """[n, d]."""', [], ["C.a"]),
        ('"""M."""\ndef _f(u: Tensor): ...', [], []),
    ],
)
def test_the_rules_can_fail(source: str, bare: list[str], without_shape: list[str]) -> None:
    module = ast.parse(source)
    assert undocumented(module) == bare
    assert shapeless(module) == without_shape
