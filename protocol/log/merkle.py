"""The Merkle tree of RFC 9162, section 2.1: hashes, proofs, and their verification.

A proof is made of the hashes of *spans*, runs of leaves that the tree's definition splits off. A span is made of
*perfect* subtrees, of 2^level leaves each, whose hashes never change once their leaves are there: whoever stores those
finds any proof, and any earlier root, with as many of them as the tree has levels, twice.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

EMPTY_ROOT = sha256(b"").digest()
"""Root of a tree without leaves."""


class Subtree(NamedTuple):
    """A perfect subtree: the leaves from `position * 2**level` to before `(position + 1) * 2**level`."""

    level: int
    position: int

    @property
    def number(self) -> int:
        """Its place when a tree's nodes are read from left to right: leaves are even, and no two share one."""
        return ((2 * self.position + 1) << self.level) - 1


class Span(NamedTuple):
    """The leaves from one index to before another, as the tree's definition splits them off."""

    begin: int
    end: int


def leaf_hash(leaf: bytes) -> bytes:
    """Hash a leaf."""
    return sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees side by side."""
    return sha256(b"\1" + left + right).digest()


def completed(index: int) -> list[Subtree]:
    """List the perfect subtrees that are whole once a leaf is there, smallest first; the leaf itself is one."""
    ones = (index ^ (index + 1)).bit_length() - 1
    return [Subtree(level, index >> level) for level in range(ones + 1)]


def left_of(subtree: Subtree) -> Subtree:
    """Return the left half of a subtree of more than one leaf."""
    return Subtree(subtree.level - 1, 2 * subtree.position)


def perfect(span: Span) -> list[Subtree]:
    """Split a span into perfect subtrees, largest first."""
    found, begin = [], span.begin
    while begin < span.end:
        level = (span.end - begin).bit_length() - 1
        found.append(Subtree(level, begin >> level))
        begin += 1 << level
    return found


def span_hash(span: Span, hashes: Mapping[Subtree, bytes]) -> bytes:
    """Hash a span by its perfect subtrees."""
    *larger, smallest = perfect(span)
    found = hashes[smallest]
    for subtree in reversed(larger):
        found = node_hash(hashes[subtree], found)
    return found


def inclusion_spans(index: int, size: int) -> list[Span]:
    """List the spans whose hashes prove that a leaf is in the tree of some size: PATH of RFC 9162, 2.1.3.1."""
    begin, end, found = 0, size, list[Span]()
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            found.append(Span(middle, end))
            end = middle
        else:
            found.append(Span(begin, middle))
            begin = middle
    return found[::-1]


def consistency_spans(first: int, second: int) -> list[Span]:
    """List the spans whose hashes prove that a tree continues a smaller one: PROOF of RFC 9162, 2.1.4.1."""
    if first in (0, second):
        return []
    begin, end, found = 0, second, list[Span]()
    while end > first:
        middle = begin + _split(end - begin)
        if first <= middle:
            found.append(Span(middle, end))
            end = middle
        else:
            found.append(Span(begin, middle))
            begin = middle
    if begin:
        found.append(Span(begin, end))
    return found[::-1]


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Verify that a leaf, given by its hash, is in a tree: RFC 9162, 2.1.3.2."""
    if not 0 <= index < size:
        return False
    found = leaf
    for other, is_left in zip(proof, _sides(index, size - 1, len(proof)), strict=False):
        found = node_hash(other, found) if is_left else node_hash(found, other)
    return len(proof) == len(inclusion_spans(index, size)) and found == root


def continues(first: int, first_root: bytes, second: int, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Verify that a tree of size `second` holds all of a tree of size `first`, in its order: RFC 9162, 2.1.4.2."""
    if not 0 <= first <= second or len(proof) != len(consistency_spans(first, second)):
        return False
    if first == 0:
        return first_root == EMPTY_ROOT
    if first == second:
        return first_root == second_root
    start, *path = proof if first & (first - 1) else (first_root, *proof)
    index, last = first - 1, second - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    old = new = start
    for other, is_left in zip(path, _sides(index, last, len(path)), strict=True):
        old = node_hash(other, old) if is_left else old
        new = node_hash(other, new) if is_left else node_hash(new, other)
    return old == first_root and new == second_root


def grow(index: int, leaves: Iterable[bytes], hashes: Mapping[Subtree, bytes]) -> Iterator[tuple[Subtree, bytes]]:
    """Append leaves, given by their hashes, and yield the perfect subtrees that they complete.

    Args:
        index: How many leaves there are.
        leaves: The new ones.
        hashes: The perfect subtrees of the tree as it is; what is yielded is looked for there no more.
    """
    edge = {subtree: hashes[subtree] for subtree in perfect(Span(0, index))}
    for at, leaf in enumerate(leaves, index):
        found = leaf
        for subtree in completed(at):
            if subtree.level:
                found = node_hash(edge.pop(left_of(subtree)), found)
            yield subtree, found
        edge[subtree] = found


def root(size: int, hashes: Mapping[Subtree, bytes]) -> bytes:
    """Hash a whole tree by its perfect subtrees."""
    return span_hash(Span(0, size), hashes) if size else EMPTY_ROOT


def _split(size: int) -> int:
    """The largest power of two below a size of two or more."""
    return 1 << ((size - 1).bit_length() - 1)


def _sides(index: int, last: int, length: int) -> Iterator[bool]:
    """Tell, level by level, whether a proof's hash stands to the left of the node at an index."""
    for _ in range(length):
        if index & 1 or index == last:
            yield True
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            yield False
        index, last = index >> 1, last >> 1
