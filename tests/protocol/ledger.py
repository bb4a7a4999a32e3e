"""A log in memory that speaks the Log service: honest unless a test meddles with its entries."""

from typing import Any

from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.log import merkle
from protocol.log.checkpoint import Checkpoint, sign_checkpoint
from protocol.log.leaf import LogLeaf
from protocol.log.merkle import Span, leaf_hash
from protocol.signing import Identity
from protocol.v1 import log_pb2
from protocol.v1.log_pb2_grpc import LogServicer
from protocol.wire.grpc_status import to_status
from tests.protocol.samples import CREATED

# gRPC's generated classes name the methods.
# ruff: noqa: N802


class Ledger(LogServicer):
    """Holds `leaves`, a list that tests may change; what witnesses have signed lies in `cosigned`."""

    def __init__(self, pool: Pool, identity: Identity) -> None:
        self.pool, self.identity = pool, identity
        self.leaves: list[bytes] = []
        self.cosigned: list[bytes] = []
        self.tell("pool", pool.digest, "founded")

    def tell(self, kind: str, subject: str, step: str, code: str = "") -> None:
        number = len(self.leaves) + 1
        leaf = LogLeaf(number=number, at=CREATED, kind=kind, subject=subject, step=step, actor="worker", code=code)
        self.leaves.append(leaf.encode())

    @property
    def head(self) -> Checkpoint:
        size = len(self.leaves)
        return sign_checkpoint(self.pool, size, merkle.root(size, dict(self._grown())), self.identity)

    def GetCheckpoint(self, request: Any, context: Any) -> Any:
        return log_pb2.GetCheckpointReply(checkpoint=self.head.note.encode(), cosigned=self.cosigned)

    def GetInclusion(self, request: Any, context: Any) -> Any:
        said = f'"kind":"{request.kind}"', f'"step":"{request.step}"', f'"subject":"{request.subject}"'
        found = [at for at, leaf in enumerate(self.leaves) if all(each in leaf.decode() for each in said)]
        if not found:
            context.abort_with_status(to_status(Refused(Code.LOG_OMISSION, "The log does not say that.")))
        hashes = self._hashes(merkle.inclusion_spans(found[-1], request.size))
        return log_pb2.GetInclusionReply(leaf=self.leaves[found[-1]], index=found[-1], hashes=hashes)

    def GetConsistency(self, request: Any, context: Any) -> Any:
        return log_pb2.GetConsistencyReply(
            hashes=self._hashes(merkle.consistency_spans(request.first, request.second))
        )  # fmt: skip

    def GetLeaves(self, request: Any, context: Any) -> Any:
        return log_pb2.GetLeavesReply(leaves=self.leaves[request.start :][: request.count])

    def AddCosignature(self, request: Any, context: Any) -> Any:
        self.cosigned.append(request.checkpoint)
        return log_pb2.AddCosignatureReply()

    def _grown(self) -> Any:
        return merkle.grow(0, [leaf_hash(leaf) for leaf in self.leaves], {})

    def _hashes(self, spans: list[Span]) -> list[bytes]:
        hashes = dict(self._grown())
        return [merkle.span_hash(span, hashes) for span in spans]
