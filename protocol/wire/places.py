"""A bound on what is under way at once, and on how much of it one peer may have."""

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from protocol.errors import Code, Unavailable


class Places:
    """Room for so many at once: half of it for one address, a quarter for one connection.

    Half an address, since many may sit behind one: a university's translator, an operator's own proxy. What that
    leaves to somebody with many addresses, deadlines take back.
    """

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, Counter[str]()

    @contextmanager
    def one(self, peer: str) -> Iterator[None]:
        """Keep a place for the length of a block (`BUSY` if there is none).

        Args:
            peer: Whom for, as gRPC writes it: `ipv4:192.0.2.1:50000`.
        """
        shares = {"everybody": self._most, network_of(peer): self._most // 2, peer: self._most // 4}
        if any(self._taken[who] >= max(share, 1) for who, share in shares.items()):
            raise Unavailable(Code.BUSY, "Too much is under way at once, in all or for you.", "Try again in a minute.")
        self._taken.update(shares.keys())
        try:
            yield
        finally:
            self._taken.subtract(shares.keys())
            for who in shares:
                if not self._taken[who]:
                    del self._taken[who]


def network_of(peer: str) -> str:
    """Tell whose a connection is: an IPv4 address, or the 64 bits of an IPv6 address that a provider hands out."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host  # a socket in the file system
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or ipaddress.IPv6Address(int(address) >> 64 << 64)
    return str(address)
