"""Slots: how many cache entries a component keeps, reads and attends at a given context.

An attention kind says of each thing that it keeps at which rate entries come and go: one a token, at most a window, one
per n tokens, or a constant number. Everything else follows from the number of entries that the token at position t
attends, `attended(t)`, counted with the token itself (positions start at 1):

    stored(T)    entries held after T tokens
    read(T, q)   distinct entries that a step of q query tokens moves, the last query at position T
    pairs(T, q)  (query, entry) pairs that it computes: sum of attended(t) for t = T-q+1 .. T. Prefill is q = T.

All counts are exact integers.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol


class Slots(Protocol):
    """The rate at which entries come and go."""

    @property
    def per_token(self) -> Fraction:
        """Entries that one more token adds at long context."""
        ...

    @property
    def spans_context(self) -> bool:
        """Whether the entries lie along the whole context, so that decode context parallelism can split them."""
        ...

    def stored(self, context_tokens: int) -> int: ...

    def read(self, context_tokens: int, query_tokens: int) -> int: ...

    def pairs(self, context_tokens: int, query_tokens: int) -> int: ...

    def formula(self, context: str = "context_tokens") -> str:
        """How many are stored, in words that can be computed by hand."""
        ...


class _Attended:
    """Slots whose pairs are a difference of running sums of `attended`."""

    __slots__ = ()

    def cumulative(self, tokens: int) -> int:
        """Sum of attended(t) for t = 1 .. tokens."""
        raise NotImplementedError

    def pairs(self, context_tokens: int, query_tokens: int) -> int:
        return self.cumulative(context_tokens) - self.cumulative(context_tokens - query_tokens)


@dataclass(frozen=True, slots=True)
class EveryToken(_Attended):
    """One entry a token, all of them attended: full causal attention."""

    per_token = Fraction(1)
    spans_context = True

    def stored(self, context_tokens: int) -> int:
        return context_tokens

    def read(self, context_tokens: int, query_tokens: int) -> int:
        return context_tokens

    def cumulative(self, tokens: int) -> int:
        return tokens * (tokens + 1) // 2

    def reaches(self, entries: int) -> int:
        """The first position that attends so many entries."""
        return entries

    def formula(self, context: str = "context_tokens") -> str:
        return context


@dataclass(frozen=True, slots=True)
class Window(_Attended):
    """The last `tokens` entries, the token's own included, and the first `sink_tokens`, which stay (arXiv 2309.17453).

    Chunked attention is a window as well: a token attends its own chunk, so at most `tokens`. Within a chunk the number
    rises from 1 to `tokens`; the fullest step is the one counted, since that is what a step time has to meet.
    """

    tokens: int
    sink_tokens: int = 0

    per_token = Fraction(0)
    spans_context = False

    @property
    def _most(self) -> int:
        return self.tokens + self.sink_tokens

    def stored(self, context_tokens: int) -> int:
        return min(context_tokens, self._most)

    def read(self, context_tokens: int, query_tokens: int) -> int:
        return min(context_tokens, self._most + query_tokens - 1)

    def cumulative(self, tokens: int) -> int:
        rising = min(tokens, self._most)
        return rising * (rising + 1) // 2 + (tokens - rising) * self._most

    def formula(self, context: str = "context_tokens") -> str:
        return f"min({context}, {self._most:,})"


@dataclass(frozen=True, slots=True)
class EveryNTokens(_Attended):
    """One entry for each full block of `tokens` tokens, all of them attended: compressed attention."""

    tokens: int

    spans_context = True

    @property
    def per_token(self) -> Fraction:
        return Fraction(1, self.tokens)

    def stored(self, context_tokens: int) -> int:
        return context_tokens // self.tokens

    def read(self, context_tokens: int, query_tokens: int) -> int:
        return context_tokens // self.tokens

    def cumulative(self, tokens: int) -> int:
        full_blocks = tokens // self.tokens
        tokens_since_last = tokens - full_blocks * self.tokens
        return self.tokens * full_blocks * (full_blocks - 1) // 2 + full_blocks * (tokens_since_last + 1)

    def reaches(self, entries: int) -> int:
        return entries * self.tokens

    def formula(self, context: str = "context_tokens") -> str:
        return f"floor({context} / {self.tokens})"


@dataclass(frozen=True, slots=True)
class Selected(_Attended):
    """All entries of `of` are stored, `top_k` of them are attended by each query: sparse attention with an indexer.

    A step of several query tokens reads at most `top_k` entries for each: their selections are taken as disjoint.
    """

    of: EveryToken | EveryNTokens
    top_k: int

    spans_context = True

    @property
    def per_token(self) -> Fraction:
        return self.of.per_token

    def stored(self, context_tokens: int) -> int:
        return self.of.stored(context_tokens)

    def read(self, context_tokens: int, query_tokens: int) -> int:
        return min(self.of.read(context_tokens, query_tokens), self.top_k * query_tokens)

    def cumulative(self, tokens: int) -> int:
        rising = min(tokens, self.of.reaches(self.top_k))
        return self.of.cumulative(rising) + (tokens - rising) * self.top_k

    def formula(self, context: str = "context_tokens") -> str:
        return self.of.formula(context)


@dataclass(frozen=True, slots=True)
class Constant:
    """A fixed number of entries a sequence, whatever its length: recurrent and convolution states.

    Each new token reads `read_per_token` of them; all of them by default.
    """

    entries: int = 1
    read_per_token: int | None = None

    per_token = Fraction(0)
    spans_context = False

    def stored(self, context_tokens: int) -> int:
        return self.entries

    def read(self, context_tokens: int, query_tokens: int) -> int:
        return self.entries if self.read_per_token is None else min(self.entries, self.read_per_token * query_tokens)

    def pairs(self, context_tokens: int, query_tokens: int) -> int:
        return query_tokens

    def formula(self, context: str = "context_tokens") -> str:
        return f"{self.entries:,}"


@dataclass(frozen=True, slots=True)
class Borrowed:
    """Entries of another layer's cache: attended and read like `of`, stored by their owner alone."""

    of: Slots

    per_token = Fraction(0)

    @property
    def spans_context(self) -> bool:
        return self.of.spans_context

    def stored(self, context_tokens: int) -> int:
        return 0

    def read(self, context_tokens: int, query_tokens: int) -> int:
        return self.of.read(context_tokens, query_tokens)

    def pairs(self, context_tokens: int, query_tokens: int) -> int:
        return self.of.pairs(context_tokens, query_tokens)

    def formula(self, context: str = "context_tokens") -> str:
        return "0"
