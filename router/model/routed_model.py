"""The routed model: a base, every expert of a release, and a router at every module."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Unpack, cast

import torch
from platformdirs import user_cache_path

from protocol.bundle import Bundle
from protocol.errors import Code, Refused
from protocol.openssf.model_signature import ModelSigner
from protocol.signing import PublicKey
from router.base.batching import (
    Prompt,
    PromptLike,
    TokenPair,
    check_lengths,
    check_letters,
    encode_pairs,
    read_prompts,
)
from router.base.fingerprint import check_base, first_line
from router.base.likelihood import Likelihood, likelihoods
from router.base.loading import Loading, load_base
from router.base.memory import memory_watched
from router.base.progress import bar
from router.follow.pull import pull
from router.follow.workspace import FINGERPRINT, Mirror
from router.layer.routed_linear import routing
from router.methods import BY_MIXTURE, OWN_VECTORS, find_method
from router.methods.base_only import BaseOnly
from router.model.decode import write
from router.model.expert_set import ExpertSet
from router.model.export_lora import Exported, export_lora
from router.model.headroom import Probed, largest_watched
from router.model.planner import Planned, plan
from router.model.releases import KEPT, Generation, Held
from router.model.saved_model import open_saved, save
from router.pool.capacity import check_room
from router.pool.group_store import KEPT_PROTOTYPES
from router.query.answer import Answered
from router.query.limits import DEFAULT_NEW_TOKENS
from router.query.request import DEFAULT, Choices, Input, Inputs, RoutingChoice, check_inputs, one_by_one, one_each

Asking = Inputs | Sequence[Prompt]
"""A text or a chat, or several, or what `RoutedModel.read` made of them."""

_PROBED = 16
"""Inputs of a probe that are run at a time."""


class Options(Loading, total=False):
    """How a base model is held in memory, and what inputs are read with; the latter as in `RoutedModel`."""

    embedding: str | None
    public: Path | None
    cache: Path | None


class RoutedModel(ExpertSet):
    """Answers with whatever experts it holds, scores, and is loaded and saved; made as `ExpertSet` says.

    Inputs are a text or a chat, or several. Each is routed as its choice says, or all alike by one; what a choice
    leaves open, the release says. Answers end after so many new tokens at the latest.
    """

    @classmethod
    def from_base(cls, name_or_path: str, **options: Unpack[Options]) -> "RoutedModel":
        """Load a base model that holds no experts yet, as `load_base` does; inputs are read as `ExpertSet` says.

        Raises:
            Refused: `BASE_UNREADABLE`.
        """
        reading = options.pop("embedding", None), options.pop("public", None), options.pop("cache", None)
        return cls(load_base(name_or_path, **cast("Loading", options)), *reading)

    @classmethod
    def from_bundles(cls, name_or_path: str, bundles: Iterable[Bundle], **options: Unpack[Options]) -> "RoutedModel":
        """Load a base model, as `from_base` does, and put experts on it, in order.

        Raises:
            Refused: `BASE_UNREADABLE`, or as `append`.
        """
        model = cls.from_base(name_or_path, **options)
        for bundle in bar(bundles, "Loading experts"):
            model.append(bundle)
        return model

    @classmethod
    def from_mirror(
        cls, name_or_path: str, mirror: Mirror, *, earlier: Sequence[Mirror] = (), **options: Unpack[Options]
    ) -> "RoutedModel":
        """Load a base model, as `from_base` does, with a release that was pulled to this machine.

        Earlier ones of the same pool, oldest first, may be asked for, too.

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
        root: str | None = None,
        **options: Unpack[Options],
    ) -> "RoutedModel":
        """Fetch the newest release of a coordinator and load it on a base, as `from_base` does.

        Args:
            coordinator: `host:port`.
            base: Folder or Hub id of the pool's base model.
            folder: Where releases are kept, and the cache, unless it is named; without one, the user's cache.
            ca: The coordinator's CA certificate, PEM.
            pool_key: The key that must sign the pool; without one, the key seen first, which is logged, is trusted.
            root: Fingerprint of the pool's first root; without one, the root that the pool's key signed is trusted.
            options: As in `from_base`.

        Raises:
            Refused: As `router.follow.pull.pull`, and `BASE_MISMATCH`.
            Unavailable: The coordinator cannot be reached.
        """
        kept = folder or user_cache_path("greylag") / coordinator.replace(":", "-")
        options.setdefault("cache", kept / FINGERPRINT)
        loaded: list[RoutedModel] = []
        pull(
            kept, coordinator, ca=ca, pool_key=pool_key, root=root, base=base,
            take_up=lambda mirror: loaded.append(cls.from_mirror(base, mirror, **options)),
        )  # fmt: skip
        return loaded[0]

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, base: str | None = None, expected: str | None = None, **options: Unpack[Options]
    ) -> "RoutedModel":
        """Load what `save_pretrained` wrote, as `from_base` does.

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
        listed = zip(saved.index.experts, saved.bundles, strict=True)
        for expert, bundle in bar(listed, "Loading experts", len(saved.bundles)):
            model.append(bundle, name=expert.name, contributor=expert.contributor)
        model.features.mixtures.public.follow(saved.statistics)
        pool = model.generation.pool.calibrated(saved.calibration)
        model.generation = Generation(pool, saved.index.routing, saved.index.release)
        return model

    def save_pretrained(self, folder: Path | str, *, with_base: bool = False, signer: ModelSigner | None = None) -> str:
        """Write routing and every expert's bundle to a new folder, by content and under their names; the base if asked.

        With a signer, a `model.sig` over all files lies beside them (`protocol.openssf.model_signature`).

        Returns:
            The model's identity: a sha256 that stands for every byte of experts, routing and base.

        Raises:
            Refused: `WORKSPACE_EXISTS`, `BUNDLE_UNKNOWN` if a bundle is gone from where it was loaded.
        """
        told = self.features.mixtures.public.told
        return save(
            Path(folder), self.base.source, self.generation, with_base=with_base, statistics=told, signer=signer
        )

    def export_lora(
        self,
        folder: Path | str,
        inputs: Asking,
        choice: Choices = DEFAULT,
        *,
        rank: int,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        signer: ModelSigner | None = None,
    ) -> Exported:
        """Write what answers inputs, averaged over them and their answers, as one plain LoRA in PEFT's format.

        `router.model.export_lora` says how; the folder must be new. A signer signs it, as `save_pretrained`.

        Raises:
            Refused: As `generate` and `router.model.export_lora.export_lora`.
        """
        prompts = self.read(inputs)
        planned = self._planned(prompts, choice).recorded()
        answered = write(self.base, planned, prompts, max_new_tokens)
        routes = [route for answer in answered.answers for route in answer.routes]
        return export_lora(Path(folder), routes, planned.experts, rank=rank, base=self.base, signer=signer)

    def generate(
        self,
        inputs: Asking,
        choice: Choices = DEFAULT,
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Answer a batch of inputs greedily, each up to the first of the texts to stop at; empty ones stop nothing.

        Raises:
            Refused: `REQUEST_INVALID`, or as `router.model.planner.plan`.
        """
        answered = self.answer(inputs, choice, max_new_tokens=max_new_tokens, stop=stop)
        return [answer.text for answer in answered.answers]

    def answer(
        self,
        inputs: Asking,
        choice: Choices = DEFAULT,
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        stop: Sequence[str] = (),
        explain: bool = False,
        full: bool = False,
    ) -> Answered:
        """Answer a batch of inputs as `generate`, on request with the experts that answered.

        Args:
            inputs: What is asked.
            choice: How it is routed.
            max_new_tokens: Longest answer.
            stop: As in `generate`.
            explain: Whether the answers carry their tokens and routes.
            full: Whether the routes carry the probabilities of all experts, too.

        Raises:
            Refused: As `generate`.
        """
        prompts = self.read(inputs)
        planned = self._planned(prompts, choice)
        if explain or full:
            planned = planned.recorded(full=full)
        return write(self.base, planned, prompts, max_new_tokens, [text for text in stop if text])

    def read(self, inputs: Asking, most: int | None = None) -> list[Prompt]:
        """Write chats down and tokenise, once, what is going to be asked; what was read before stays as it is.

        Args:
            inputs: What is asked.
            most: Tokens that an input may have where the base sets no bound; what is far longer is not tokenised.

        Raises:
            Refused: `REQUEST_INVALID`, or `DATA_TOO_LONG`.
        """
        found: list[Input | Prompt] = [*one_by_one(cast("Inputs", inputs))]
        check_inputs([each.text if isinstance(each, Prompt) else each for each in found])
        if bound := self.base.positions or most:
            written = [each for each in found if not isinstance(each, Prompt)]
            texts = (each if isinstance(each, str) else "".join(turn["content"] for turn in each) for each in written)
            check_letters(self.base, texts, bound)
        prompts = read_prompts(self.base, found)
        check_lengths(self.base, prompts)
        return prompts

    def _planned(self, prompts: Sequence[Prompt], choice: Choices) -> Planned:
        return plan(self.features, self.held, prompts, one_each(choice, len(prompts)))

    def prepared(self, choice: RoutingChoice) -> bool:
        """Tell whether a request of this choice finds worked out what its method needs once.

        Raises:
            Refused: As `router.model.planner.plan`.
        """
        generation = self.held.find(choice.release)
        pool = generation.allowing(choice.allow, choice.deny)
        method = choice.method or generation.settings.method
        if pool.experts and find_method(method) in BY_MIXTURE and not self.features.mixtures.knows(pool):
            return False
        # What is worked out of each expert alone serves any others beside it, too; an average does not.
        among = {pool} if method == "parameter-average" else {pool, generation.pool}
        return any(_preparation(method) in self._prepared.get(each, ()) for each in among)

    def prepare(self, choice: RoutingChoice) -> None:
        """Work out what a method needs once: statistics of public text, vectors that stand for experts.

        Takes up to minutes; other requests may be answered meanwhile. It holds for the experts that the choice allows.

        Raises:
            Refused: As `router.model.planner.plan`.
        """
        (part,) = self._planned(read_prompts(self.base, ["a"]), choice).parts
        draw = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            for path, module in part.plan.pool.modules.items():
                linear = self.base.model.get_submodule(path)
                u = torch.randn(1, linear.in_features, generator=draw)
                part.plan.method.choose(module, u.to(self.places[path], self.base.model.dtype))
        if isinstance(part.plan.method, BaseOnly) and part.asked.pool.experts and part.method != "base":
            return  # nobody was found for these inputs, and nothing was worked out
        known = self._prepared.setdefault(part.asked.pool, {})
        known.pop(name := _preparation(part.method), None)
        known[name] = find_method(part.method) in OWN_VECTORS
        # No more than are kept of those with vectors of their own.
        for former in [each for each, own in known.items() if own][:-KEPT_PROTOTYPES]:
            del known[former]

    def losses(self, inputs: Asking, targets: Sequence[str], choice: Choices = DEFAULT) -> list[float]:
        """Mean negative log-likelihood of each input's one target, in nats a token, its end token among them.

        Raises:
            Refused: As `generate`.
        """
        found = one_by_one(cast("Inputs", inputs))
        if not found or len(found) != len(targets):
            message = f"There are {len(found)} inputs and {len(targets)} targets."
            raise Refused(Code.REQUEST_INVALID, message, "Give one target for each input, and one input at least.")
        prompts = read_prompts(self.base, found)
        return [-each.mean for each in self.likelihoods(prompts, encode_pairs(self.base, prompts, targets), choice)]

    def likelihoods(
        self, inputs: Sequence[PromptLike], pairs: Sequence[TokenPair], choice: Choices = DEFAULT
    ) -> list[Likelihood]:
        """Score tokens that the model may write after its inputs.

        Args:
            inputs: By which methods route that read a request first.
            pairs: For each input its tokens and the target's, as `router.base.batching.encode_pairs` makes them.
            choice: How they are routed.

        Raises:
            Refused: As `router.model.planner.plan`.
        """
        planned = plan(self.features, self.held, inputs, one_each(choice, len(inputs)))
        with routing(planned.plan):
            scored = likelihoods(self.base, [pairs[at] for at in planned.order])
        return [each for _, each in sorted(zip(planned.order, scored, strict=True))]

    def probe(
        self,
        inputs: Sequence[Input],
        targets: Sequence[str],
        choice: RoutingChoice = DEFAULT,
        tick: Callable[[], None] = lambda: None,
    ) -> Probed:
        """Run the model over inputs and targets a few at a time, and see that it holds.

        Args:
            inputs: What is asked; a text may be its own target.
            targets: One for each input.
            choice: How they are routed.
            tick: Called between two batches; what it raises ends the probe.

        Raises:
            Refused: `PROBE_FAILED` if any figure is not finite, or if the model does not run; or as `losses`.
            Unavailable: `MEMORY_FULL`.
        """
        losses: list[float] = []
        try:
            with memory_watched(), largest_watched(self.base.model) as largest:
                for at in range(0, max(len(inputs), 1), _PROBED):
                    tick()
                    losses += self.losses(inputs[at : at + _PROBED], targets[at : at + _PROBED], choice)
        except RuntimeError as error:  # torch's family: out of memory, shapes, kernels
            raise Refused(
                Code.PROBE_FAILED,
                f"The routed model does not run on the probe: {first_line(error)}.",
                "Check the expert's ranks and modules, then train it again.",
            ) from error
        if not all(map(math.isfinite, losses)) or not largest.share < 1:
            raise Refused(
                Code.PROBE_FAILED,
                "With this expert the routed model's numbers on the probe are not finite.",
                "Train it again with a smaller learning rate.",
            )
        return Probed(tuple(losses), largest.share)


def _preparation(method: str) -> str:
    """Name what a method prepares; its argument matters only where vectors are worked out by it."""
    return method if method.startswith("genknowsub:") else find_method(method)
