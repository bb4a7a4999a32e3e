"""The golden corpora are read as their lines say, and are those that their script makes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.conformance.draft import Draft
from protocol import bundle, documents, tensors
from protocol.errors import Refused
from tests.conformance import corpus, samples

UPDATE = os.environ.get("GREYLAG_UPDATE") == "1"
DRAFT: Draft = samples.draft()


def _tensors(expected: Callable[[], dict[str, tensors.TensorInfo]]) -> Callable[[bytes, Path], object]:
    def check(content: bytes, folder: Path) -> object:
        (folder / "file.safetensors").write_bytes(content)
        return tensors.check(folder / "file.safetensors", expected())

    return check


SPEC = bundle.read_manifest(DRAFT.envelope).spec
READERS: dict[str, Callable[[bytes, Path], object]] = {
    "enrolments": lambda content, _: documents.read_enrolment(content),
    "bundles": lambda content, _: bundle.read_manifest(content),
    "weights": _tensors(lambda: tensors.adapter_tensors(SPEC)),
    "gates": _tensors(lambda: tensors.gate_tensors(SPEC)),
}


@pytest.mark.parametrize("name", corpus.CORPORA)
def test_a_corpus_is_what_its_script_makes(name: str) -> None:
    made = corpus.make(name)
    if UPDATE:
        corpus.write(name, made)
    assert corpus.read(name) == made, "write it again with GREYLAG_UPDATE=1"
    assert len({entry.name for entry in made}) == len(made)


@pytest.mark.parametrize("name", corpus.CORPORA)
def test_every_line_is_read_as_it_says(name: str, tmp_path: Path) -> None:
    read, wrong = READERS[name.partition("/")[2]], []
    for entry in corpus.read(name):
        try:
            read(entry.content, tmp_path)
            found = ""
        except Refused as refused:
            found = refused.code.name
        if found != entry.code:
            wrong.append((entry.name, entry.code, found))
    assert wrong == []


def test_the_corpora_are_small_and_hold_both_sides() -> None:
    assert sum(corpus.path_of(name).stat().st_size for name in corpus.CORPORA) < 200_000
    assert len(corpus.read("reject/bundles")) > 400
    assert all(bool(entry.code) == name.startswith("reject/") for name in corpus.CORPORA for entry in corpus.read(name))
