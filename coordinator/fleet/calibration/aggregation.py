"""Puts together what nodes learnt, with Flower's strategies, and accounts for privacy with Flower's accountant."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import GaussianPrivacyEvent, NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, FedMedian, Krum
from numpy.typing import NDArray

from coordinator.fleet.flower.client import Run
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Privacy, Strategy
from protocol.fleet.reply import ARRAYS, METRICS, UPDATE
from protocol.release import Spent

_WEIGHT = "num-examples"
"""Flower's name for a node's weight: every node counts alike, whatever its size, which nobody is told."""
_Vector = NDArray[np.float32]


class Gathered(FedAvg):
    """Averages what has come already: whoever answered is the round's sample.

    Args:
        answers: All of them.
    """

    def __init__(self, answers: Sequence[Message]) -> None:
        super().__init__(weighted_by_key=_WEIGHT)
        self._answers = answers

    def configure_train(self, *_: object, **__: object) -> Iterable[Message]:
        """Ask nobody any more."""
        return self._answers


def _krum(answers: Sequence[Message]) -> Krum:
    # As many liars as Krum withstands: n >= 2 f + 3 (arXiv 1703.02757, proposition 4.2).
    return Krum(weighted_by_key=_WEIGHT, num_malicious_nodes=max(0, (len(answers) - 3) // 2))


_STRATEGIES: dict[Strategy, Callable[[Sequence[Message]], FedAvg]] = {
    "fedavg": Gathered,
    "fedmedian": lambda _: FedMedian(weighted_by_key=_WEIGHT),
    "krum": _krum,
}


def pool(run: Run, strategy: Strategy, updates: Sequence[bytes]) -> _Vector:
    """Put together what nodes learnt.

    Args:
        run: Whose messages the answers were.
        strategy: How.
        updates: float32 numbers of every node, all of one length.

    Returns:
        [n].
    """
    answers = _answers(run, updates)
    arrays, _ = _STRATEGIES[strategy](answers).aggregate_train(1, answers)
    return _vector(arrays)


def pool_privately(
    run: Run, privacy: Privacy, start: _Vector, updates: Sequence[bytes], before: Sequence[float]
) -> tuple[_Vector, Spent]:
    """Average what nodes learnt, each change from start [n] clipped, and add noise.

    Args:
        run: As for `pool`.
        privacy: How much noise, and the budget.
        start: What the round started from.
        updates: As for `pool`.
        before: Noise multipliers of the rounds before, of all campaigns.

    Returns:
        The noisy mean [n], and what is spent now.

    Raises:
        Refused: `BUDGET_EXHAUSTED` if the round would spend more than the budget; nothing is averaged then.
    """
    answers, n = _answers(run, updates), len(updates)
    accountant = check_budget(privacy, before, 1, nodes=n)
    noisy = DifferentialPrivacyServerSideFixedClipping(
        Gathered(answers), privacy.noise_multiplier, privacy.clipping_norm, n, accountant=accountant
    )
    noisy.configure_train(1, ArrayRecord({UPDATE: Array(start)}), ConfigRecord({}), run.grid)
    arrays, _ = noisy.aggregate_train(1, answers)
    spent = accountant.get_privacy_spent()
    return _vector(arrays), Spent(epsilon=spent.epsilon, delta=spent.delta, rounds=spent.num_releases)


def check_budget(privacy: Privacy, before: Sequence[float], rounds: int, *, nodes: int = 1) -> RdpAccountant:
    """Count what is spent, and refuse what the budget does not allow.

    Args:
        privacy: How much noise, and the budget.
        before: Noise multipliers of the rounds before, of all campaigns.
        rounds: How many are planned.
        nodes: How many take part, all of them in each round: nothing is gained by sampling.

    Returns:
        Flower's accountant: Rényi's, for a contributor who is there or not.

    Raises:
        Refused: `BUDGET_EXHAUSTED`, or `SETTINGS_INVALID` where what the accountant computes with is not installed.
    """
    config = PrivacyConfig(
        privacy.delta, nodes, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION,
        privacy.max_epsilon,
    )  # fmt: skip
    try:
        accountant = RdpAccountant(config)
    except ImportError as error:
        raise Refused(
            Code.SETTINGS_INVALID, "Privacy cannot be accounted for without dp-accounting.",
            "Install it with: pip install 'greylag[private]'",
        ) from error  # fmt: skip
    for noise in before:
        accountant.compose(GaussianPrivacyEvent(noise, nodes, nodes))
    if accountant.would_exceed(GaussianPrivacyEvent(privacy.noise_multiplier, nodes, nodes), count=rounds):
        used = accountant.get_privacy_spent()
        raise Refused(
            Code.BUDGET_EXHAUSTED,
            f"{used.num_releases} rounds have spent epsilon {used.epsilon:.2f} at delta {privacy.delta:g}; {rounds} "
            f"more would go beyond the budget of {privacy.max_epsilon:g}.",
            "Add more noise, plan fewer rounds, or go on without calibrating.",
        )
    return accountant


def _answers(run: Run, updates: Sequence[bytes]) -> list[Message]:
    run.enter()
    answers = []
    for at, content in enumerate(updates):
        records = RecordDict()
        records[ARRAYS] = ArrayRecord({UPDATE: Array(np.frombuffer(content, np.float32).copy())})
        records[METRICS] = MetricRecord({_WEIGHT: 1})
        answers.append(Message(records, at + 1, "train.calibrate"))
    return answers


def _vector(arrays: ArrayRecord | None) -> _Vector:
    assert arrays is not None  # noqa: S101 - there is an answer at least
    found: _Vector = arrays[UPDATE].numpy().astype(np.float32)
    return found
