"""What a contributor lets campaigns do: daemon.toml, read anew before every campaign.

data = "notes.jsonl"              the private file; a relative path starts at the workspace

[campaigns]                       auto, ask (a person allows each one), or never
info = "auto"
train = "ask"
evaluate = "ask"
calibrate = "ask"                 sends numbers that are learnt from the data, as a bundle does

[limits]
hours = ["22:00-06:00"]           local time; none: always
max_minutes = 240.0               of one campaign; then it is stopped
min_free_memory_mb = 2048         less than this free, and the campaign has to wait
max_download_mb = 1024            of one campaign

[privacy]                         without it, training promises nothing; it asks for greylag[private]
epsilon = 8.0                     what one training promises to every example, as `greylag-client train --epsilon`
delta = 1e-5                      far less than one in the examples
clip = 1.0                        norm to which the gradient of each example is clipped
max_epsilon = 8.0                 what all trainings in this workspace may come to; one that goes beyond is refused

[watch]
retrain = "never"                 auto: train and submit again when the file has changed
changed = 0.2                     share of its lines that must be new or gone

[attestation]                     shown to the pool's operator whenever the daemon connects
kind = "application/x-sev-snp"    by which a verifier knows it
file = "report.bin"               what the platform signed of `greylag-client daemon --challenge`
"""

import re
import tomllib
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from client.data.columns import check_file
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.fleet.campaign import Kind
from protocol.spec import Line, Promise
from protocol.statement import first_invalid

Consent = Literal["auto", "ask", "never"]
YOURS = "you have to allow or decline it"
"""Why a campaign waits that only a person can help."""
_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")


def _is_span(text: str) -> str:
    if not _HOURS.fullmatch(text):
        raise ValueError('hours are written as "22:00-06:00"')
    return text


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CampaignConsent(_Section):
    """Consent by kind."""

    info: Consent = "auto"
    train: Consent = "ask"
    evaluate: Consent = "ask"
    calibrate: Consent = "ask"


class CampaignLimits(_Section):
    """Bounds that hold for every campaign."""

    hours: tuple[Annotated[str, AfterValidator(_is_span)], ...] = ()
    max_minutes: Annotated[float, Field(gt=0)] = 240.0
    min_free_memory_mb: Annotated[int, Field(ge=0)] = 0
    max_download_mb: Annotated[int, Field(ge=0)] = 1024


class PrivacyBudget(_Section):
    """What training promises; two trainings on one example promise it the sum."""

    epsilon: Annotated[float, Field(gt=0, le=1000)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    clip: Annotated[float, Field(gt=0, le=1000)] = 1.0
    max_epsilon: Annotated[float, Field(gt=0)]

    @property
    def promise(self) -> Promise:
        """Of one training."""
        return Promise(epsilon=self.epsilon, delta=self.delta, clip=self.clip)


class Watching(_Section):
    """What happens when the private file changes."""

    retrain: Literal["auto", "never"] = "never"
    changed: Annotated[float, Field(gt=0)] = 0.2


class ShownEvidence(_Section):
    """What the machine says of itself."""

    kind: Annotated[Line, StringConstraints(min_length=1, max_length=200)]
    file: Path


class DaemonPolicy(_Section):
    """The whole file."""

    data: Path
    campaigns: CampaignConsent = CampaignConsent()
    limits: CampaignLimits = CampaignLimits()
    privacy: PrivacyBudget | None = None
    watch: Watching = Watching()
    attestation: ShownEvidence | None = None


def read_policy(path: Path) -> DaemonPolicy:
    """Read daemon.toml.

    Raises:
        Refused: `SETTINGS_INVALID`, naming the entry.
    """
    try:
        policy = DaemonPolicy.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"{path} cannot be read: {error.strerror}.",
            "Make one with: greylag-client daemon --data FILE",
        ) from error
    except ValidationError as error:
        name, reason = first_invalid(error)
        raise Refused(
            Code.SETTINGS_INVALID, f"The entry {name} of {path} is wrong: {reason}.", "Correct it."
        ) from error
    except ValueError as error:
        raise Refused(Code.SETTINGS_INVALID, f"{path} is not TOML: {error}.", "Correct the file.") from error
    moved: dict[str, object] = {"data": path.parent / policy.data}
    if shown := policy.attestation:
        moved["attestation"] = shown.model_copy(update={"file": path.parent / shown.file})
    return policy.model_copy(update=moved)


def check_data(path: Path, data: Path) -> None:
    """Refuse another private file than the one that daemon.toml names.

    Raises:
        Refused: `SETTINGS_INVALID`, or as `read_policy`.
    """
    if (known := read_policy(path).data).resolve() != data.resolve():
        raise Refused(
            Code.SETTINGS_INVALID,
            f"{path} names the private file {known}, not {data}.",
            "Correct it there, or leave --data out.",
        )


def write_policy(path: Path, data: Path) -> None:
    """Write a first daemon.toml: it tells what it has, and asks before anything else.

    Raises:
        Refused: `DATA_UNREADABLE`.
    """
    check_file(data)
    policy = DaemonPolicy(data=data.resolve())
    write_whole(path, tomli_w.dumps(policy.model_dump(mode="json", exclude_none=True)).encode())


class Consented(NamedTuple):
    """What a policy says of a campaign."""

    state: str
    """`done` to go ahead, `later`, or `failed`: the state of the answer."""
    why: str = ""
    """For the contributor."""


def judge(
    policy: DaemonPolicy, kind: Kind, *, allowed: bool | None, now: datetime, free_memory_mb: int, overran: bool
) -> Consented:
    """Decide about a campaign, at a local time.

    A person may have allowed it or not; one that was stopped here because it took too long has overrun.
    """
    consent: Consent = getattr(policy.campaigns, kind)
    hours, minutes, memory_mb = policy.limits.hours, policy.limits.max_minutes, policy.limits.min_free_memory_mb
    hindrances = (
        (consent == "never", "failed", f'daemon.toml says {kind} = "never"'),
        (allowed is False, "failed", "you declined it"),
        (overran, "failed", f"it took longer than the {minutes:g} minutes of daemon.toml"),
        (consent == "ask" and allowed is None, "later", YOURS),
        (
            bool(hours) and not any(_within(span, now.time()) for span in hours), "later",
            f"daemon.toml allows it at {' and '.join(hours)}",
        ),
        (
            free_memory_mb < memory_mb, "later",
            f"less than {memory_mb} MB of memory are free, which daemon.toml asks for",
        ),
    )  # fmt: skip
    return next((Consented(state, why) for applies, state, why in hindrances if applies), Consented("done"))


def _within(span: str, now: time) -> bool:
    begin, end = (time.fromisoformat(part) for part in span.split("-"))
    return begin <= now < end if begin <= end else now >= begin or now < end
