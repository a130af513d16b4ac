"""Correctness before time: a kernel's outputs against a float64 reference on sampled rows, poison on all of them.

Shape letters: B batch, Q query tokens, H query heads, G KV heads, V output width, W key width, S tokens of a sequence,
s sampled heads, t sampled queries.

The reference starts from the same rounded inputs as the kernel, follows the page table on its own, and computes
everything after that in float64. What has to hold:
    everywhere  outputs finite, exactly 0 where a query attends nothing, and lse -inf there and nowhere else
    each row    |out - reference| <= ULPS x eps of the output format x the row's largest reference magnitude
    each row    |lse - reference| <= the same bound with max(1, |reference|)
    the sample  cosine distance at most COSINE_DISTANCE
An output row is an average of values, so its own size is the measure of its errors, not that of its smallest element.
Tolerances are constants: no environment softens them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kvcalc.profiling.case import ABSORBED, EXPANDED, Case
from kvcalc.profiling.inputs import Inputs, LatentInputs, gather
from kvcalc.profiling.kernels.base import Output

EPS = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
"""Spacing of the format's numbers just above 1."""
ULPS = {"fp32": 256.0, "fp16": 3.0, "bf16": 3.0}
COSINE_DISTANCE = {"fp32": 1e-10, "fp16": 1e-6, "bf16": 5e-5}
SEQUENCES, QUERIES, HEADS = 4, 3, 6
"""Rows that are sampled: up to SEQUENCES x QUERIES x HEADS."""
CHUNK_TOKENS = 1 << 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Correctness:
    """How far a kernel's sampled rows are from the reference.

    max_abs_error    largest difference of an element; None where a non-finite output left nothing to compare
    max_rel_error    largest difference over the largest magnitude of its row
    cosine_distance  1 - cosine of the angle between the sampled rows, taken as one vector, and the reference
    reason           what is wrong, None where it passed
    """

    max_abs_error: float | None
    max_rel_error: float | None
    cosine_distance: float | None
    passed: bool
    reason: str | None
    rows: int = 0

    def as_json(self) -> dict[str, float | bool | str | int | None]:
        return {
            "max_abs_error": self.max_abs_error,
            "max_rel_error": self.max_rel_error,
            "cosine_distance": self.cosine_distance,
            "passed": self.passed,
            "reason": self.reason,
            "rows": self.rows,
        }


def failed(reason: str) -> Correctness:
    """A failure that left nothing to compare."""
    return Correctness(max_abs_error=None, max_rel_error=None, cosine_distance=None, passed=False, reason=reason)


def check(case: Case, inputs: Inputs, output: Output, *, form: str, seed: int = 0) -> Correctness:
    """Judge the output of a kernel that computed the case in a form. The same seed samples the same rows."""
    problem = _shape_problem(case, output, form) or _poison_problem(case, output)
    if problem:
        return failed(problem)
    sample = _Sample(case, seed)
    got, wanted, lse_problem = [], [], None
    for sequence in sample.sequences:
        tokens = case.seq_lens[sequence]
        queries = [query for query in sample.queries if attended_tokens(case, sequence, query) > 0]
        if not queries:
            continue
        reference, lse = reference_rows(case, inputs, sequence, queries, sample.heads, tokens, form=form)
        picked = output.out[sequence][queries][:, sample.heads]  # [t, s, V]
        got.append(picked.double().flatten(0, 1))
        wanted.append(reference.flatten(0, 1))
        if output.lse is not None and lse_problem is None:
            lse_problem = _lse_problem(case, output.lse[sequence][queries][:, sample.heads], lse, sequence)
    if not got:
        return Correctness(max_abs_error=0.0, max_rel_error=0.0, cosine_distance=0.0, passed=True, reason=None)
    return _compare(case, torch.cat(got), torch.cat(wanted), lse_problem)


