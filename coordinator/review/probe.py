"""What only the model can tell: how far an expert goes alone, and whether the pool still answers with it."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from coordinator.admission.limited_process import CheckFailedError
from coordinator.policy.review_rule import Figures, doubt, doubt_gates, judge_alone, judge_rise
from coordinator.registry.registry import Registry
from coordinator.review.blame import culprits
from coordinator.review.bundle_cache import Cache
from coordinator.review.deadline import Deadline
from coordinator.review.kept_figures import BASE, KeptFigures
from coordinator.workspace.material import Material
from protocol.bundle import Bundle
from protocol.errors import Code, Refused, Unavailable
from protocol.release import ReleasedExpert
from protocol.spec import Review

if TYPE_CHECKING:  # torch comes with the first expert
    from router.model.cap import Cap
    from router.model.routed_model import RoutedModel
    from router.query.request import Input


class BlamedError(Exception):
    """Experts that were let in are at fault, whoever is being tried.

    Args:
        verdicts: What is said of each, by digest.
    """

    def __init__(self, verdicts: dict[str, Refused]) -> None:
        super().__init__(", ".join(verdicts))
        self.verdicts = verdicts


class Reviewer:
    """One long-lived model that holds the newest release, and tries each new expert alone and beside the others.

    Args:
        load: Makes the model, with no experts; called once, when the first expert comes.
        registry: Knows the bundles.
        cache: Opens them.
        material: What experts are tried on.
        review: The pool's figures.
        kept: Remembers what was measured of each expert.
        seconds: How long one expert may keep the model busy alone, and again in the pool.
    """

    def __init__(
        self,
        load: Callable[[], "RoutedModel"],
        registry: Registry,
        cache: Cache,
        *,
        material: Material,
        review: Review,
        kept: KeptFigures,
        seconds: float,
    ) -> None:
        self._load, self._registry, self._cache = load, registry, cache
        self._material, self._review, self._kept, self._seconds = material, review, kept, seconds
        self._model: RoutedModel | None = None
        self._tried: tuple[list[str], Figures] | None = None
        """The list that was tried last, oldest expert first, and what it came to."""
        self._cleared: float | None = None
        """Loss up to which nobody alone was found to blame."""

    @property
    def material(self) -> str:
        """Digest of what experts are tried on."""
        return self._material.digest

    def examine(self, expert: ReleasedExpert) -> None:
        """Judge one expert by itself, at weight one, whatever else the pool holds; measured once.

        Raises:
            Refused: As `judge_alone`, or what the router refuses the bundle with.
            CheckFailedError: It took too long.
            Unavailable: The base cannot be loaded, or breaks on its own.
        """
        base = self._base()
        judge_alone(self._kept.find(expert.bundle) or self._measure(expert), base, self._review)

    def doubt(self, bundle: str, others: Collection[str]) -> Refused | None:
        """Say why a person must decide about an expert that was examined, beside those that were let in, by digest."""
        mine, theirs = self._kept.find(bundle), map(self._kept.find, others)
        known = [figures.norms for figures in theirs if figures is not None]
        return None if mine is None else doubt(mine.norms, known, self._review)

    def doubt_gates(self, new: ReleasedExpert, released: Sequence[ReleasedExpert]) -> Refused | None:
        """Say why a person must decide about an expert that was examined and chooses as one of somebody else's does.

        Raises:
            CheckFailedError: It took too long.
            Unavailable: The model cannot be brought to the experts.
        """
        others = [each for each in released if each.contributor != new.contributor]
        if not others:
            return None
        model, deadline = self._hold(released), Deadline(self._seconds)
        model.append(self._open(new.bundle), name=new.name, contributor=new.contributor)
        try:
            alike = model.find_alike(new.bundle, *self._pairs(), tick=deadline.check)
        finally:
            model.remove(new.bundle)
        first = max(others, key=lambda each: alike[each.bundle])
        return doubt_gates(f"{first.name} by {first.contributor}", alike[first.bundle])

    def forget(self, bundle: str) -> None:
        """Drop what was kept of a bundle that is out for good."""
        self._cache.drop(bundle)
        self._kept.drop(bundle)

    def try_expert(
        self, experts: Sequence[ReleasedExpert], new: ReleasedExpert, apart: Collection[str] = ()
    ) -> Figures:
        """Run the model with one more expert that was examined, and return what it comes to.

        Args:
            experts: The list that the new expert would be released in.
            new: The new one.
            apart: Digests of experts that are known to be at fault; the new one is tried beside the others.

        Raises:
            Refused: `PROBE_FAILED` or `HARMFUL`, or what the router refuses the bundle with; it is out again.
            BlamedError: The pool fails without it.
            CheckFailedError: It took too long.
            Unavailable: The model cannot be brought to the experts before.
        """
        model = self._hold([expert for expert in experts if expert.bundle not in (new.bundle, *apart)])
        before = self._before(model)
        deadline = Deadline(self._seconds)
        try:
            model.append(self._open(new.bundle), name=new.name, contributor=new.contributor)
            now = self._run(model, tick=deadline.check)
            judge_rise(now.losses, before.losses, self._review.max_rise, "with this expert in the pool")
        except BaseException:
            if new.bundle in model.digests:
                model.remove(new.bundle)
            raise
        self._tried = list(model.digests), now
        return now

    def fit_cap(
        self, experts: Sequence[ReleasedExpert], most: float, newcomers: Collection[str], calibration: bytes | None
    ) -> "Cap":
        """Find the biases that keep every contributor of a list to a share of the material.

        Args:
            experts: The list.
            most: The share, in fair shares.
            newcomers: Contributors who count as one.
            calibration: What a release with it adds to scores beside them.

        Raises:
            Unavailable: The model cannot be brought to the experts, or it took too long.
        """
        from router.model.cap import Allowed  # noqa: PLC0415 - the router's floors, with the first expert
        from router.pool.calibration import Calibration  # noqa: PLC0415 - as above

        model, deadline = self._hold(experts), Deadline(self._seconds)
        inputs, targets = self._pairs()
        beside = None if calibration is None else Calibration.load(calibration)
        try:
            return model.fit_cap(
                inputs, targets, allowed=Allowed(most, newcomers), calibration=beside, tick=deadline.check
            )
        except CheckFailedError as error:  # nobody's fault: there are many experts, or much material
            what = f"To fit the cap of {len(experts)} experts {error}."
            raise Unavailable(Code.INTERNAL, what, "Raise `review_s` in coordinator.toml.") from error

    def _pairs(self) -> tuple[list["Input"], list[str]]:
        """All of the material, inputs and targets; a line is its own target."""
        inputs, targets = list["Input"](self._material.lines), list(self._material.lines)
        for rows in self._material.rows.values():
            inputs += rows.inputs
            targets += rows.targets
        return inputs, targets

    def _before(self, model: "RoutedModel") -> Figures:
        """Measure the pool as it is; if it fails, find out who is to blame."""
        experts = list(model.digests)
        if self._tried and self._tried[0] == experts:
            return self._tried[1]
        try:
            figures = self._run(model)
        except Refused as verdict:
            if guilty := self._culprits(model):
                raise BlamedError(dict.fromkeys(guilty, verdict)) from verdict
            raise Unavailable(
                Code.INTERNAL, f"The pool failed, then held: {verdict.message}", verdict.hint
            ) from verdict
        allowed = (_total(self._base()) if self._cleared is None else self._cleared) + self._review.max_rise
        if _total(figures) > allowed:
            if guilty := self._culprits(model):
                what = f"Without this expert the pool's loss is more than {self._review.max_rise:g} nats a token lower."
                harmful = Refused(Code.HARMFUL, what, "Train it longer or on other data.")
                raise BlamedError(dict.fromkeys(guilty, harmful))
            self._cleared = _total(figures)
        self._tried = experts, figures
        return figures

    def _culprits(self, model: "RoutedModel") -> list[str]:
        def trial(left_out: Collection[str]) -> float | None:
            with model.lacking(*left_out):
                try:
                    return _total(self._run(model))
                except Refused:
                    return None

        return culprits(list(model.digests), trial, self._review.max_rise)

    def _hold(self, experts: Sequence[ReleasedExpert]) -> "RoutedModel":
        """Bring the model to a list of experts."""
        wanted = {expert.bundle: expert for expert in experts}
        try:
            model = self._loaded()
            held = set(model.digests)
            for digest in held - wanted.keys():
                model.remove(digest)
            for digest, expert in wanted.items():
                if digest not in held:
                    model.append(self._open(digest), name=expert.name, contributor=expert.contributor)
        except Refused as error:  # the base or an older expert: not the new one's fault
            raise Unavailable(Code.INTERNAL, error.message, error.hint) from error
        return model

    def _measure(self, expert: ReleasedExpert) -> Figures:
        """Measure an expert alone at weight one, and keep what is found."""
        model, deadline, name = self._loaded(), Deadline(self._seconds), f"{expert.contributor}/{expert.name}"
        held = expert.bundle in model.digests
        if not held:
            name = f"={expert.bundle}"  # no expert's: a predecessor may be there under the name
            model.append(self._open(expert.bundle), name=name)
        try:
            norms = model.norms(expert.bundle, deadline.check)
            figures = Figures(norms)
            if all(norm <= self._review.max_norm for norm in norms.values()):  # else nobody asks how it answers
                figures = self._alone(model, norms, f"expert:{name}", deadline)
        finally:
            if not held:
                model.remove(expert.bundle)
        self._kept.keep(expert.bundle, figures)
        return figures

    def _alone(self, model: "RoutedModel", norms: dict[str, float], method: str, deadline: Deadline) -> Figures:
        try:
            found = self._run(model, method, deadline.check)
        except Refused as verdict:
            if verdict.code is not Code.PROBE_FAILED:
                raise
            return Figures(norms, largest=1.0)
        return Figures(norms, found.largest, found.losses)

    def _base(self) -> Figures:
        """What the base alone comes to."""
        if (known := self._kept.find(BASE)) is None:
            try:
                known = self._run(self._loaded(), "base")
            except Refused as error:
                raise Unavailable(Code.INTERNAL, f"The base fails by itself: {error.message}", error.hint) from error
            self._kept.keep(BASE, known)
        return known

    def _run(self, model: "RoutedModel", method: str | None = None, tick: Callable[[], None] = lambda: None) -> Figures:
        """Run the model over all of the material, routed by a method or else as the pool is."""
        from router.query.request import RoutingChoice  # noqa: PLC0415 - the router's floors, with the first expert

        choice, lines = RoutingChoice(method), self._material.lines
        largest, losses = model.probe(lines, lines, choice, tick).largest, {}
        for name, rows in self._material.rows.items():
            probed = model.probe(rows.inputs, rows.targets, choice, tick)
            largest, losses[name] = max(largest, probed.largest), probed.loss
        return Figures({}, largest, losses)

    def _loaded(self) -> "RoutedModel":
        try:
            self._model = self._model or self._load()
        except Refused as error:
            raise Unavailable(Code.INTERNAL, error.message, error.hint) from error
        return self._model

    def _open(self, digest: str) -> Bundle:
        row = self._registry.bundles.find(digest)
        if row is None:
            raise Unavailable(Code.STORE_DAMAGED, f"The registry lost bundle {digest[:16]}.", "Restore the registry.")
        return self._cache.open(row)


def _total(figures: Figures) -> float:
    return max(figures.losses.values(), default=0.0)
