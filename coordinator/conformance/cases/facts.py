"""Facts of a bundle: each field of its spec and of its sizes, left out, of another type, out of form, out of range."""

from typing import Any

from coordinator.conformance.case import Case
from coordinator.conformance.cases.enrolments import NO_DIGESTS, NO_NAMES, NO_TIMES, WEAK_KEYS
from coordinator.conformance.cases.envelopes import faulty
from coordinator.conformance.draft import FIRST, REMOVED, SPEC_PLACE, Unsigned, changed, dump
from coordinator.conformance.fault import Flaw, at_path, describe, in_payload
from protocol.bundle import ADAPTER_WEIGHTS, CARD, FILES, MAX_TEXT_BYTES
from protocol.errors import Code

INVALID, SCHEMA = Code.SPEC_INVALID, Code.ENVELOPE_SCHEMA
ROOT = SPEC_PLACE
NO_LINES = {
    "empty": "", "line-break": "a\nb", "carriage-return": "a\rb", "escape": "\x1b]52;c;YQ==\x07", "nul": "\0",
    "right-to-left": "a\u202eb", "line-separator": "a\u2028b", "zero-width": "a\u200bb", "soft-hyphen": "a\u00adb",
}  # fmt: skip
VALUES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("version", (0, 2, -1, "1", True, 1.0, None)),
    ("name", (REMOVED, None, 7, [])),
    ("pool", (REMOVED, None, 7)),
    ("base", (REMOVED, None, "base", [])),
    ("base.name", (REMOVED, None, 7, "x" * 201)),
    ("base.config", (REMOVED, None, 7)),
    ("base.weights", (REMOVED, None, 7)),
    ("base.tokenizer", (REMOVED, None, 7)),
    ("base.tokenizer_settings", ("x", 7)),
    ("base.revision", ("main",)),
    ("contributor", (REMOVED, None, 7)),
    ("modules", (REMOVED, None, [], {}, "all")),
    ("modules.*", (None, 7, [], {})),
    ("modules.*.kind", (REMOVED, None, 7, "loha", "LORA", "")),
    ("modules.*.d_in", (REMOVED, None, "8", True, 8.5, 0, -1, (1 << 20) + 1)),
    ("modules.*.d_out", (REMOVED, None, "8", True, 8.5, 0, -1, (1 << 20) + 1)),
    ("modules.*.rank", (REMOVED, None, "8", True, 2.0, 0, -1, 1025, 1_000_000)),
    ("modules.*.alpha", (REMOVED, None, "8", True, 0, -1, 4096.5, 1e30)),
    ("modules.*.side", ("input",)),
    ("modules.*.activation", ("relu",)),
    ("modules.*.dropout", (0.1,)),
    ("dtype", (REMOVED, None, 7, "", "float64", "int8", "F32", "float8_e4m3fn")),
    ("joint", (None, 1, "true")),
    ("privacy", (7, {}, {"epsilon": 1.0}, {"delta": 1e-6})),
    ("statistics", (None, 7, [], {"covariance": {}})),
    ("license", (REMOVED, None, 7, "x" * 101)),
    ("supersedes", (7, [])),
    ("created", (REMOVED, None, 7)),
    ("tool", (REMOVED, None, 7, "x" * 101)),
    ("extra", (1, None)),
    ("auto_mapping", ({"x": "y"},)),
)
NUMBERS: dict[str, tuple[Any, ...]] = {
    "privacy": tuple(
        {"epsilon": epsilon, "delta": delta, "clip": clip}
        for epsilon, delta, clip in (
            (0, 1e-6, 1.0), (-1.0, 1e-6, 1.0), (1e9, 1e-6, 1.0), ("1", 1e-6, 1.0), (1.0, 0, 1.0), (1.0, 1.0, 1.0),
            (1.0, 1e-6, 0), (1.0, 1e-6, 1e9),
        )
    ),
    "statistics": (
        {"centroid": {"width": 0}}, {"centroid": {"width": 65_537}}, {"centroid": {"width": "8"}}, {"centroid": {}},
        {"centroid": {"width": 8, "embedding": "x"}}, {"means": {"modules": []}}, {"means": {"modules": ["nowhere"]}},
        {"means": {"modules": "all"}}, {"means": {"noise": {"epsilon": 0, "delta": 1e-6, "rows": 9}}},
        {"means": {"noise": {"epsilon": 1.0, "delta": 1.0, "rows": 9}}},
        {"means": {"noise": {"epsilon": 1.0, "delta": 1e-6, "rows": 0}}}, {"means": {"noise": {"rows": 9}}},
    ),
}  # fmt: skip
PATHS = {
    "empty": "", "leading-dot": ".q", "trailing-dot": "q.", "two-dots": "a..q", "space": "a q", "upwards": "../q",
    "slash": "a/q", "star": "a.*", "regex": "a|b", "256-letters": "q" * 256, "umlaut": "ä", "escape": "\x1b[2J",
}  # fmt: skip
SIZES: tuple[Any, ...] = (-1, "1", 1.0, True, None, [], 1 << 53, 10**400)


