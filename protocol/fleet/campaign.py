"""What a campaign is on the wire: a signed order, an app bundle that holds no code, and a signed decision.

A node obeys an order only if the key with that duty signed it, so whoever reaches Flower's server still asks nothing
of anybody. The app bundle is what Flower calls a FAB: its digest stands in the pool's policy, its code is the
installed package, and nothing in it is ever imported.
"""

import hashlib
import io
import zipfile
from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from protocol import statement
from protocol.documents import Duty, OfPool, Pool, read_of_pool, read_timestamp, sign, timestamp
from protocol.errors import Code, Refused
from protocol.release import MAX_CALIBRATION_BYTES, CalibrationFile
from protocol.signing import Identity, Signed
from protocol.spec import Line, Sha256, Timestamp, Version
from protocol.statement import Strict

ORDER_TYPE = "https://greylag.org/campaign/v1"
DECISION_TYPE = "https://greylag.org/decision/v1"
CLIENT_APP = "client.daemon.app:make_app"
"""What makes a node's app, by its name in the installed package."""
# Both names are labels, part of the app's digest that pools have signed: they stay, wherever the code moves.
_APP = f"""\
[project]
name = "campaign"
version = "1.0.0"
description = "Names the campaigns of Greylag; the code is the installed package's."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "greylag"

[tool.flwr.app.components]
serverapp = "coordinator.fleet.drive:Driver"
clientapp = "{CLIENT_APP}"
"""
Kind = Literal["info", "train", "evaluate", "calibrate"]
"""What a campaign may ask of a node."""
KINDS: tuple[Kind, ...] = get_args(Kind)
Strategy = Literal["fedavg", "fedmedian", "krum"]
"""How answers are put together: the mean, the median of each number, or the one that most others are near to."""


class Privacy(Strict):
    """Differential privacy for whole contributors: nodes clip what they learnt, the coordinator adds noise to the mean.

    Source: McMahan and others, "Learning Differentially Private Recurrent Language Models", arXiv 1710.06963.
    """

    clipping_norm: Annotated[float, Field(gt=0)]
    """Longest change of all numbers together that a node may answer with in a round (L2)."""
    noise_multiplier: Annotated[float, Field(gt=0)]
    """Standard deviation of the noise on the sum, in clipping norms."""
    max_epsilon: Annotated[float, Field(gt=0)]
    """The budget: what all rounds of all campaigns of the pool may come to."""
    delta: Annotated[float, Field(gt=0, lt=1)]


