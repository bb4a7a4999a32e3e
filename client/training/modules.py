"""Which modules an expert is laid on."""

from collections.abc import Mapping

from protocol.adapters import BottleneckModule, DoraModule, Ia3Module, LoraModule, Module, RsLoraModule, Shape
from protocol.errors import Code, Refused
from protocol.spec import PoolSpec, Recipe


def plan_modules(pool: PoolSpec, recipe: Recipe) -> dict[str, Module]:
    """Lay one module of the recipe's kind over every module of the pool.

    Raises:
        Refused: `RANK_OUT_OF_BOUNDS`.
    """
    narrowest = min(min(shape.d_in, shape.d_out) for shape in pool.modules.values())
    limit = min(pool.policy.max_rank, narrowest)
    if recipe.kind != "ia3" and recipe.rank > limit:
        raise Refused(
            Code.RANK_OUT_OF_BOUNDS,
            f"Rank {recipe.rank} is too large; the pool takes at most {pool.policy.max_rank} and the base's narrowest "
            f"module is {narrowest} wide.",
            f"Give --rank {limit} or less.",
        )
    return lay_modules(pool.modules, recipe)


def lay_modules(shapes: Mapping[str, Shape], recipe: Recipe) -> dict[str, Module]:
    """Lay one module of a recipe's kind over every linear module.

    (IA)3 scales outputs, but for the modules that read the widest input, the second half of a feed-forward
    block: there it scales the input, as its paper does.

    Args:
        shapes: Linear modules by path.
        recipe: Kind, rank and alpha.
    """
    widest = max(shape.d_in for shape in shapes.values())
    return {path: _lay(shape.d_in, shape.d_out, recipe, widest) for path, shape in sorted(shapes.items())}


def _lay(d_in: int, d_out: int, recipe: Recipe, widest: int) -> Module:
    rank, alpha = recipe.rank, recipe.alpha
    match recipe.kind:
        case "lora":
            return LoraModule(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha)
        case "rslora":
            return RsLoraModule(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha)
        case "dora":
            return DoraModule(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha)
        case "ia3":
            return Ia3Module(d_in=d_in, d_out=d_out, side="input" if d_out < d_in == widest else "output")
        case "bottleneck":
            return BottleneckModule(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha, activation=recipe.activation)
