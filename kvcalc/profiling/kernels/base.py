"""What a kernel is to the profiler: a name, a reason where it can't run, and a callable that is the thing timed.

Shape letters: B batch, Q query tokens, H query heads, R kv_lora_rank, V width of an output head.

A kernel computes a case in one form, and the form fixes what goes in and what comes out:
    absorbed   MLA in latent space: `inputs.q_absorbed` [B, Q, H, R+rope] in, latent outputs [B, Q, H, R] out. The
               absorption of the queries and the output product with W_UV belong to the projections around it: no such
               kernel does them, and they are not timed.
    expanded   MLA over full heads: `inputs.q` [B, Q, H, nope+rope] in, outputs [B, Q, H, v] out.
    grouped    MHA, GQA, MQA: `inputs.q` [B, Q, H, D] in, outputs [B, Q, H, Dv] out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kvcalc.architecture.attention import GroupedAttention
from kvcalc.profiling.case import Case

if TYPE_CHECKING:
    import torch

    from kvcalc.profiling.inputs import Inputs


@dataclass(frozen=True, slots=True)
class Output:
    """What a call leaves behind; a kernel may write the same tensors again at the next call.

    out  outputs in the case's dtype [B, Q, H, V]; a query that attends nothing has 0
    lse  natural logarithm of the sum of exponentials of the scaled scores, fp32 [B, Q, H], -inf where nothing is
         attended; None from a kernel that gives none in this form
    """

    out: "torch.Tensor"
    lse: "torch.Tensor | None" = None


class Kernel(Protocol):
    """An attention kernel. Its object is made once a process; nothing heavy happens before `prepare`."""

    @property
    def name(self) -> str:
        """What it is called in the table and in results."""
        ...

    def version(self) -> str | None:
        """Version of the package that the kernel is from; None where it is not installed."""
        ...

    def form(self, case: Case) -> str:
        """The form in which it computes a case that it supports: `absorbed`, `expanded` or `grouped`."""
        ...

    def supports(self, case: Case, device: "torch.device") -> str | None:
        """None where it can run the case on the device, else the reason why not, in one line."""
        ...

    def prepare(self, case: Case, inputs: "Inputs") -> "Callable[[], Output]":
        """The callable that is timed.

        Plans, workspaces, compilation and, where the kernel's own cache format is not the paged one, the copy into that
        format happen here; everything that the operator does happens in the callable.
        """
        ...

    def kernel_extra_flop(self, case: Case, device: "torch.device") -> int:
        """FLOPs of matrix products beyond `case.flop(form)`: decompression, padded widths, masked halves."""
        ...

    def kernel_extra_bytes(self, case: Case, device: "torch.device") -> int:
        """Bytes that its design has to move beyond `case.bytes`: materialised K and V, scores, partial outputs."""
        ...

    def workspace_bytes(self, case: Case, device: "torch.device") -> int:
        """Device memory that `prepare` and a call take at their peak, the inputs aside."""
        ...


@dataclass(frozen=True, slots=True)
class Missing:
    """A kernel whose package is not installed: it supports nothing, and says why."""

    name: str
    reason: str

    def version(self) -> str | None:
        return None

    def form(self, case: Case) -> str:
        return case.natural_form

    def supports(self, case: Case, device: "torch.device") -> str | None:
        return self.reason

    def prepare(self, case: Case, inputs: "Inputs") -> "Callable[[], Output]":
        raise RuntimeError(self.reason)

    def kernel_extra_flop(self, case: Case, device: "torch.device") -> int:
        return 0

    def kernel_extra_bytes(self, case: Case, device: "torch.device") -> int:
        return 0

    def workspace_bytes(self, case: Case, device: "torch.device") -> int:
        return 0


def attends_everything(case: Case) -> str | None:
    """Why a kernel for plain causal attention can't run the case (a window, chunks, sinks), or None where it can."""
    attention = case.attention
    if not isinstance(attention, GroupedAttention):
        return None
    for value, what in (
        (attention.window_tokens, "a window"),
        (attention.chunk_tokens, "chunks"),
        (attention.sink_logits, "sink logits"),
    ):
        if value:
            return f"{attention.label} has {what}; this kernel attends every token"
    return None
