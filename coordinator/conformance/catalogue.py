"""All cases in the order in which they are played, and the codes of the table that no call of a stranger can cause."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatch

from coordinator.conformance.case import Case, Need
from coordinator.conformance.cases import (
    bindings,
    catalog,
    connections,
    enrolments,
    envelopes,
    facts,
    fit,
    log,
    numbers,
    sessions,
    statements,
    successions,
    tensors,
    transport,
)  # fmt: skip
from protocol.errors import Code

_OWN_MACHINE = "Said on the user's or operator's own machine."
_NODE = "Said by a contributor's daemon to its own coordinator, or by one of its campaigns."
_READER = "Said by whoever reads a pool's releases or its log."
_ROUTER = "Said by a router of what it is asked."
UNCAUSED: dict[Code, str] = {
    Code.MESSAGE_TOO_LARGE: "Said by a client, when gRPC itself has refused a message.",
    Code.KEY_TYPE: "No key comes this far that is not 64 digits: SPEC_INVALID.",
    Code.KEY_PENDING: "Only in a pool whose operator approves keys, or pauses one.",
    Code.INVITE: "Only in a pool whose new keys need invites.",
    Code.KIND_UNSUPPORTED: _ROUTER,
    Code.HEADROOM: "A verdict that depends on the base: close to overflow, and yet within the cap on norms.",
    Code.HARMFUL: "A verdict that depends on the operator's rows.",
    Code.PROBE_FAILED: "A verdict that depends on the base: what breaks it is beyond the cap on norms before.",
    Code.NORM_UNUSUAL: "A verdict that depends on the pool's other experts.",
    Code.VALIDATOR_FAILED: "A check that its machine was too small for; no bundle is known that does it.",
    Code.DECLINED: "An operator decides.",
    Code.HELD_BACK: "Contributors' held-out data decide.",
    Code.STATE_CHANGE: "Said to operators.",
    Code.LOG_FORK: "Only to a witness whom the coordinator knows.",
    Code.STORAGE_FULL: "Only on a full disk.",
    Code.STORE_DAMAGED: "Only after bytes were lost.",
    Code.CLOSED: "Only while the operator has closed pool or intake.",
    Code.INTERNAL: "Never, or it is a fault: what fails unexpectedly fails a case.",
    **dict.fromkeys(
        (Code.APP_UNKNOWN, Code.VERSION_UNKNOWN, Code.ORDER_INVALID, Code.CONSENT, Code.EGRESS, Code.CAMPAIGN_UNKNOWN,
         Code.BUDGET_EXHAUSTED), _NODE,
    ),
    **dict.fromkeys(
        (Code.RELEASE_ROLLBACK, Code.RELEASE_FORK, Code.RELEASE_TOO_FAR, Code.RELEASE_EXPIRED, Code.RELEASE_DATES,
         Code.LOG_ROLLBACK, Code.LOG_UNWITNESSED, Code.UNTRUSTED, Code.UNREACHABLE), _READER,
    ),
    **dict.fromkeys(
        (Code.METHOD_UNKNOWN, Code.METHOD_CLOSED, Code.EXPERT_UNKNOWN, Code.EXPERTS_EXHAUSTED, Code.MEMORY_FULL,
         Code.POOL_UNKNOWN, Code.USER_KEY, Code.USER_UNKNOWN, Code.LIMIT_REACHED),
        _ROUTER,
    ),
    **dict.fromkeys(
        (Code.DATA_UNREADABLE, Code.DATA_COLUMNS, Code.DATA_EMPTY, Code.DATA_TOO_LONG, Code.TASK_ROW,
         Code.ADAPTER_UNREADABLE, Code.BASE_UNREADABLE, Code.PASSPHRASE, Code.KEY_UNREADABLE, Code.KEY_EXISTS,
         Code.SETTINGS_INVALID, Code.WORKSPACE_BUSY, Code.WORKSPACE_EXISTS, Code.WORKSPACE_MISSING,
         Code.SCHEMA_MISMATCH, Code.REGISTRY_OLDER, Code.NOT_TRAINED, Code.INTERRUPTED), _OWN_MACHINE,
    ),
}  # fmt: skip
"""Why there is no case for a code."""


def all_cases() -> list[Case]:
    """Every case; those of one subject stand together, and what leaves uploads open stands last."""
    groups = (
        transport, connections, envelopes, statements, enrolments, facts, fit, bindings, sessions,
        successions, log, catalog, numbers, tensors,
    )  # fmt: skip
    return [case for group in groups for case in group.cases()] + successions.last_cases()


def select(cases: Sequence[Case], there: Collection[Need], only: Sequence[str] = ()) -> list[Case]:
    """Choose the cases that a deployment can be asked.

    Args:
        cases: To choose from.
        there: What the deployment has.
        only: Patterns of names, as a shell has them; none for all.
    """
    return [
        case
        for case in cases
        if set(case.needs) <= set(there) and (not only or any(fnmatch(case.name, pattern) for pattern in only))
    ]
