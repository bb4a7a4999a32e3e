"""What operators decide together, carried out once; a pool whose root names no operators leaves it to whoever types."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from coordinator.registry import journal
from coordinator.workspace.context import Opened
from protocol.errors import Code, Refused, from_os_error
from protocol.files.atomic import write_whole
from protocol.roles.acts import Verb, read_act
from protocol.roles.metadata import operators_of

_DECIDED, _DONE = "decided", "done"


@contextmanager
def decided(
    opened: Opened, verb: Verb, subject: str, file: Path | None, *, about: Collection[str] = (), now: datetime
) -> Iterator[None]:
    """Do what lets something in, if enough operators have signed that it be done; the log tells of both.

    Args:
        opened: The workspace.
        verb: What is done.
        subject: To what: a digest or a key.
        file: The operators' signed act.
        about: First keys of the contributors whom it is about, none of whom has a say in it.
        now: The time.

    Raises:
        Refused: `BAD_SIGNATURE` where operators must sign, `SETTINGS_INVALID` where nobody may, `STATE_CHANGE` for what
            was done already or is another act, or as `read_act`.
    """
    root, registry = opened.roles.root(), opened.registry
    operators = operators_of(root.signed) if root else None
    if operators is None:
        if file is not None:
            what, hint = "The pool's root names no operators.", "Name some with: greylag-coordinator roles draft-root"
            raise Refused(Code.SETTINGS_INVALID, what, hint)
        yield
        return
    if file is None:
        what = f"{operators.threshold} of {len(operators.keys)} operators must sign for this."
        raise Refused(Code.BAD_SIGNATURE, what, f"greylag-coordinator roles decide {verb} {subject} act.json --help")
    try:
        envelope = file.read_bytes()
    except OSError as error:
        raise from_os_error(error) from error
    keys = {key for each in about for key in registry.contributors.keys_of(each)} | {subject}
    barred = {key for key in operators.keys if key.hex in keys}
    digest, said = read_act(envelope, opened.pool, operators, barred=barred, now=now)
    if (said.act, said.subject) != (verb, subject):
        what = f"The operators signed to {said.act} {said.subject[:16]}, not to {verb} {subject[:16]}."
        raise Refused(Code.STATE_CHANGE, what, "Give the act that is about this.")
    steps = {event.step for event in registry.events(digest)}
    if _DONE in steps:
        raise Refused(Code.STATE_CHANGE, f"Act {digest[:16]} was carried out already.", "Have operators decide again.")
    write_whole(opened.workspace.acts / f"{digest}.dsse.json", envelope)
    if not steps:
        with registry.writing() as session:
            journal.record(session, "act", digest, _DECIDED, actor="operator", now=now)
    yield
    with registry.writing() as session:
        journal.record(session, "act", digest, _DONE, actor="operator", now=now)