def _rename_module(path: str) -> Any:
    """Say that the expert touches a module of another name."""

    def spoil(source: Unsigned) -> bytes:
        modules = source.document["predicate"]["spec"]["modules"]
        return in_payload((*ROOT, "modules"), {path: next(iter(modules.values()))})(source)

    return spoil


def _other_kind(fields: dict[str, Any]) -> Any:
    return in_payload((*ROOT, "modules", FIRST), fields)


def _beside(fields: dict[str, Any]) -> Any:
    """Say that the expert touches a second module, and how."""

    def spoil(source: Unsigned) -> bytes:
        modules = source.document["predicate"]["spec"]["modules"]
        return in_payload((*ROOT, "modules"), modules | {"other": fields})(source)

    return spoil


def _wider(source: Unsigned) -> bytes:
    module = next(iter(source.document["predicate"]["spec"]["modules"].values()))
    return in_payload((*ROOT, "modules", FIRST, "rank"), min(module["d_in"], module["d_out"]) + 1)(source)


def _negative(source: Unsigned) -> bytes:
    document = changed(source.document, ("predicate", "sizes", CARD), -(1 << 40))
    return source.signer.sign(dump(changed(document, ("predicate", "sizes", ADAPTER_WEIGHTS), 1 << 40)))


def _strings() -> list[Flaw]:
    """What is a text, but none of its form."""
    forms: tuple[tuple[tuple[str, ...], dict[str, str]], ...] = (
        (("name",), NO_NAMES), (("contributor",), NO_DIGESTS), (("pool",), NO_DIGESTS), (("created",), NO_TIMES),
        (("supersedes",), NO_DIGESTS), (("license",), NO_LINES),
        (("tool",), {name: text for name, text in NO_LINES.items() if text}),
        (("base", "name"), NO_LINES), (("base", "weights"), NO_DIGESTS),
    )  # fmt: skip
    return [
        Flaw(f"{'.'.join(path)}-{what}", in_payload((*ROOT, *path), text), INVALID)
        for path, texts in forms
        for what, text in texts.items()
    ]


def _modules() -> list[Flaw]:
    ia3 = {"kind": "ia3", "d_in": 8, "d_out": 8}
    low_rank = {"d_in": 8, "d_out": 8, "rank": 2, "alpha": 1.0}
    other: dict[str, dict[str, Any]] = {
        "ia3-without-side": ia3, "ia3-of-another-side": ia3 | {"side": "both"},
        "ia3-with-rank": ia3 | {"side": "input", "rank": 2},
        "bottleneck-without-activation": low_rank | {"kind": "bottleneck"},
        "bottleneck-of-another-activation": low_rank | {"kind": "bottleneck", "activation": "swish"},
        "lora-with-side": low_rank | {"kind": "lora", "side": "input"},
    }  # fmt: skip
    return [
        *(Flaw(f"module-path-{what}", _rename_module(path), INVALID) for what, path in PATHS.items()),
        *(Flaw(f"module-{what}", _other_kind(fields), INVALID) for what, fields in other.items()),
        Flaw("modules-of-two-kinds", _beside(low_rank | {"kind": "dora"}), INVALID),
        Flaw("rank-above-the-width", _wider, INVALID),
    ]


