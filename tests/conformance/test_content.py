"""The cases that wait for a verdict, as far as content decides: by the check that a worker starts, without one."""

from pathlib import Path

import pytest

from coordinator.admission.check import check_content
from coordinator.conformance.cases import numbers, tensors
from coordinator.conformance.draft import Draft
from protocol.bundle import ADAPTER_WEIGHTS, ENVELOPE
from protocol.errors import Code, Refused
from tests.conformance import samples

CONTENT = [
    pytest.param(name, fault.write, fault.code, id=f"{name[:2]}-{fault.name}")
    for name, faults in tensors.FAULTS.items()
    for fault in faults
]
NUMBERS = [
    pytest.param(change, code, id=name)
    for name, (change, code) in numbers.FAULTS.items()
    if code is not Code.NORM_LIMIT  # for which the base is needed
]


def found(draft: Draft, folder: Path) -> Code | None:
    """Check a bundle's content, and return the code of the refusal."""
    for name, content in draft.contents.items():
        (folder / name).write_bytes(content)
    (folder / ENVELOPE).write_bytes(draft.envelope)
    (folder / "pool.json").write_bytes(samples.POOL.envelope)
    try:
        check_content(folder, folder / "pool.json")
    except Refused as refused:
        return refused.code if refused.hint else None
    return None


@pytest.mark.parametrize(("name", "write", "code"), CONTENT)
def test_a_file_that_is_none_is_refused(name: str, write: tensors.Spoiled, code: Code, tmp_path: Path) -> None:
    draft = samples.draft(tensors.label(name, "x"))
    assert found(tensors.spoiled(draft, name, write), tmp_path) is code


@pytest.mark.parametrize(("change", "code"), NUMBERS)
def test_numbers_and_cards_that_no_expert_has_are_refused(change: numbers.Change, code: Code, tmp_path: Path) -> None:
    assert found(change(samples.draft()), tmp_path) is code


def test_an_honest_bundle_passes(tmp_path: Path) -> None:
    assert found(samples.draft(), tmp_path) is None


def test_labels_are_names() -> None:
    long = tensors.label(ADAPTER_WEIGHTS, "Ünlike ANY/name\x1b" * 9)
    assert samples.draft(long).facts["name"] == long
