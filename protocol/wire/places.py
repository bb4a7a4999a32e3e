"""A bound on what is under way at once, and on how much of it one peer may have."""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote

from protocol.errors import Code, Unavailable


class Places:
    """Room for so many at once: half of it for one address, a quarter for one connection.

    Half an address, since many may sit behind one: a university's translator, an operator's own proxy. Where somebody
    with many addresses has taken all that is left, a newcomer is given the oldest place of whichever address has most.
    """

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, Counter[str]()
        self._held: dict[asyncio.Timeout, tuple[str, str]] = {}
        """Whose the places are, network and peer, the oldest first."""

    @asynccontextmanager
    async def one(self, peer: str) -> AsyncIterator[None]:
        """Keep a place for the length of a block (`BUSY` if there is none, or if it is taken back).

        Args:
            peer: Whom for, as gRPC writes it: `ipv4:192.0.2.1:50000`.
        """
        network = network_of(peer)
        shares = {network: self._most // 2, peer: self._most // 4}
        full = len(self._held) >= self._most
        if any(self._taken[who] >= max(share, 1) for who, share in shares.items()) or (
            full and not self._free(network)
        ):
            raise Unavailable(Code.BUSY, "Too much is under way at once, in all or for you.", "Try again in a minute.")
        lease = asyncio.timeout(None)
        try:
            async with lease:
                self._held[lease] = network, peer
                self._taken.update((network, peer))
                try:
                    yield
                finally:
                    self._drop(lease)
        except (TimeoutError, GeneratorExit) as error:  # the latter where a stream of replies waits for its reader
            if not lease.expired():
                raise
            what = "Others, who have less under way than you, needed the place."
            raise Unavailable(Code.BUSY, what, "Try again; files continue.") from error

    def _free(self, network: str) -> bool:
        """Take the oldest place of whoever has most, if that leaves them no worse off than a network that has less."""
        counts = Counter(whose for whose, _ in self._held.values())
        richest, count = counts.most_common(1)[0]
        if count <= counts[network] + 1:
            return False
        oldest = next(lease for lease, (whose, _) in self._held.items() if whose == richest)
        self._drop(oldest)
        oldest.reschedule(asyncio.get_running_loop().time())
        return True

    def _drop(self, lease: asyncio.Timeout) -> None:
        """Count a place no more, unless that was done when it was taken back."""
        for who in self._held.pop(lease, ()):
            self._taken[who] -= 1
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