def _sizes() -> list[Flaw]:
    place = ("predicate", "sizes")
    found = [
        Flaw(f"size-{describe(value)}", in_payload((*place, ADAPTER_WEIGHTS), value),
              SCHEMA if type(value) is int and value > 0 else INVALID)
        for value in SIZES
    ]  # fmt: skip
    found += [Flaw(f"sizes-{describe(value)}", in_payload(place, value), INVALID) for value in (REMOVED, None, [], {})]
    found += [
        Flaw(f"size-of-{name}-too-large", in_payload((*place, name), most + 1), Code.TOO_LARGE)
        for name, most in MAX_TEXT_BYTES.items()
    ]
    found.append(Flaw("sizes-that-cancel-out", _negative, INVALID))
    found += [Flaw(f"size-of-{name}-left-out", in_payload((*place, name), REMOVED), INVALID) for name in FILES]
    found += [Flaw(f"size-of-{name}-for-another", _sized_as(name), Code.FILE_MISSING) for name in FILES]
    return found


def _sized_as(name: str) -> Any:
    """Tell the size of one file under another name."""

    def spoil(source: Unsigned) -> bytes:
        without = changed(source.document, ("predicate", "sizes", name), REMOVED)
        return source.signer.sign(dump(changed(without, ("predicate", "sizes", "other"), 1)))

    return spoil


def _subjects() -> list[Flaw]:
    """Other files than the five."""

    def without(name: str) -> Any:
        def spoil(source: Unsigned) -> bytes:
            kept = [entry for entry in source.document["subject"] if entry["name"] != name]
            return in_payload(("subject",), kept)(source)

        return spoil

    def beside(name: str) -> Any:
        def spoil(source: Unsigned) -> bytes:
            entry = {"name": name, "digest": {"sha256": "a" * 64}}
            return in_payload(("subject",), [*source.document["subject"], entry])(source)

        return spoil

    extra = ("adapter_model.bin", "modeling.py", "bundle.dsse.json", "readme.md", "Spec.json", "a.zip", "spec.json.tmp")
    return [
        *(Flaw(f"file-{name}-left-out", without(name), Code.FILE_MISSING) for name in FILES),
        *(Flaw(f"file-{name}-beside", beside(name), Code.FILE_NOT_ALLOWED) for name in extra),
    ]


FAULTS = [
    *(fault for path, values in VALUES for fault in at_path(ROOT, INVALID, ((path, value) for value in values))),
    *(
        Flaw(f"{name}-in-numbers-{place}", in_payload((*ROOT, name), value), INVALID)
        for name, values in NUMBERS.items()
        for place, value in enumerate(values)
    ),
    *_strings(),
    *_modules(),
    *_sizes(),
    *_subjects(),
    Flaw("alpha-NaN", in_payload((*ROOT, "modules", FIRST, "alpha"), float("nan")), SCHEMA),
    Flaw("alpha-infinite", in_payload((*ROOT, "modules", FIRST, "alpha"), float("inf")), SCHEMA),
    Flaw("rank-beyond-2^53", in_payload((*ROOT, "modules", FIRST, "rank"), 1 << 60), SCHEMA),
    Flaw("predicate-empty", in_payload(("predicate",), {}), INVALID),
    Flaw("predicate-with-more", in_payload(("predicate", "code"), "x"), INVALID),
    *(
        Flaw(f"weak-contributor-{place}", in_payload((*ROOT, "contributor"), key), Code.WEAK_KEY)
        for place, key in enumerate(WEAK_KEYS)
    ),
    Flaw("contributor-is-another", in_payload((*ROOT, "contributor"), "5" + "8" * 63), Code.SIGNER_MISMATCH),
]


def cases() -> list[Case]:
    """All of them."""
    return faulty("fact", "Begin", FAULTS)
