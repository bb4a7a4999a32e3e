"""The routed model: a base, every expert of a release, and a router at every module."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Unpack, cast

import torch
from platformdirs import user_cache_path

from protocol.bundle import Bundle
from protocol.errors import Code, Refused
from protocol.signing import PublicKey
from router.base.batching import Prompt, PromptLike, TokenPair, check_lengths, encode_pairs, read_prompts
from router.base.fingerprint import check_base, display_name, first_line
from router.base.likelihood import Likelihood, likelihoods
from router.base.loading import Loading, load_base
from router.base.memory import memory_watched
from router.follow.pull import pull
from router.follow.workspace import FINGERPRINT, Mirror
from router.layer.routed_linear import routing
from router.methods import find_method
from router.model.decode import write
from router.model.expert_set import ExpertSet
from router.model.export_lora import Exported, export_lora
from router.model.planner import Planned, plan
from router.model.releases import KEPT, Generation, Held
from router.model.saved_model import open_saved, save
from router.pool.capacity import check_room
from router.query.answer import Answered
from router.query.limits import DEFAULT_NEW_TOKENS
from router.query.request import DEFAULT, Choices, Input, Inputs, RoutingChoice, check_inputs, one_by_one, one_each

Asking = Inputs | Sequence[Prompt]
"""A text or a chat, or several, or what `RoutedModel.read` made of them."""


class Options(Loading, total=False):
    """How a base model is held in memory, and what inputs are read with; the latter as in `RoutedModel`."""

    embedding: str | None
    public: Path | None
    cache: Path | None


class RoutedModel(ExpertSet):
    """Answers with whatever experts it holds, scores, and is loaded and saved; made as `ExpertSet` says."""

    @classmethod
    def from_base(
        cls,
        name_or_path: str,
        *,
        embedding: str | None = None,
        public: Path | None = None,
        cache: Path | None = None,
        **loading: Unpack[Loading],
    ) -> "RoutedModel":
        """Load a base model that holds no experts yet, as `load_base` does; the rest as in the class.

        Raises:
            Refused: `BASE_UNREADABLE`.
        """
        return cls(load_base(name_or_path, **loading), embedding, public, cache)

    @classmethod
    def from_bundles(cls, name_or_path: str, bundles: Iterable[Bundle], **options: Unpack[Options]) -> "RoutedModel":
        """Load a base model, as `from_base` does, and put experts on it, in order.

        Raises:
            Refused: `BASE_UNREADABLE`, or as `append`.
        """
        model = cls.from_base(name_or_path, **options)
        for bundle in bundles:
            model.append(bundle)
        return model

    @classmethod
    def from_mirror(
        cls,
        name_or_path: str,
        mirror: Mirror,
        *,
        earlier: Sequence[Mirror] = (),
        **options: Unpack[Options],
    ) -> "RoutedModel":
        """Load a base model with a release that was pulled to this machine.

        Args:
            name_or_path: Folder or Hub id of the base model.
            mirror: The release.
            earlier: Releases of the same pool that a request may ask for, too, oldest first.
            options: As in `from_base`.

        Raises:
            Refused: `BASE_MISMATCH` if the release was made for another base, `BASE_UNREADABLE`, or as `load`.
        """
        check_base(name_or_path, mirror.pool.spec.base, options.get("cache"))
        model = cls.from_base(name_or_path, **options)
        model.held = Held(kept=max(KEPT, len(earlier) + 1))
        for each in (*earlier, mirror):
            model.take_up(each)
        return model

    @classmethod
    def from_release(
        cls,
        coordinator: str,
        base: str,
        *,
        folder: Path | None = None,
        ca: Path | None = None,
        pool_key: PublicKey | None = None,
        **options: Unpack[Options],
    ) -> "RoutedModel":
        """Fetch the newest release of a coordinator and load it.

        Args:
            coordinator: `host:port`.
            base: Folder or Hub id of the pool's base model.
            folder: Where releases are kept; without one, the user's cache.
            ca: The coordinator's CA certificate, PEM.
            pool_key: The key that must sign the pool; without one, the key seen first, which is logged, is trusted.
            options: As in `from_base`; the cache is in the folder unless it is named.

        Raises:
            Refused: As `router.follow.pull.pull`, and `BASE_MISMATCH`.
            Unavailable: The coordinator cannot be reached.
        """
        kept = folder or user_cache_path("greylag") / coordinator.replace(":", "-")
        options.setdefault("cache", kept / FINGERPRINT)
        return cls.from_mirror(base, pull(kept, coordinator, ca=ca, pool_key=pool_key, base=base), **options)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        base: str | None = None,
        expected: str | None = None,
        **options: Unpack[Options],
    ) -> "RoutedModel":
        """Load what `save_pretrained` wrote.

        Args:
            folder: The saved model.
            base: Folder or Hub id of the base model; needed if it was not saved, too.
            expected: The identity that the model must have.
            options: As in `from_base`.

        Raises:
            Refused: `WORKSPACE_MISSING`, `DIGEST_MISMATCH`, `BASE_MISMATCH`, `BASE_UNREADABLE`, or as `append`.
            Unavailable: `MEMORY_FULL`.
        """
        saved = open_saved(Path(folder), expected=expected)
        source = base or (str(saved.base) if saved.base else saved.index.base.name)
        check_base(source, saved.index.base, options.get("cache"))
        model = cls.from_base(source, **options)
        check_room(saved.bundles, model.generation.pool, model.places, model.base.model.dtype)
        for expert, bundle in zip(saved.index.experts, saved.bundles, strict=True):
            model.append(bundle, name=expert.name, contributor=expert.contributor)
        model.features.mixtures.public.follow(saved.statistics)
        pool, index = model.generation.pool.calibrated(saved.calibration), saved.index
        model.generation = Generation(pool, index.routing, index.release)
        return model

    def save_pretrained(self, folder: Path | str, *, with_base: bool = False) -> str:
        """Write base, routing and every expert's bundle to a folder, by content and under their names.

        Args:
            folder: A new folder; appears whole or not at all.
            with_base: Whether the base model's files are copied, too.

        Returns:
            The model's identity: a sha256 that stands for every byte of experts, routing and base.

        Raises:
            Refused: `WORKSPACE_EXISTS`, `BUNDLE_UNKNOWN` if a bundle is gone from where it was loaded.
        """
        now = self.generation
        return save(
            Path(folder), self.base.source, now.pool, routing=now.settings, release=now.release, with_base=with_base,
            statistics=self.features.mixtures.public.told,
        )  # fmt: skip

    def export_lora(
        self,
        folder: Path | str,
        inputs: Asking,
        choice: Choices = DEFAULT,
        *,
        rank: int,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
    ) -> Exported:
        """Write what answers a request as one plain LoRA in PEFT's format: `router.model.export_lora` says how.

        Args:
            folder: A new folder.
            inputs: Like those that the adapter is to serve.
            choice: How they are routed.
            rank: Of the adapter.
            max_new_tokens: Longest answer over which routing is averaged, in tokens.

        Raises:
            Refused: As `generate` and `router.model.export_lora.export_lora`.
        """
        prompts = self.read(inputs)
        planned = self._planned(prompts, choice).recorded()
        answered = write(self.base, planned, prompts, max_new_tokens)
        routes = [route for answer in answered.answers for route in answer.routes]
        name, architecture = display_name(self.base.source), self.base.architecture
        return export_lora(Path(folder), routes, planned.experts, rank=rank, base=name, architecture=architecture)

    def generate(
        self,
        inputs: Asking,
        choice: Choices = DEFAULT,
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Answer a batch of inputs greedily.

        Args:
            inputs: A text or a chat, or several.
            choice: How they are routed, or one choice for each; what it leaves open, the release says.
            max_new_tokens: Longest answer, in tokens.
            stop: Texts before the first of which an answer ends; empty ones are left out.

        Raises:
            Refused: `REQUEST_INVALID`, or as `router.model.planner.plan`.
        """
        prompts = self.read(inputs)
        ends = [text for text in stop if text]
        answered = write(self.base, self._planned(prompts, choice), prompts, max_new_tokens, ends)
        return [answer.text for answer in answered.answers]

    def answer(
        self,
        inputs: Asking,
        choice: Choices = DEFAULT,
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        explain: bool = False,
        full: bool = False,
    ) -> Answered:
        """Answer a batch of inputs as `generate`, on request with the experts that answered.

        Args:
            inputs: As in `generate`.
            choice: As in `generate`.
            max_new_tokens: Longest answer, in tokens.
            explain: Whether the answers carry their tokens and routes.
            full: Whether the routes carry the probabilities of all experts, too.

        Raises:
            Refused: As `generate`.
        """
        prompts = self.read(inputs)
        planned = self._planned(prompts, choice)
        if explain or full:
            planned = planned.recorded(full=full)
        return write(self.base, planned, prompts, max_new_tokens)

    def read(self, inputs: Asking) -> list[Prompt]:
        """Write chats down and tokenise, once, what is going to be asked.

        Args:
            inputs: A text or a chat, or several; what was read before stays as it is.

        Raises:
            Refused: `REQUEST_INVALID`, or `DATA_TOO_LONG`.
        """
        found: list[Input | Prompt] = [*one_by_one(cast("Inputs", inputs))]
        check_inputs([each.text if isinstance(each, Prompt) else each for each in found])
        prompts = read_prompts(self.base, found)
        check_lengths(self.base, prompts)
        return prompts

    def _planned(self, prompts: Sequence[Prompt], choice: Choices) -> Planned:
        return plan(self.features, self.held, prompts, one_each(choice, len(prompts)))

    def prepared(self, choice: RoutingChoice) -> bool:
        """Tell whether a request of this choice finds worked out what its method needs once."""
        generation = self.held.find(choice.release)
        return _preparation(choice.method or generation.settings.method) in self._prepared.get(generation, ())

    def prepare(self, choice: RoutingChoice) -> None:
        """Work out what a method needs once: statistics of public text, vectors that stand for experts.

        Takes up to minutes; other requests may be answered meanwhile.

        Raises:
            Refused: As `router.model.planner.plan`.
        """
        generation = self.held.find(choice.release)
        method = choice.method or generation.settings.method
        word, whole = read_prompts(self.base, ["a"]), True
        try:
            planned = self._planned(word, RoutingChoice(method, choice.k, release=choice.release))
        except Refused:  # the method takes some experts of the pool only; the request may name these
            planned, whole = self._planned(word, choice), False
        draw = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            for part in planned.parts:
                for path, module in part.plan.pool.modules.items():
                    linear = self.base.model.get_submodule(path)
                    u = torch.randn(1, linear.in_features, generator=draw)
                    part.plan.method.choose(module, u.to(self.places[path], self.base.model.dtype))
        if whole:
            self._prepared.setdefault(generation, set()).add(_preparation(method))

    def losses(self, inputs: Asking, targets: Sequence[str], choice: Choices = DEFAULT) -> list[float]:
        """Mean negative log-likelihood of each input's one target, in nats a token, its end token among them.

        Raises:
            Refused: As `generate`.
        """
        found = one_by_one(cast("Inputs", inputs))
        if not found or len(found) != len(targets):
            raise Refused(
                Code.REQUEST_INVALID,
                f"There are {len(found)} inputs and {len(targets)} targets.",
                "Give one target for each input, and one input at least.",
            )
        prompts = read_prompts(self.base, found)
        return [-each.mean for each in self.likelihoods(prompts, encode_pairs(self.base, prompts, targets), choice)]

    def likelihoods(
        self, inputs: Sequence[PromptLike], pairs: Sequence[TokenPair], choice: Choices = DEFAULT
    ) -> list[Likelihood]:
        """Score tokens that the model may write after its inputs.

        Args:
            inputs: By which methods route that read a request first.
            pairs: For each input its tokens and the target's, as `router.base.batching.encode_pairs` makes them.
            choice: As in `generate`.

        Raises:
            Refused: As `router.model.planner.plan`.
        """
        planned = plan(self.features, self.held, inputs, one_each(choice, len(inputs)))
        with routing(planned.plan):
            scored = likelihoods(self.base, [pairs[at] for at in planned.order])
        return [each for _, each in sorted(zip(planned.order, scored, strict=True))]

    def probe(self, texts: Sequence[str]) -> float:
        """Run the model over public text and see that it holds.

        Returns:
            Mean loss in nats a token of each text given itself.

        Raises:
            Refused: `PROBE_FAILED` if any figure is not finite, or if the model does not run.
            Unavailable: `MEMORY_FULL`.
        """
        try:
            with memory_watched():
                losses = self.losses(texts, texts)
        except RuntimeError as error:  # torch's family: out of memory, shapes, kernels
            raise Refused(
                Code.PROBE_FAILED,
                f"The routed model does not run on the probe text: {first_line(error)}.",
                "Check the expert's ranks and modules, then train it again.",
            ) from error
        if not all(math.isfinite(loss) for loss in losses):
            raise Refused(
                Code.PROBE_FAILED,
                "With this expert the routed model's loss on the probe text is not finite.",
                "Train it again with a smaller learning rate.",
            )
        return sum(losses) / len(losses)


def _preparation(method: str) -> str:
    """Name what a method prepares; its argument matters only where vectors are worked out by it."""
    return method if method.startswith("genknowsub:") else find_method(method)
