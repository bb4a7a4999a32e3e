"""What a request's `model` says: `pool`, `pool@7`, `pool/expert:ada/notes`, `pool@7/method:merged`."""

import re
from typing import NamedTuple

from protocol.errors import Code, Refused
from router.methods import METHODS, find_method
from router.model.releases import Held
from router.query.limits import Allowance

NO_POOL = "base"
"""What a router calls its model before its first release."""
_EXPERT, _METHOD = "expert:", "method:"
_NAME = re.compile(r"(?P<pool>[^/@]+)(?:@(?P<release>[0-9]{1,9}))?(?:/(?P<how>.+))?")


class ModelName(NamedTuple):
    """What is left open is the newest release's to say."""

    release: int | None = None
    method: str | None = None


def read_model(name: str, pool: str) -> ModelName:
    """Read a model's name.

    Raises:
        Refused: `POOL_UNKNOWN`.
    """
    found = _NAME.fullmatch(name)
    how = (found["how"] or "") if found else ""
    if found is None or found["pool"] != pool or (how and not how.startswith((_EXPERT, _METHOD))):
        raise Refused(
            Code.POOL_UNKNOWN,
            f"There is no model {name!r:.200} here.",
            f"Ask for {pool}, {pool}@RELEASE, {pool}/expert:CONTRIBUTOR/NAME or {pool}/method:METHOD; "
            "/v1/models lists them.",
        )
    release = int(found["release"]) if found["release"] else None
    return ModelName(release, how.removeprefix(_METHOD) or None)


def list_models(held: Held, pool: str, allowance: Allowance) -> list[str]:
    """Name what may be asked for: the pool, its releases, each expert of the newest one, and methods."""
    open_ = {held.newest.settings.method, *allowance.methods}
    experts = [expert.full_name for expert in held.newest.pool.experts] if "expert" in open_ else []
    return [
        pool,
        *(f"{pool}@{release}" for release in reversed(held.releases)),
        *(f"{pool}/{_EXPERT}{name}" for name in experts),
        *(f"{pool}/{_METHOD}{method}" for method in METHODS if method in open_),
    ]


def check_there(name: str, held: Held, pool: str) -> None:
    """Refuse a name that nothing answers to.

    Raises:
        Refused: `POOL_UNKNOWN`, `RELEASE_UNKNOWN`, `RELEASE_EXPIRED`, `EXPERT_UNKNOWN` or `METHOD_UNKNOWN`.
    """
    named = read_model(name, pool)
    experts = held.find(named.release).pool
    if named.method is not None:
        find_method(named.method)
        if named.method.startswith(_EXPERT):
            experts.find(named.method.removeprefix(_EXPERT))
