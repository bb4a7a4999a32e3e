"""Differentially private training (DP-SGD, arXiv 1607.00133), with opacus' per-example gradients and accountant.

Each step draws its examples independently (Poisson sampling, which the accountant assumes), clips every example's
gradient and adds noise. What opacus cannot take apart into examples is refused. The seed of a run decides neither
draws nor noise: whoever knew it could take the noise away again.
"""

import secrets
from collections.abc import Mapping
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.accountants.utils import get_noise_multiplier
from opacus.grad_sample import register_grad_sampler
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from client.training.trainer import PhaseTrainer
from protocol.errors import Code, Refused
from protocol.spec import Promise
from router.base.tokens import IGNORED
from router.training.gated_linear import GatedExpert


def noise_for(privacy: Promise, rows: int, batch: int, steps: int) -> float:
    """Find how much noise keeps a promise to rows of which a step draws a batch on average, over all phases' steps.

    Returns:
        Standard deviation of the noise, as a multiple of `privacy.clip`.

    Raises:
        Refused: `SETTINGS_INVALID` if no noise keeps it, or if it promises nothing.
    """
    if privacy.delta * rows >= 1:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"--delta {privacy.delta:g} promises nothing to {rows} examples: one of them could be told outright.",
            f"Give --delta {0.1 / rows:.0e} or less.",
        )
    rate = min(1.0, batch / rows)
    try:
        found: float = get_noise_multiplier(
            target_epsilon=privacy.epsilon, target_delta=privacy.delta, sample_rate=rate, steps=steps, accountant="rdp"
        )
    except ValueError as error:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"No noise makes {steps} steps over {rows} examples as private as --epsilon {privacy.epsilon:g}.",
            "Give a larger --epsilon, fewer steps or more examples.",
        ) from error
    return found


class PrivateTrainer(PhaseTrainer):
    """The Trainer, over gradients that are clipped example by example and blurred; a step draws a batch on average."""

    def __init__(self, *, privacy: Promise, noise: float, batch: int, micro_batch: int, **options: Any) -> None:
        super().__init__(**options)
        self._privacy, self._noise, self._batch, self._micro_batch = privacy, noise, batch, micro_batch
        self._hooks = GradSampleModule(self.model, loss_reduction="sum", strict=False)

    def take_off(self) -> None:
        """Leave the model without hooks and per-example gradients."""
        self._hooks.to_standard_module()

    def get_train_dataloader(self) -> "DataLoader[Any]":
        """Draw each example of each step independently."""
        sampler = UniformWithReplacementSampler(
            num_samples=len(self.train_dataset), sample_rate=min(1.0, self._batch / len(self.train_dataset)),
            generator=_generator("cpu"), steps=self.args.max_steps,
        )  # fmt: skip
        collate = self.data_collator
        return DataLoader(
            self.train_dataset, batch_sampler=sampler, collate_fn=lambda rows: collate(rows) if rows else {}
        )

    def create_optimizer(self, *given: Any) -> DPOptimizer:
        """Put clipping and noise before the optimizer's step."""
        self.private = self.optimizer = DPOptimizer(
            super().create_optimizer(*given), noise_multiplier=self._noise, max_grad_norm=self._privacy.clip,
            expected_batch_size=self._batch, generator=_generator(self.args.device),
        )  # fmt: skip
        return self.private

    def training_step(self, model: nn.Module, inputs: dict[str, Any], _items: Any = None) -> Tensor:
        """Leave the clipped gradients of one draw of examples, in as many parts as memory asks for.

        Returns:
            [] the mean loss of the examples.
        """
        model.train()
        optimizer = self.private  # accelerate stands before the other one
        optimizer.zero_grad()
        batch: Mapping[str, Tensor] = self._prepare_input(inputs)
        total, rows = torch.zeros((), device=self.args.device), len(batch["labels"]) if batch else 0
        for at in range(0, rows, self._micro_batch):
            if at:
                optimizer.signal_skip_step(do_skip=True)
                optimizer.step()
                optimizer.zero_grad()
            part = {name: tensor[at : at + self._micro_batch] for name, tensor in batch.items()}
            loss = example_losses(model, part).sum()
            torch.autograd.backward(loss)
            total += loss.detach()
        if not rows:  # a draw may hold nobody; the noise is added all the same
            for parameter in optimizer.params:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        return total / max(1, rows)


def example_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute the loss of each example by itself: the usual mean over all tokens would tie examples together.

    Args:
        model: An encoder-decoder, or a decoder.
        batch: With labels [b, t].

    Returns:
        [b] mean loss of an example's learnt tokens.
    """
    logits, labels = model(**batch).logits, batch["labels"]
    if not model.config.is_encoder_decoder:  # type: ignore[union-attr] # a transformers model
        logits, labels = logits[:, :-1], labels[:, 1:]
    tokens = functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(labels)
    return tokens.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


@register_grad_sampler(GatedExpert)  # type: ignore[untyped-decorator] # opacus has no types
def gate_gradients(layer: GatedExpert, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Compute the gradient of a gate by example.

    Args:
        layer: A gated LoRA expert.
        activations: The input u, [b, t, d].
        backprops: Gradient of the loss by the module's output, [b, t, o].

    Returns:
        For the gate, [b, d].
    """
    u, part = activations[0], layer.part
    opening = layer.opening(u)
    delta = functional.linear(functional.linear(u, part.a) * part.scaling, part.b)
    pull = (delta.float() * backprops.float()).sum(-1) * opening * (1 - opening)
    return {layer.gate: torch.einsum("bt,btd->bd", pull, u.float())}


def _generator(device: torch.device | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(secrets.randbits(63))
