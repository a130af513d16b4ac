"""The attention kinds, in one explicit table: adding a kind is one file and one line here."""

from kvcalc.architecture.attention.base import Attention, Component, Form, Role, by_record, flop
from kvcalc.architecture.attention.compressed import CompressedAttention
from kvcalc.architecture.attention.grouped import GroupedAttention
from kvcalc.architecture.attention.latent import LatentAttention
from kvcalc.architecture.attention.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    ShortConvolution,
)
from kvcalc.architecture.attention.selected import Indexer, SelectedAttention

KINDS: tuple[type[Attention], ...] = (
    GroupedAttention,
    LatentAttention,
    SelectedAttention,
    CompressedAttention,
    Mamba1,
    Mamba2,
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    ShortConvolution,
)

__all__ = [
    "KINDS",
    "Attention",
    "Component",
    "CompressedAttention",
    "Form",
    "GatedDeltaNet",
    "GroupedAttention",
    "Indexer",
    "KimiDeltaAttention",
    "LatentAttention",
    "LightningAttention",
    "Mamba1",
    "Mamba2",
    "Role",
    "SelectedAttention",
    "ShortConvolution",
    "by_record",
    "flop",
]
