"""The transparency log: a Merkle tree over what a pool's coordinator did, and signed heads of it."""
