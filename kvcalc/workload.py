"""What is asked of a model: how many sequences of which length, on how many GPUs, in which mix of parallelism."""

from dataclasses import dataclass

from kvcalc.errors import UsageError

MOST, MOST_RANKS = 1 << 48, 1 << 20
"""More sequences or tokens than any machine holds; beyond it an argument is a slip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One step of a batch.

    batch           sequences, over all GPUs
    context_tokens  tokens that the last query attends, itself included
    query_tokens    new tokens a sequence and step: 1 for plain decoding, more with MTP or speculation
    """

    batch: int = 1
    context_tokens: int
    query_tokens: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "context_tokens", "query_tokens"):
            value = getattr(self, name)
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more")
            if value > MOST:
                raise UsageError(f"{name} is more than {MOST:,}")
        if self.query_tokens > self.context_tokens:
            raise UsageError(
                f"query_tokens {self.query_tokens} is more than context_tokens {self.context_tokens}",
                hint="context_tokens counts the new tokens too",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallelism:
    """How a model is spread: GPUs = tp x dp x pp.

    tp   attention tensor parallel: query heads are split; KV heads too, and copied where ranks outnumber them
    dp   attention data parallel: each replica serves its share of the batch with its own cache
    pp   pipeline parallel: layers are split into stages
    dcp  decode context parallel: `dcp` of the tp ranks share a sequence's tokens instead of copying them
    ep   expert parallel: routed experts are spread over `ep` of the tp x dp ranks; their width is cut over the others
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    dcp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "dcp", "ep"):
            if not 1 <= getattr(self, name) <= MOST_RANKS:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 to {MOST_RANKS:,}")
        if self.tp % self.dcp:
            raise UsageError(
                f"dcp {self.dcp} does not divide tp {self.tp}", hint="decode context parallelism reuses the tp ranks"
            )
        if (self.tp * self.dp) % self.ep:
            raise UsageError(
                f"ep {self.ep} does not divide tp x dp = {self.tp * self.dp}",
                hint="expert parallelism reuses the tp and dp ranks of a pipeline stage",
            )

    @property
    def gpus(self) -> int:
        return self.tp * self.dp * self.pp

    @property
    def kv_shards(self) -> int:
        """Ranks that KV heads are spread over; the other tp ranks share tokens."""
        return self.tp // self.dcp

    def batch_on_rank(self, batch: int) -> int:
        """Sequences of the busiest dp replica."""
        return -(-batch // self.dp)