def _compare(case: Case, got: torch.Tensor, wanted: torch.Tensor, lse_problem: str | None) -> Correctness:
    """Sampled rows [rows, V] against the reference."""
    error = (got - wanted).abs()  # [rows, V]
    size = wanted.abs().amax(-1, keepdim=True)  # [rows, 1]
    relative = float((error / size).max())
    norms = float(got.norm() * wanted.norm())
    distance = 1.0 - float((got * wanted).sum()) / norms if norms else 1.0
    reason = None
    ulps = relative / EPS[case.dtype]
    if ulps > ULPS[case.dtype]:
        reason = f"off by {ulps:,.1f} ulps of {case.dtype} at the row's size; {ULPS[case.dtype]:g} are allowed"
    elif distance > COSINE_DISTANCE[case.dtype]:
        reason = f"cosine distance {distance:.1e}; {COSINE_DISTANCE[case.dtype]:.0e} is allowed"
    reason = reason or lse_problem
    return Correctness(
        max_abs_error=float(error.max()),
        max_rel_error=relative,
        cosine_distance=max(0.0, distance),
        passed=reason is None,
        reason=reason,
        rows=got.shape[0],
    )


# --- the reference ----------------------------------------------------------------------------------------------------


def attended_tokens(case: Case, sequence: int, query: int) -> int:
    """Tokens that a query attends, counted from the first; 0 or less for none."""
    return case.seq_lens[sequence] - case.query_tokens + 1 + query


