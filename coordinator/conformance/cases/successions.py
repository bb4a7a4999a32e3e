"""Names, and what comes after what: whose a name is, what a bundle may supersede, and how many a key may hold."""

from dataclasses import replace

from coordinator.conformance.answer import UnmetError
from coordinator.conformance.case import Case, Need, Row, named
from coordinator.conformance.draft import Draft
from coordinator.conformance.stage import Stage
from protocol.errors import Code


def _kept(stage: Stage, owner: str = "vera") -> Draft:
    """A contributor's first bundle, which is kept, whatever becomes of it."""
    draft = stage.first(owner)
    if not stage.begin(draft).receipt:
        stage.submit(draft)
    return draft


def _name_in_use(stage: Stage) -> object:
    _kept(stage)
    return stage.begin(replace(stage.draft("vera", "other"), facts=_named(stage, "first")))


def _named(stage: Stage, name: str, **facts: object) -> dict[str, object]:
    return stage.draft("vera", name, **facts).facts


def _supersedes(stage: Stage, name: str, digest: str) -> object:
    _kept(stage)
    return stage.begin(stage.draft("vera", name, supersedes=digest))


def _anothers(stage: Stage) -> object:
    return _supersedes(stage, "first", _kept(stage, "walt").digest)


def _under_another_name(stage: Stage) -> object:
    return _supersedes(stage, "second", _kept(stage).digest)


def _second(stage: Stage) -> None:
    """Begin one bundle after the other, until it is one too many: at the latest beyond what a contributor may hold."""
    _kept(stage)
    for number in range(stage.pool.spec.policy.max_experts_per_contributor + 1):
        stage.begin(stage.draft("vera", f"next-{number}"))


def _same_weights(stage: Stage) -> object:
    theirs = _kept(stage)
    stage.member("walt")
    return stage.begin(replace(stage.draft("walt", "mine"), tensors=theirs.tensors))


def _same_weights_packed_anew(stage: Stage) -> None:
    """It is the adapter's file that counts, not the gates, the card or the name."""
    theirs = _kept(stage)
    mine = replace(stage.draft("nobody", "mine"), tensors=theirs.tensors)
    stage.refuses(Code.KEY_UNKNOWN, stage.begin, mine)
    stage.member("walt")
    copied = replace(stage.draft("walt", "else", license="mit"), tensors=theirs.tensors)
    stage.refuses(Code.DUPLICATE_OF, stage.begin, copied)


def _begin_again(stage: Stage) -> None:
    kept = _kept(stage)
    begun = stage.begin(kept)
    stage.check_receipt(kept, begun.receipt)
    if begun.token or begun.missing:
        raise UnmetError("A bundle that is kept is asked for again.")


def _superseded(stage: Stage) -> None:
    """What is let in under the same name takes the earlier one's place, and holds the name from then on."""
    first = stage.let_in("sue")
    second = stage.draft("sue", "first", supersedes=first.digest)
    if second.digest == first.digest:
        raise UnmetError("Two bundles are one.")
    second = replace(second, tensors=stage.draft("sue", "other").tensors)
    stage.released(second)
    if (state := stage.status(first.digest).state) != "superseded":
        raise UnmetError(f"What was superseded is {state}.")
    third = replace(stage.draft("sue", "first"), tensors=stage.draft("sue", "third").tensors)
    stage.refuses(Code.VERSION_REUSED, stage.begin, third)
    late = replace(stage.draft("sue", "first", supersedes=first.digest), tensors=stage.draft("sue", "late").tensors)
    stage.refuses(Code.SUPERSEDES_UNKNOWN, stage.begin, late)


def _too_many(stage: Stage) -> None:
    """Whoever has one in may bring more, up to what a contributor may hold."""
    stage.let_in()
    most = stage.pool.spec.policy.max_experts_per_contributor
    for number in range(most - 1):
        stage.begin(stage.draft("ada", f"held-{number}"))
    stage.refuses(Code.QUOTA, stage.begin, stage.draft("ada", "one-more"))


def _gates_of_anothers(stage: Stage) -> object:
    theirs = stage.let_in("gail")
    stage.member("hank")
    return stage.judged(replace(stage.draft("hank", "mine"), gates=theirs.gates))


def cases() -> list[Case]:
    """All of them; the last leaves a contributor's uploads open."""
    rows: list[Row] = [
        ("kept-and-begun-again", _begin_again, None),
        ("name-in-use", _name_in_use, Code.VERSION_REUSED),
        ("supersedes-nothing-known", lambda stage: _supersedes(stage, "first", "0" * 64), Code.SUPERSEDES_UNKNOWN),
        ("supersedes-anothers", _anothers, Code.SUPERSEDES_UNKNOWN),
        ("supersedes-under-another-name", _under_another_name, Code.SUPERSEDES_UNKNOWN),
        ("same-weights-by-another-key", _same_weights, Code.DUPLICATE_OF),
        ("same-weights-packed-anew", _same_weights_packed_anew, None),
        ("more-than-a-newcomer-may", _second, Code.QUOTA),
    ]
    return named("succession", rows)


def last_cases() -> list[Case]:
    """What comes after all else."""
    rows: list[Row] = [
        ("superseded", _superseded, None),
        ("gates-of-anothers", _gates_of_anothers, Code.NEAR_GATES),
        ("more-than-anybody-may-hold", _too_many, None),
    ]
    return named("succession", rows, Need.WORKER)
