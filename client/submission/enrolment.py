"""A contributor's signed wish to take part."""

from datetime import datetime

from client.workspace.paths import ClientWorkspace
from protocol.documents import ENROLMENT_TYPE, Enrolment, Pool, check_name, read_enrolment, sign, timestamp
from protocol.errors import Refused
from protocol.signing import Identity, PublicKey


def enrol(pool: Pool, name: str, identity: Identity, now: datetime) -> bytes:
    """Sign the introduction of a key under a name.

    Raises:
        Refused: `NAME_MISLEADING`.
    """
    check_name(name)
    enrolment = Enrolment(pool=pool.digest, name=name, key=identity.public.hex, created=timestamp(now))
    return sign(ENROLMENT_TYPE, {"pool": pool.digest}, enrolment, identity)


def enrolled(workspace: ClientWorkspace, pool: Pool, name: str, key: PublicKey) -> bytes | None:
    """Return the stored enrolment if it still says what the settings say."""
    try:
        envelope = workspace.enrolment_file.read_bytes()
        enrolment = read_enrolment(envelope)
    except (OSError, Refused):
        return None
    return envelope if (enrolment.pool, enrolment.name, enrolment.key) == (pool.digest, name, key.hex) else None