def reference_rows(
    case: Case, inputs: Inputs, sequence: int, queries: list[int], heads: list[int], tokens: int, *, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 outputs [t, s, V] and lse [t, s] of some queries and heads of a sequence, in the form's own outputs."""
    q = _reference_queries(inputs, sequence, queries, heads, form=form)  # [t, s, W]
    scores = torch.empty(*q.shape[:2], tokens, dtype=torch.float64, device=q.device)
    for start, keys, _ in _cache_chunks(case, inputs, sequence, heads, tokens):  # keys [s, n, W]
        scores[..., start : start + keys.shape[1]] = torch.einsum("tsw,snw->tsn", q, keys) * inputs.scale
    for place, query in enumerate(queries):
        scores[place, :, attended_tokens(case, sequence, query) :] = -torch.inf
    lse = scores.logsumexp(-1)  # [t, s]
    weights = (scores - lse[..., None]).exp_()
    out: torch.Tensor | float = 0.0
    for start, _, values in _cache_chunks(case, inputs, sequence, heads, tokens):  # values [s, n, V]
        out = out + torch.einsum("tsn,snv->tsv", weights[..., start : start + values.shape[1]], values)
    assert isinstance(out, torch.Tensor)
    if form == EXPANDED and isinstance(inputs, LatentInputs):
        out = torch.einsum("tsr,srv->tsv", out, inputs.w_uv[heads].double())
    return out, lse


def _reference_queries(
    inputs: Inputs, sequence: int, queries: list[int], heads: list[int], *, form: str
) -> torch.Tensor:
    """Queries against cache rows [t, s, W]: of the expanded form they are absorbed here, in float64."""
    source = inputs.q_absorbed if isinstance(inputs, LatentInputs) and form == ABSORBED else inputs.q
    q = source[sequence][queries][:, heads].double()
    if isinstance(inputs, LatentInputs) and form == EXPANDED:
        nope = inputs.w_uk.shape[1]
        latent = torch.einsum("tsn,snr->tsr", q[..., :nope], inputs.w_uk[heads].double())
        q = torch.cat([latent, q[..., nope:]], dim=-1)
    return q


def _cache_chunks(
    case: Case, inputs: Inputs, sequence: int, heads: list[int], tokens: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Start, keys [s, n, W] and values [s, n, V] in float64 through the page table, a piece of the context each."""
    step = -(-CHUNK_TOKENS // case.page_tokens) * case.page_tokens
    table = inputs.page_table[sequence : sequence + 1]
    for start in range(0, tokens, step):
        pages, n = table[:, start // case.page_tokens :], min(step, tokens - start)
        if isinstance(inputs, LatentInputs):
            rank = inputs.w_uk.shape[2]
            rows = gather(inputs.cache_pages, pages, 0, n).double().mul_(inputs.kv_scale)  # [n, R+P]
            keys = rows.expand(len(heads), -1, -1)
            yield start, keys, keys[..., :rank]
            continue
        per_kv = case.n_heads // inputs.k_pages.shape[2]
        of_heads = [head // per_kv for head in heads]
        both = (
            gather(source, pages, 0, n)[:, of_heads].transpose(0, 1).double().mul_(scale)
            for source, scale in ((inputs.k_pages, inputs.k_scale), (inputs.v_pages, inputs.v_scale))
        )
        yield start, *both


# --- what is sampled, and what holds everywhere -----------------------------------------------------------------------


class _Sample:
    """Sequences, queries and heads that are compared: the extremes, and others drawn with the seed."""

    def __init__(self, case: Case, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        by_length = sorted(range(case.batch), key=lambda each: (-case.seq_lens[each], each))
        alive = [each for each in by_length if case.seq_lens[each]]
        self.sequences = _pick(alive[:1] + alive[-1:] + [0, case.batch - 1], case.batch, SEQUENCES, generator)
        self.queries = _pick([case.query_tokens - 1, 0], case.query_tokens, QUERIES, generator)
        self.heads = _pick([0, case.n_heads - 1], case.n_heads, HEADS, generator)


def _pick(first: list[int], count: int, most: int, generator: torch.Generator) -> list[int]:
    """Up to `most` of range(count): `first` in their order, then others at random."""
    others = torch.randperm(count, generator=generator).tolist()
    return sorted(list(dict.fromkeys([*first, *others]))[:most])


def _shape_problem(case: Case, output: Output, form: str) -> str | None:
    attention = case.attention
    width = getattr(attention, "kv_lora_rank", 0) if form == ABSORBED else attention.v_head_dim
    for name, tensor, wanted in (
        ("out", output.out, (case.batch, case.query_tokens, case.n_heads, width)),
        ("lse", output.lse, (case.batch, case.query_tokens, case.n_heads)),
    ):
        if tensor is not None and tuple(tensor.shape) != wanted:
            return f"{name} has shape {list(tensor.shape)}, not {list(wanted)}"
    return None


def _poison_problem(case: Case, output: Output) -> str | None:
    """NaN and inf are nowhere but in the lse of queries that attend nothing, whose outputs are 0."""
    out = output.out
    lengths = torch.tensor(case.seq_lens, device=out.device)[:, None]
    attends = lengths - case.query_tokens + 1 + torch.arange(case.query_tokens, device=out.device) > 0  # [B, Q]
    if not bool(out.isfinite().all()):
        rows = int((~out.isfinite()).any(-1).sum())
        return f"{rows:,} output rows are not finite: unused cache rows or pages were read, or a sum overflowed"
    if bool(out[~attends].any()):
        return "an output is not 0 where a query attends nothing"
    if output.lse is None:
        return None
    if not bool((output.lse[~attends] == -torch.inf).all()):
        return "lse is not -inf where a query attends nothing"
    if not bool(output.lse[attends].isfinite().all()):
        return "lse is not finite where a query attends tokens"
    return None


def _lse_problem(case: Case, got: torch.Tensor, wanted: torch.Tensor, sequence: int) -> str | None:
    """lse of sampled rows [t, s]."""
    error = (got.double() - wanted).abs() / wanted.abs().clamp(min=1.0)
    ulps = float(error.max()) / EPS[case.dtype]
    if ulps <= ULPS[case.dtype]:
        return None
    return f"lse of sequence {sequence} is off by {ulps:,.1f} ulps of {case.dtype}; {ULPS[case.dtype]:g} are allowed"
