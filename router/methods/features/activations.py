"""What enters a base model's modules while it reads, no expert taking part."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from router.base.batching import PromptLike, batch, masked_mean, read_prompts
from router.base.loading import Base
from router.base.module_paths import reads_input, shared_input
from router.layer.batch_rows import inseparable
from router.layer.routed_linear import InputWatch, routing

_AT_ONCE = 32
See = Callable[[str, Tensor, Tensor], None]
"""Given a module's path, its input [b, s, d] and which positions hold tokens [b, s]."""


class Reader:
    """Reads with the base alone.

    Its linear modules, at the paths, are routed ones. Safe beside requests in other threads: each forward pass is
    watched where it runs, not by hooks on the model.
    """

    def __init__(self, base: Base, paths: Sequence[str]) -> None:
        self.base = base
        widths = {path: base.model.get_submodule(path).in_features for path in paths}
        first: dict[tuple[tuple[str, ...], object], str] = {}
        self.sources = {path: first.setdefault((shared_input(path), widths[path]), path) for path in paths}
        """By path, the first of the modules that read the same input: it is enough to look at these."""

    def of_prompt(self, path: str) -> bool:
        """Tell whether a module sees what the model is asked, and not only what it answers."""
        return self.base.architecture == "decoder-only" or reads_input(path)

    def look(self, prompts: Sequence[Sequence[int]], see: See, written: Sequence[Sequence[int]] | None = None) -> None:
        """Let the base read, a few prompts at a time.

        Args:
            prompts: Tokens of inputs.
            see: Told what each module is given.
            written: For an encoder-decoder, tokens that the decoder has written to each prompt, as if it were to go on;
                without them it is about to begin.
        """
        begun = [()] * len(prompts) if written is None else written
        for start in range(0, len(prompts), _AT_ONCE):
            self._look(prompts[start : start + _AT_ONCE], see, begun[start : start + _AT_ONCE])

    def _look(self, prompts: Sequence[Sequence[int]], see: See, written: Sequence[Sequence[int]]) -> None:
        model = self.base.model
        # Padded on the right: a model that numbers positions by itself begins with the first token then.
        read = batch(self.base, prompts, "right")
        masks = {True: read["attention_mask"].bool()}
        if self.base.architecture == "encoder-decoder":
            begin = model.config.decoder_start_token_id
            so_far = batch(self.base, [[begin, *row] for row in written], "right")
            read |= {f"decoder_{name}": tensor for name, tensor in so_far.items()}
            masks[False] = so_far["attention_mask"].bool()

        def watch(path: str, u: Tensor) -> None:
            mask = masks[self.of_prompt(path)]
            if u.shape[:-1].numel() != mask.numel():
                raise inseparable(path)
            see(path, u.reshape(*mask.shape, -1), mask)

        # Without the head, which is a decoder's largest matrix; T5's model has none but itself.
        with torch.inference_mode(), routing(InputWatch(watch)):
            model.base_model(**read, use_cache=False)

    def pooled(self, inputs: Sequence[PromptLike], paths: Collection[str]) -> dict[str, Tensor]:
        """Average what enters modules that see the prompt over its tokens; returns [b, d] float32 by path.

        An input that stands several times, as one with choices to rank does, is read once.
        """
        tokens = [tuple(prompt.tokens) for prompt in read_prompts(self.base, inputs)]
        rows = {row: at for at, row in enumerate(dict.fromkeys(tokens))}
        found: dict[str, list[Tensor]] = {path: [] for path in paths}

        def see(path: str, u: Tensor, mask: Tensor) -> None:
            if path in found:
                found[path].append(masked_mean(u, mask))

        self.look(list(rows), see)
        places = torch.tensor([rows[row] for row in tokens])
        return {path: torch.cat(means)[places.to(means[0].device)] for path, means in found.items()}
