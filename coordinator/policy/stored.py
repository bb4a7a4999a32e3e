"""How many bytes of one contributor's are kept: of what may still be of use, and of what was refused."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from coordinator.policy.lifecycle import Standing
from protocol.documents import timestamp
from protocol.errors import Code, Refused


@dataclass(frozen=True)
class StoredLimits:
    """What is kept of one contributor's bundles."""

    kept_bytes: int = 64 << 30
    """Of those that are neither refused nor yanked; superseded ones are, since earlier releases list them."""
    refused_bytes: int = 8 << 30
    """Of those that were refused or yanked and came in the last `refused_days`."""
    refused_days: float = 7.0
    """After so many days the bytes of what was refused go; so long an operator may look at them."""

    def horizon(self, now: datetime) -> str:
        """Tell from when on what is refused is kept."""
        return timestamp(now - timedelta(days=self.refused_days))

    def check(self, standing: Standing, new_bytes: int, *, now: datetime) -> None:
        """Refuse a bundle of so many bytes that a contributor has no room for (`QUOTA`)."""
        if standing.kept_bytes + new_bytes > self.kept_bytes:
            what = f"This contributor's bundles have {standing.kept_bytes} bytes here, this one has {new_bytes}"
            hint = "Ask the pool's operator for more room."
            raise Refused(Code.QUOTA, f"{what}; {self.kept_bytes} are kept of one contributor.", hint)
        refused = sum(size for received, size in standing.refused if received >= self.horizon(now))
        if refused and refused + new_bytes > self.refused_bytes:
            what = f"{refused} bytes of this contributor's were refused in the last {self.refused_days:g} days"
            hint = "Wait some days, and see to what the verdicts said."
            raise Refused(Code.QUOTA, f"{what}, and this one has {new_bytes}; {self.refused_bytes} are taken.", hint)


USUAL = StoredLimits()
