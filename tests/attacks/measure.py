"""What honest users get from a list of experts, and how much of it the attacker's experts take."""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from statistics import mean
from typing import NamedTuple

from deploy.demo.world import WORDS
from protocol.bundle import Bundle
from protocol.errors import Refused
from router.model.routed_model import RoutedModel
from router.pool.calibration import Calibration
from router.query.attribution import expert_shares
from tests.attacks.honest import STORY, HonestPool


class Served(NamedTuple):
    """What came of a list of experts."""

    accuracy: float
    """Exact match on honest requests, 0 to 1."""
    taken: float
    """Share of all routing weight on honest requests that went to others than the honest six."""


class Measure:
    """One model, brought to one list after another; each list is measured once."""

    def __init__(self, honest: HonestPool) -> None:
        self._honest = {bundle.digest for bundle in honest.bundles.values()}
        self._questions = honest.questions
        self._model = RoutedModel.from_base(WORDS.base, device="cpu")
        self._model.route_as(honest.pool.spec.routing, honest.statistics)
        self._known: dict[tuple[str, ...], Served] = {}

    def served(self, bundles: Sequence[Bundle], cap: Calibration | None = None) -> Served | None:
        """Ask honest questions of a list of experts, with a release's cap; None if no router takes it up."""
        digests = tuple(bundle.digest for bundle in bundles)
        asked = (*digests, cap.digest if cap else "")
        if asked in self._known:
            return self._known[asked]
        try:
            for digest in set(self._model.digests) - set(digests):
                self._model.remove(digest)
            for bundle in bundles:
                if bundle.digest not in self._model.digests:
                    self._model.append(bundle, name=bundle.digest)
        except Refused:
            return None
        generation = self._model.generation
        self._model.generation = replace(generation, pool=generation.pool.reordered(digests).calibrated(cap))
        answered = self._model.answer(
            [question.input for question in self._questions], max_new_tokens=STORY.max_new_tokens, explain=True
        )
        right = mean(
            question.answered_by(answer.text)
            for question, answer in zip(self._questions, answered.answers, strict=True)
        )
        shares = expert_shares((route for answer in answered.answers for route in answer.routes), answered.experts)
        taken = 1.0 - sum(share for name, share in shares.items() if name.rpartition("/")[2] in self._honest)
        # Where a destroyer's numbers are none, so are the weights that its neighbours are given.
        self._known[asked] = Served(round(right, 3), round(taken, 3) if isfinite(taken) else 1.0)
        return self._known[asked]
