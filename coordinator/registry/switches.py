"""What an operator has shut for now."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.policy.switches import Switch, check_open
from coordinator.registry import journal
from coordinator.registry.tables import SwitchRow
from coordinator.registry.transactions import Subject


class Switches(Subject):
    """Every switch that is thrown; none in a new registry."""

    def thrown(self) -> dict[Switch, str]:
        """Say which are thrown, and why."""
        with self._registry.reading() as session:
            return read_switches(session)

    def throw(self, switch: Switch, reason: str, *, pool: str, now: datetime) -> None:
        """Shut something; another reason takes the place of the first."""
        with self._registry.writing(though_closed=True) as session:
            session.merge(SwitchRow(name=switch, reason=reason))
            journal.record(session, "pool", pool, f"{switch} off", actor="operator", now=now)

    def reset(self, switch: Switch, *, pool: str, now: datetime) -> None:
        """Open it again."""
        with self._registry.writing(though_closed=True) as session:
            if row := session.get(SwitchRow, switch):
                session.delete(row)
                journal.record(session, "pool", pool, f"{switch} on", actor="operator", now=now)

    def check(self, *switches: Switch) -> None:
        """Let nobody through while one of some switches is thrown (`CLOSED`)."""
        check_open(self.thrown(), *switches)


def read_switches(session: Session) -> dict[Switch, str]:
    """As `Switches.thrown`, inside a transaction."""
    return {Switch(row.name): row.reason for row in session.scalars(select(SwitchRow))}
