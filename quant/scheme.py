"""Scheme: bit width, group size, symmetry, levels and grid search of a quantized weight."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Self, TypeVar

from quant.errors import SchemeError
from quant.levels.base import (
    HESSIAN,
    SEARCHES,
    WIDTHS,
    Levels,
    built_in_levels,
    load_levels,
)
from quant.parts import Part
from quant.scheme_names import (
    SCALE_WORDS,
    as_name,
    either,
    group,
    listed,
    options,
    separator,
    width,
)
from quant.tiling import numbers_of_search

BITS = WIDTHS
GRIDS = ("minmax", *SEARCHES)
SCALE_DTYPES = {"float16": 16, "bfloat16": 16, "float32": 32}

# What a scheme may quantize outside the blocks: its field, and what begins its part of the name.
OUTSIDE = {"head": "_head_", "embeddings": "_emb_"}
# Between the names of the schemes of layers.
_MIXED = "+"
# What a pattern of layer names has, and the full name of a layer has not.
_WILD = re.compile(r"[*?\[]")

_S = TypeVar("_S")


@dataclass(frozen=True)
class Scheme:
    """The set of values that a weight matrix [out, in] may take after quantization.

    bits         2 to 8 bits per code. Ternary codes are stored in 2 bits.
    group_size   input columns that share one grid; None means one grid per output row. If it does
                 not divide the number of inputs, the last group is shorter than the others.
    symmetric    whether the zero-point is fixed at 2^(bits-1) instead of searched (uniform levels
                 only).
    levels       "uniform": scale * (code - zero); "ternary": {row minimum, 0, row maximum} as in
                 the appendix of the paper, which is not a uniform grid. Other levels are given as
                 the dotted name of a module that ends in LEVELS, as a Part, or as a Levels object
                 (quant.levels.base).
    grid         "minmax": the range of the weights, extended to contain 0 (the paper's quantizer);
                 "mse": that range, shrunk to minimise the squared error; "hessian": shrunk to
                 minimise the error of the layer's outputs by this group alone, for solvers that
                 read the Hessian of its inputs (quant.grid_search).
    scale_dtype  storage type of the scales. Grids are rounded to it *before* weights are quantized,
                 so the solver optimises exactly the values that are stored.
    head         scheme of the model's language-model head (quant.head), which has uniform levels or
                 those of the layers; None keeps the head in the dtype of the model. The scheme of a
                 weight matrix has none (`without_head`).
    embeddings   scheme of the table of token embeddings (quant.embedding), on the same terms.
    layers       schemes of layers that have another than this one, as pairs of a pattern and a
                 scheme (or a mapping): full names of layers, with the wildcards * ? [] of shells.
                 Levels are those of the other layers; a weight's own scheme has none (`of`).

    Raises SchemeError, with a sentence that says what to change, for an impossible combination.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = False
    levels: str | Part | Levels = "uniform"
    grid: str = "minmax"
    scale_dtype: str = "float16"
    head: Scheme | None = None
    embeddings: Scheme | None = None
    layers: tuple[tuple[str, Scheme], ...] = ()

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise SchemeError(f"bits={self.bits} is not a bit width; choose one of {listed(BITS)}.")
        if self.group_size is not None and self.group_size < 1:
            raise SchemeError(
                f"group_size={self.group_size} is not a number of columns; "
                "use null for one grid per row, or 1 or more."
            )
        kind = self.kind
        if any(each.name == kind.name and each != kind for each in built_in_levels()):
            raise SchemeError(
                f"levels={kind.name} is the name of Bitsweep's own levels, and checkpoints store "
                "levels by name: give your LEVELS another name."
            )
        for field, allowed in (
            ("grid", tuple(dict.fromkeys((*GRIDS, *kind.grids)))),
            ("scale_dtype", tuple(SCALE_DTYPES)),
        ):
            if getattr(self, field) not in allowed:
                raise SchemeError(
                    f"{field}={getattr(self, field)!r} is unknown; choose one of {listed(allowed)}."
                )
        widths = kind.bits or BITS
        if (
            self.bits not in widths
            or (self.symmetric and not kind.symmetric)
            or self.grid not in kind.grids
        ):
            symmetry = "" if kind.symmetric else ", symmetric=false"
            raise SchemeError(
                f"{kind.about}: use bits={either(widths)}{symmetry} and grid={either(kind.grids)} "
                f"with levels={kind.name}."
            )
        if self.scale_dtype != "float16" and not kind.scaled:
            raise SchemeError(
                f"scale_dtype={self.scale_dtype} has no effect, because {kind.name} levels define "
                "the storage type of every number themselves: leave it out."
            )
        if kind.check is not None:
            kind.check(self)
        for what, own in self.outside.items():
            self._check_outside(what, own, kind)
        given = self.layers.items() if isinstance(self.layers, Mapping) else self.layers
        object.__setattr__(self, "layers", tuple(given))
        self._check_layers(kind)

    def _check_outside(self, what: str, own: Scheme, kind: Levels) -> None:
        """Check the scheme of the head or of the embeddings beside that of the layers."""
        spoken = {"head": "the head is", "embeddings": "the embeddings are"}[what]
        if not isinstance(own, Scheme) or own != own.without_head:
            raise SchemeError(
                f"{what}={own!r} is not the scheme of one layer; use Scheme(bits=8, group_size=32),"
                f" or None to keep the {what} in the dtype of the model."
            )
        if own.needs_hessian:
            raise SchemeError(
                f"{what}.grid={HESSIAN} needs a Hessian, and {spoken} rounded to nearest without "
                f"one: use {what}.grid=mse or minmax."
            )
        allowed = dict.fromkeys(("uniform", kind.name))
        if own.kind.name not in allowed or (own.kind.name == kind.name and own.kind != kind):
            raise SchemeError(
                f"{what}.levels={own.kind.name} cannot be stored beside layers with {kind.name} "
                f"levels: use {either(allowed)}."
            )

    def _check_layers(self, kind: Levels) -> None:
        patterns = [pattern for pattern, _ in self.layers]
        for pattern, scheme in self.layers:
            where = f"layers[{pattern}]"
            if not isinstance(scheme, Scheme) or scheme != scheme.without_head:
                raise SchemeError(
                    f"{where}={scheme!r} is not the scheme of one layer; use Scheme(4, 64)."
                )
            if scheme.kind != kind:
                raise SchemeError(
                    f"{where}={scheme.name} has {scheme.kind.name} levels, and the other layers "
                    f"{kind.name} ones: a model has layers of one kind of levels."
                )
            if patterns.count(pattern) > 1:
                raise SchemeError(f"{where} is given twice: leave one out.")

    def of(self, layer: str) -> Scheme:
        """Return the scheme of a linear layer in the blocks, by its full name.

        Raises SchemeError if patterns give it two schemes.
        """
        named = self._named.get(layer)
        found = {} if named is None else {named: layer}
        for pattern, scheme in self._patterns:
            if fnmatchcase(layer, pattern):
                found.setdefault(scheme, pattern)
        if len(found) > 1:
            said = " and ".join(f"{pattern}: {each.name}" for each, pattern in found.items())
            raise SchemeError(
                f"scheme.layers gives {layer} two schemes ({said}): change a pattern, so that one "
                "of them is left."
            )
        return next(iter(found), self.without_head)

    def require_layers(self, layers: Iterable[str]) -> None:
        """Raise SchemeError for a pattern that is that of no layer, and for a layer of two schemes.

        layers  full names of all linear layers that will be quantized.
        """
        known = list(layers)
        names = set(known)
        for pattern, scheme in self.layers:
            if pattern not in names and not any(fnmatchcase(name, pattern) for name in known):
                shown = f", such as {known[0]}" if known else ""
                raise SchemeError(
                    f"scheme.layers[{pattern}]={scheme.name} is the pattern of none of the "
                    f"model's {len(known)} quantized layers{shown}: correct it, or leave it out."
                )
        for name in known:
            self.of(name)

    @cached_property
    def _named(self) -> dict[str, Scheme]:
        """The schemes of layers that are given by their full names: one for each, of many."""
        return {name: scheme for name, scheme in self.layers if not _WILD.search(name)}

    @cached_property
    def _patterns(self) -> list[tuple[str, Scheme]]:
        return [(pattern, scheme) for pattern, scheme in self.layers if _WILD.search(pattern)]

    @property
    def every(self) -> tuple[Scheme, ...]:
        """The schemes that layers in the blocks may have, that of most layers first."""
        return tuple(dict.fromkeys((self.without_head, *(scheme for _, scheme in self.layers))))

    @classmethod
    def parse(cls, name: str, levels: Iterable[str | Part | Levels] = ()) -> Self:
        """Parse the name of a scheme; the inverse of the property `name`.

            w4  w5g64  w3g64_sym  w2g32_mse  w4g128_bf16  w4_fp32  ternary_g8  w4g64_head_w8g32
            w4g64_emb_w8g32  w4g64_head_w8g32_emb_w8g32

        A name is w and the bit width (or the name of other levels), then g and the group size, then
        options in any order: _sym for symmetric grids, _mse or _hessian for searched grids, _bf16
        or _fp32 for scales that are not float16. _head_ begins the name of the head's scheme, _emb_
        after it that of the embeddings'.
        `levels` adds kinds of levels to the built-in ones. Raises SchemeError that names the wrong
        part of the name and the valid ones.
        """
        head, embeddings = OUTSIDE.values()
        if head in name.partition(embeddings)[2]:
            raise SchemeError(f"{name!r}: {head} stands in front of {embeddings}: put it there.")
        for what, mark in reversed(OUTSIDE.items()):
            layers, marked, own = name.partition(mark)
            if marked:
                return cls._beside(name, cls.parse(layers, levels), what, cls.parse(own, levels))
        first, mixed, other = name.partition(_MIXED)
        if mixed:
            raise SchemeError(
                f"{name!r} is the name of layers with several schemes, which does not say which "
                f"have which: use scheme={first} 'scheme.layers={{PATTERN: {other}}}'."
            )
        given, kind, rest = _beginning(name, levels)
        fields: dict[str, Any] = {"levels": given, "grid": kind.grids[0]}
        if kind.one_width:
            assert kind.bits is not None
            fields["bits"] = kind.bits[0]
        else:
            fields["bits"], rest = width(name, kind.prefix, kind.bits or BITS, rest)
        begun = name.removesuffix(rest)
        grouped = re.match(rf"{separator(begun)}g([0-9]*)(?=_|$)", rest)
        if grouped is not None:
            fields["group_size"] = group(name, begun, grouped[1])
            rest = rest[grouped.end() :]
        fields |= options(name, begun, kind.symmetric, kind.grids[1:], rest)
        try:
            return cls(**fields)
        except SchemeError as error:
            raise SchemeError(f"{name}: {as_name(str(error), begun)}") from error

    @classmethod
    def _beside(cls, name: str, layers: Self, what: str, own: Scheme) -> Self:
        try:
            return replace(layers, **{what: own})  # type: ignore[arg-type]
        except SchemeError as error:
            raise SchemeError(f"{name}: {error}") from error

    @property
    def without_head(self) -> Scheme:
        """The scheme of the linear layers in the blocks that `layers` does not name."""
        plain = not self.outside and not self.layers
        return self if plain else replace(self, head=None, embeddings=None, layers=())

    def beside(self, outside: Mapping[str, Scheme]) -> Scheme:
        """Return the scheme with those of what is quantized outside the blocks, by field."""
        return replace(self, **outside)  # type: ignore[arg-type]

    @property
    def outside(self) -> dict[str, Scheme]:
        """The schemes of what is quantized outside the blocks, by their fields (OUTSIDE)."""
        found = {what: getattr(self, what) for what in OUTSIDE}
        return {what: own for what, own in found.items() if own is not None}

    @property
    def needs_hessian(self) -> bool:
        """Whether grids are searched with the Hessian of the layer's inputs."""
        return self.grid == HESSIAN

    @property
    def kind(self) -> Levels:
        """The kind of levels, which finds grids, encodes weights and decodes codes."""
        return load_levels(self.levels)

    @property
    def max_code(self) -> int:
        """Largest code: 2^bits - 1, or 2 for ternary (0 minimum, 1 zero, 2 maximum)."""
        return (self.kind.codes or 2**self.bits) - 1

    @property
    def name(self) -> str:
        """Short name for tables and files: w4, w3g128_sym, ternary_g8, w4_bf16, w4_head_w8g32.

        Of layers with several schemes it has all of them: w3g64+w4g64.
        """
        if self.outside:
            own = [f"{OUTSIDE[what]}{each.name}" for what, each in self.outside.items()]
            return "".join([replace(self, head=None, embeddings=None).name, *own])
        if self.layers:
            return _MIXED.join(each.name for each in self.every)
        kind = self.kind
        name = kind.prefix if kind.one_width else f"{kind.prefix}{self.bits}"
        if self.group_size is not None:
            name += f"{separator(name)}g{self.group_size}"
        words = [word for word, dtype in SCALE_WORDS.items() if dtype == self.scale_dtype]
        searched = [self.grid] if self.grid != kind.grids[0] else []
        return "_".join([name, *["sym"] * self.symmetric, *searched, *words])

    def groups(self, inputs: int) -> int:
        """Number of groups of a weight with `inputs` columns; the last group may be short."""
        return -(-inputs // (self.group_size or inputs))

    def short_group(self, inputs: int) -> bool:
        """Whether the last group is shorter than group_size; not every format can store that."""
        return self.group_size is not None and inputs % self.group_size != 0

    def span(self, inputs: int) -> int:
        """Columns whose grids are found together, for a weight with `inputs`: one group or more."""
        together, size = self.kind.span, self.group_size
        return inputs if together is None or size is None else min(together * size, inputs)

    def search_numbers(self, inputs: int) -> int:
        """Numbers in memory while grids of a row of `inputs` columns are searched; 0 without."""
        if self.grid not in SEARCHES or self.kind.candidates is None:
            return 0
        span = self.span(inputs)
        return numbers_of_search(span) + (span * (span + inputs) if self.needs_hessian else 0)

    def overhead(self, inputs: int) -> int:
        """Stored bits of one output row with `inputs` columns, without its codes."""
        groups = self.groups(inputs)
        return sum(
            each.entries(groups) * each.count(self) * each.bits(self) for each in self.kind.tensors
        )

    def refusal(self, inputs: int) -> str | None:
        """Why a weight with `inputs` columns cannot be quantized to this scheme; None: it can.

        The end of a sentence that begins with the name of the scheme.
        """
        return None if self.kind.refuses is None else self.kind.refuses(self, inputs)

    def require(self, inputs: int, layer: str) -> None:
        """Raise SchemeError unless a weight with `inputs` columns can be quantized to it."""
        reason = self.refusal(inputs)
        if reason is not None:
            raise SchemeError(f"{layer} ({inputs} inputs): {self.name} {reason}.")

    def bits_per_weight(self, inputs: int) -> float:
        """Stored bits per weight of a row with `inputs` columns, with scales and zero-points."""
        return self.bits + self.overhead(inputs) / inputs


def mixture(schemes: Mapping[str, Scheme]) -> Scheme:
    """Return the scheme of a model whose layers have these, by full name: that of most of them,
    with the others as `layers`.
    """
    usual = most_common(schemes.values())
    own = {name: scheme for name, scheme in schemes.items() if scheme != usual}
    return replace(usual, layers=tuple(own.items())) if own else usual


def most_common(schemes: Iterable[_S]) -> _S:
    """Return the scheme of most layers, of equally many the first."""
    return Counter(schemes).most_common(1)[0][0]


def _beginning(
    name: str, others: Iterable[str | Part | Levels]
) -> tuple[str | Part | Levels, Levels, str]:
    """Return the levels that a name begins with (as given, and loaded) and the rest of the name."""
    known: list[tuple[str | Part | Levels, Levels]] = [
        (each.name, each) for each in built_in_levels()
    ]
    known += [(given, load_levels(given)) for given in others]
    # Longest prefix first, so that one prefix may be the beginning of another.
    for given, kind in sorted(known, key=lambda pair: -len(pair[1].prefix)):
        rest = name.removeprefix(kind.prefix)
        if rest == name:
            continue
        if not kind.one_width or re.match(r"(_|$|g[0-9]*(_|$))", rest):
            return given, kind, rest
    words = [kind.prefix if kind.one_width else f"{kind.prefix}4" for _, kind in known]
    raise SchemeError(
        f"{name!r} is not the name of a scheme: it must begin with one of {listed(sorted(words))}."
    )
