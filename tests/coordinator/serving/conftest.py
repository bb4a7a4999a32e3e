"""A coordinator that is served, and contributors who speak to it."""

from collections.abc import Callable, Iterator

import grpc
import pytest

from coordinator.policy.lifecycle import State
from protocol.errors import GreylagError
from protocol.signing import Identity
from protocol.wire.grpc_status import from_rpc_error
from tests.coordinator.conftest import Served
from tests.coordinator.contributor import Contributor

Join = Callable[..., Contributor]


@pytest.fixture
def join(served: Served) -> Iterator[Join]:
    """Start the coordinator, and make contributors that are enrolled with it."""
    with served.running() as address, grpc.insecure_channel(address) as channel:

        def join(identity: Identity, name: str = "ada") -> Contributor:
            contributor = Contributor(channel, identity)
            contributor.enrol(served.pool, name)
            return contributor

        yield join


def refusal(call: Callable[..., object], *arguments: object) -> GreylagError:
    try:
        call(*arguments)
    except GreylagError as error:
        return error
    except grpc.RpcError as error:
        return from_rpc_error(error, "the coordinator")
    pytest.fail("it was not refused")


def accept(served: Served, digest: str) -> None:
    served.registry.bundles.move(
        digest, State.VERIFIED, State.QUARANTINED, State.ACCEPTED, actor="operator", now=served.clock()
    )
