"""The tree against RFC 6962's reference data and the definition of RFC 9162, written down as it stands there."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.log import merkle
from protocol.log.merkle import Span, Subtree, leaf_hash, node_hash

# Leaves and roots of the reference tree of Certificate Transparency's test data, which RFC 9162 keeps.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def slow_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, of leaves' hashes."""
    if not leaves:
        return merkle.EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = max(1 << power for power in range(len(leaves).bit_length()) if 1 << power < len(leaves))
    return node_hash(slow_root(leaves[:k]), slow_root(leaves[k:]))


def slow_inclusion(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) <= 1:
        return []
    k = max(1 << power for power in range(len(leaves).bit_length()) if 1 << power < len(leaves))
    if m < k:
        return [*slow_inclusion(m, leaves[:k]), slow_root(leaves[k:])]
    return [*slow_inclusion(m - k, leaves[k:]), slow_root(leaves[:k])]


def slow_consistency(m: int, leaves: Sequence[bytes], *, whole: bool = True) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [slow_root(leaves)]
    k = max(1 << power for power in range(len(leaves).bit_length()) if 1 << power < len(leaves))
    if m <= k:
        return [*slow_consistency(m, leaves[:k], whole=whole), slow_root(leaves[k:])]
    return [*slow_consistency(m - k, leaves[k:], whole=False), slow_root(leaves[:k])]


def stored(leaves: Sequence[bytes]) -> dict[Subtree, bytes]:
    return dict(merkle.grow(0, leaves, {}))


def proof(spans: list[Span], hashes: dict[Subtree, bytes]) -> list[bytes]:
    return [merkle.span_hash(span, hashes) for span in spans]


def hashes_of(count: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(count)]


def test_roots_are_those_of_the_reference_data() -> None:
    hashes = stored([leaf_hash(leaf) for leaf in LEAVES])
    assert [merkle.root(size, hashes).hex() for size in range(1, 9)] == ROOTS
    assert merkle.root(0, hashes).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


sizes = st.integers(1, 300)


@given(size=sizes, data=st.data())
def test_proofs_are_those_of_the_definition_and_verify(size: int, data: st.DataObject) -> None:
    leaves = hashes_of(size)
    hashes, root = stored(leaves), slow_root(leaves)
    assert merkle.root(size, hashes) == root
    index, first = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    included = proof(merkle.inclusion_spans(index, size), hashes)
    assert included == slow_inclusion(index, leaves)
    assert merkle.is_included(leaves[index], index, size, included, root)
    consistent = proof(merkle.consistency_spans(first, size), hashes)
    assert consistent == slow_consistency(first, leaves)
    assert merkle.continues(first, slow_root(leaves[:first]), size, root, consistent)
    assert merkle.continues(0, merkle.EMPTY_ROOT, size, root, [])


@given(size=st.integers(2, 300), data=st.data())
def test_what_is_changed_does_not_verify(size: int, data: st.DataObject) -> None:
    leaves = hashes_of(size)
    hashes, root = stored(leaves), slow_root(leaves)
    index, first = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size - 1))
    included = proof(merkle.inclusion_spans(index, size), hashes)
    consistent = proof(merkle.consistency_spans(first, size), hashes)
    old = slow_root(leaves[:first])
    other = data.draw(st.integers(0, size - 1).filter(lambda at: at != index))
    assert not merkle.is_included(leaves[other], index, size, included, root)
    assert not merkle.is_included(leaves[index], other, size, included, root)
    assert not merkle.is_included(leaves[index], index, size, [*included, root], root)
    assert not merkle.is_included(leaves[index], index, size, included[:-1], root)
    assert not merkle.is_included(leaves[index], size, size, included, root)
    assert not merkle.is_included(leaves[index], -1, size, included, root)
    for wrong in ([*consistent, root], consistent[:-1], [*consistent[:-1], root]):
        assert not merkle.continues(first, old, size, root, wrong)
    assert not merkle.continues(first, root, size, root, consistent)
    assert not merkle.continues(first, old, size, old, consistent)
    assert not merkle.continues(size, root, first, old, [])
    assert not merkle.continues(-1, old, size, root, [])
    assert not merkle.continues(0, old, size, root, [])


def test_a_proof_that_ends_below_the_root_is_none() -> None:
    (leaf,) = hashes_of(1)
    assert merkle.is_included(leaf, 0, 1, [], leaf)
    assert not merkle.is_included(leaf, 0, 8, [], leaf)


@given(size=sizes, index=st.integers(0, 299), bit=st.integers(0, 255))
def test_a_flipped_bit_is_noticed(size: int, index: int, bit: int) -> None:
    leaves = hashes_of(size)
    index %= size
    root = slow_root(leaves)
    for at, good in enumerate(path := slow_inclusion(index, leaves)):
        flipped = bytes(byte ^ (1 << bit % 8 if place == bit // 8 else 0) for place, byte in enumerate(good))
        assert not merkle.is_included(leaves[index], index, size, [*path[:at], flipped, *path[at + 1 :]], root)


@pytest.mark.parametrize("cut", range(34))
def test_a_tree_grows_in_any_portions(cut: int) -> None:
    leaves = hashes_of(33)
    whole, hashes = stored(leaves), stored(leaves[:cut])
    hashes |= merkle.grow(cut, leaves[cut:], hashes)
    assert hashes == whole


def test_every_subtree_has_a_number_of_its_own() -> None:
    subtrees = list(stored(hashes_of(1000)))
    assert len({subtree.number for subtree in subtrees}) == len(subtrees)
    assert max(subtree.number for subtree in subtrees) < 2000


def test_a_proof_takes_few_subtrees() -> None:
    size = 99_999
    spans = merkle.inclusion_spans(77_777, size) + merkle.consistency_spans(50_001, size)
    assert len({subtree for span in spans for subtree in merkle.perfect(span)}) < 4 * size.bit_length()
