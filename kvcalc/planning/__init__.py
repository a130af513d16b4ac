"""What fits on how many GPUs, how fast it can be at best, and what it costs: mixes of parallelism side by side."""

from kvcalc.planning.lengths import Lengths, distribution, of_lengths, read_lengths
from kvcalc.planning.memory import STEP_TOKENS, Budget, Demand, GpuMemory
from kvcalc.planning.mixes import all_mixes, shares_copies, usual_mixes, why_not
from kvcalc.planning.plan import Goals, Plan, PlanRow, plan
from kvcalc.planning.speed import Decoder, Speculation

__all__ = [
    "STEP_TOKENS",
    "Budget",
    "Decoder",
    "Demand",
    "Goals",
    "GpuMemory",
    "Lengths",
    "Plan",
    "PlanRow",
    "Speculation",
    "all_mixes",
    "distribution",
    "of_lengths",
    "plan",
    "read_lengths",
    "shares_copies",
    "usual_mixes",
    "why_not",
]