class Calibrating(Strict):
    """How routers are calibrated, and which round this is."""

    strategy: Strategy
    rounds: Annotated[int, Field(ge=1, le=1000)]
    number: Annotated[int, Field(ge=1)]
    """This round."""
    round_minutes: Annotated[float, Field(gt=0)]
    """Who has not answered then is late."""
    steps: Annotated[int, Field(ge=1, le=100_000)]
    """Steps of gradient descent that a node takes in a round."""
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    start: CalibrationFile | None
    """What the round starts from; null for zeros."""
    numbers: Annotated[int, Field(ge=1, le=MAX_CALIBRATION_BYTES // 4)]
    """How many an answer holds: a bias for each module and expert, then a log temperature for each module."""
    privacy: Privacy | None = None

    @model_validator(mode="after")
    def _is_accounted_for(self) -> "Calibrating":
        if self.number > self.rounds:
            raise ValueError("the round comes after the last")
        if self.privacy is not None and self.strategy != "fedavg":
            raise ValueError("noise is accounted for where answers are averaged (fedavg), and nowhere else")
        return self


class Order(Strict):
    """What the pool asks of its nodes, until when; signed by the key of orders."""

    version: Version = 1
    pool: Sha256
    number: Annotated[int, Field(ge=1)]
    kind: Kind
    candidate: Sha256 | None = None
    """Digest of the candidate release to evaluate or calibrate."""
    release: Sha256 | None = None
    """Digest of the newest release, which is calibrated where there is no candidate."""
    calibrating: Calibrating | None = None
    created: Timestamp
    expires: Timestamp

    @model_validator(mode="after")
    def _is_whole(self) -> "Order":
        named = (self.candidate is not None, self.release is not None, self.calibrating is not None)
        allowed = {"evaluate": [(True, False, False)], "calibrate": [(True, False, True), (False, True, True)]}
        if named not in allowed.get(self.kind, [(False, False, False)]):
            raise ValueError(f"{self.kind} names other things")
        return self

    @property
    def digest(self) -> str:
        """Names all that is asked, the same in every round of a campaign."""
        first, task = self, self.calibrating
        if task is not None:
            first = self.model_copy(update={"calibrating": task.model_copy(update={"number": 1, "start": None})})
        return hashlib.sha256(first.model_dump_json().encode()).hexdigest()


class Decision(OfPool):
    """Whether a candidate becomes the newest release; signed by the key of releases, kept with its reason."""

    version: Version = 1
    candidate: Sha256
    promoted: bool
    by: Literal["rule", "operator"]
    reason: Annotated[Line, Field(min_length=1, max_length=500)]
    campaign: Annotated[int, Field(ge=1)] | None = None
    """The campaign whose answers were weighed."""
    created: Timestamp


def sign_order(order: Order, identity: Identity) -> bytes:
    """Sign an order; its subject is the pool."""
    return sign(ORDER_TYPE, {"pool": order.pool}, order, identity)


def read_order(envelope: bytes, pool: Pool, *, now: datetime) -> Order:
    """Verify an order of a pool.

    Raises:
        Refused: `ORDER_INVALID` for whatever is not an order of this pool, `VERSION_UNKNOWN` for one that only another
            version of this program understands, `CLOCKS_APART` for one that is over by this clock.
    """
    try:
        payload = Signed.parse(envelope).verify(pool.key(Duty.ORDERS))
        predicate = statement.parse(payload, ORDER_TYPE).predicate
    except Refused as error:
        raise Refused(Code.ORDER_INVALID, f"The order is not to be trusted: {error.message}") from error
    try:
        order = statement.read(Order, predicate, what="it")
    except Refused as error:
        what = f"This version of the program does not understand the pool's order ({error.message.rstrip('.')})."
        raise Refused(Code.VERSION_UNKNOWN, what, "Install the version that the pool's operator runs.") from error
    if order.pool != pool.digest:
        raise Refused(Code.ORDER_INVALID, "The order is for another pool.", "Tell the pool's operator.")
    if read_timestamp(order.expires) < now:
        what = f"The order ended at {order.expires}; this machine's clock says {timestamp(now)}."
        raise Refused(Code.CLOCKS_APART, what, "Check the clock.")
    return order


def sign_decision(decision: Decision, identity: Identity) -> bytes:
    """Sign a decision; its subject is the candidate."""
    return sign(DECISION_TYPE, {"candidate": decision.candidate}, decision, identity)


def read_decision(envelope: bytes, pool: Pool) -> Decision:
    """Verify a decision of a pool; refuses as `read_of_pool`."""
    return read_of_pool(Decision, DECISION_TYPE, envelope, pool, Duty.RELEASES)[1]


def app_bundle() -> bytes:
    """Build the one app bundle that campaigns run under; the same bytes on every machine."""
    manifest = f"pyproject.toml,{hashlib.sha256(_APP.encode()).hexdigest()},{8 * len(_APP.encode())}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, text in (("pyproject.toml", _APP), (".info/CONTENT", manifest)):
            entry = zipfile.ZipInfo(name)  # 1980-01-01, whatever the clock says
            entry.create_system = 3
            archive.writestr(entry, text)
    return buffer.getvalue()


APP_DIGEST = hashlib.sha256(app_bundle()).hexdigest()
"""What a pool's policy names to allow campaigns."""
