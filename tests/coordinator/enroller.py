"""Runs in a process of its own, so it imports no model code."""

from datetime import datetime

from coordinator.registry.registry import Registry
from protocol.documents import Enrolment
from protocol.signing import Identity
from tests.coordinator.contributor import NOW


def enrol_many(url: str, pool: str, worker: int, count: int, now: datetime) -> None:
    registry = Registry.open(url)
    for number in range(count):
        key = Identity.generate().public.hex
        document = Enrolment(pool=pool, name=f"w{worker}-{number}", key=key, created=NOW)
        registry.contributors.enrol(document, b"", state="active", now=now)
    registry.close()
