"""Weights: the parameter tensors of a layer, each with how a token uses it and how tensor parallelism cuts it."""

from dataclasses import dataclass
from enum import Enum
from math import prod


class Part(str, Enum):
    """The part of a model that a weight belongs to: weight formats and step terms go by it."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    INDEXER = "indexer"
    FEED_FORWARD = "feed_forward"
    SHARED_EXPERTS = "shared_experts"
    EXPERTS = "experts"
    ROUTER = "router"
    NORM = "norm"
    OTHER = "other"


class Use(str, Enum):
    """What one token does with a weight."""

    MATMUL = "matmul"  # multiplied by the token's vector: 2 FLOPs an element
    VECTOR = "vector"  # applied element by element: read, its FLOPs are not counted
    LOOKUP = "lookup"  # one row is picked; the rest is not read


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """One parameter tensor, or `count` alike.

    shape      its dimensions; the first of two or more is the input width of a product (a lookup's first is its rows)
    shards     into how many equal pieces tensor parallelism can cut it; 1 where every rank holds all of it
    """

    name: str
    part: Part
    shape: tuple[int, ...]
    shards: int = 1
    use: Use = Use.MATMUL
    count: int = 1

    @property
    def elements(self) -> int:
        return prod(self.shape) * self.count

    def elements_on_rank(self, tp: int) -> int:
        """Elements on the rank that holds most, of `tp` ranks: ceil(shards / tp) pieces, no less than one."""
        return self.elements * -(-self.shards // tp) // self.shards

    @property
    def flop_per_token(self) -> int:
        return 2 * self.elements if self.use is Use.MATMUL else 0

    def flop_per_token_on_rank(self, tp: int) -> int:
        return 2 * self.elements_on_rank(tp) if self.use is Use.MATMUL else 0


def matrix(name: str, rows: int, columns: int, *, part: Part, shards: int = 1) -> Weight:
    """A [rows, columns] matrix that each token is multiplied by."""
    return Weight(name=name, part=part, shape=(rows, columns), shards=shards)


def vector(name: str, elements: int, *, part: Part, shards: int = 1) -> Weight:
    """A bias, a norm's gain or another weight that is applied element by element."""
    return Weight(name=name, part=part, shape=(elements,), shards=shards, use=Use.VECTOR)


def total_elements(weights: tuple[Weight, ...]) -> int:
    return sum(weight.elements for weight in weights)
