"""What operators decide together: signed by as many of those whom a root names as it says, for one act on one thing."""

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import Field

from protocol import statement
from protocol.documents import OfPool, Pool, read_timestamp, sign, timestamp
from protocol.errors import Code, Refused
from protocol.roles.metadata import Keys
from protocol.signing import Identity, PublicKey, Signed
from protocol.spec import Line, Sha256, Timestamp

ACT_TYPE = "https://greylag.org/act/v1"
Verb = Literal["accept", "unblock", "promote", "approve", "recover", "invite"]
VERBS: tuple[str, ...] = get_args(Verb)
"""What lets something or somebody in; to shut out, one operator is enough."""


class OperatorAct(OfPool):
    """One thing that operators let be done, until some time, once."""

    act: Verb
    subject: Sha256
    """The digest of a bundle or candidate, a contributor's key (of a recovery, the new one), or, to make an invite, the
    pool's digest."""
    reason: Annotated[Line, Field(min_length=1, max_length=500)]
    created: Timestamp
    expires: Timestamp


def sign_act(act: OperatorAct, identity: Identity) -> bytes:
    """Sign an act, as the first of several operators."""
    return sign(ACT_TYPE, {"pool": act.pool}, act, identity)


def countersign_act(envelope: bytes, identity: Identity) -> tuple[bytes, OperatorAct]:
    """Add an operator's signature to an act, and say what it is (any code of an envelope)."""
    signed = Signed.parse(envelope)
    said = statement.read(OperatorAct, statement.parse(signed.payload, ACT_TYPE).predicate, what="The act")
    return identity.countersign(signed), said


def read_act(
    envelope: bytes, pool: Pool, operators: Keys, *, barred: Collection[PublicKey], now: datetime
) -> tuple[str, OperatorAct]:
    """Verify that enough operators have signed an act, and return its digest and what it says.

    Args:
        envelope: The act.
        pool: The pool.
        operators: Who may sign, and how many must.
        barred: Keys of whoever it is about: nobody decides of what is their own.
        now: The time.

    Raises:
        Refused: `WRONG_POOL`, `BAD_SIGNATURE` for too few, `CLOCKS_APART` for what is over, or any code of an envelope.
    """
    signed = Signed.parse(envelope)
    said = statement.read(OperatorAct, statement.parse(signed.payload, ACT_TYPE).predicate, what="The act")
    if said.pool != pool.digest:
        raise Refused(Code.WRONG_POOL, "The operators' act is for another pool.", "Sign one for this pool.")
    by = [key for key in operators.keys if key.keyid in signed.keyids]
    for key in by:
        signed.verify(key)
    count = len(set(by) - set(barred))
    if count < operators.threshold:
        own = " An operator's own bundle, key or candidate is for others to decide." if set(by) & set(barred) else ""
        what = f"{count} of the {operators.threshold} operators who must sign the act have.{own}"
        raise Refused(Code.BAD_SIGNATURE, what, "Have others sign it: greylag-coordinator roles sign FILE --key KEY")
    if read_timestamp(said.expires) < now:
        what = f"The operators' act ended at {said.expires}; this machine's clock says {timestamp(now)}."
        raise Refused(Code.CLOCKS_APART, what, "Decide again, or check the clock.")
    return signed.digest, said
