"""Number formats, with their bytes written out, scales included.

A packing says how elements lie in bytes: so many elements in a block of so many bytes. A cache format gives each role
of a component a packing, and a record may end in padding: DeepSeek's 656-byte record is a format of three lines here,
not a special case elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from kvcalc.architecture.attention import Component, Role
from kvcalc.errors import UsageError


@dataclass(frozen=True, slots=True)
class Packing:
    """`elements` elements take `bytes` bytes; each head of an entry adds `scale_bytes` once."""

    elements: int
    bytes: int
    scale_bytes: int = 0

    @property
    def bytes_per_element(self) -> Fraction:
        return Fraction(self.bytes, self.elements)

    def bytes_for(self, *, heads: int, width: int) -> int:
        """Bytes of `heads` heads of `width` elements; no block spans two heads: each has whole blocks."""
        return heads * (-(-width // self.elements) * self.bytes + self.scale_bytes)


FP32 = Packing(1, 4)
BF16 = Packing(1, 2)
FP8 = Packing(1, 1)
FP8_BLOCK_128 = Packing(128, 132)  # 128 fp8, one fp32 scale
FP8_BLOCK_64_E8M0 = Packing(64, 65)  # 64 fp8, one e8m0 scale
NVFP4 = Packing(16, 9)  # 16 e2m1 in 8 bytes, one e4m3 scale
MXFP4 = Packing(32, 17)  # 32 e2m1 in 16 bytes, one e8m0 scale
MXFP8 = Packing(32, 33)  # 32 fp8, one e8m0 scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How cache entries are stored.

    packing      for every role that `by_role` does not name
    by_role      packings of single roles, for records that mix formats
    only_roles   roles that the format can store; None for all
    padding      bytes at the end of each record
    compute      the number format that kernels multiply in after loading it
    """

    name: str
    packing: Packing
    description: str
    source: str
    by_role: Mapping[Role, Packing] = field(default_factory=dict)
    only_roles: frozenset[Role] | None = None
    padding: int = 0
    compute: str = "bf16"

    def record_bytes(self, components: tuple[Component, ...], *, shards: int) -> int:
        """Bytes of one record of these components on the rank that holds most of `shards`."""
        total = self.padding
        for component in components:
            if self.only_roles is not None and component.role not in self.only_roles:
                raise UsageError(
                    f"format {self.name} stores {self.description}; it has no place for '{component.name}'",
                    hint="choose a format that fits every attention kind: `kvcalc list formats`",
                )
            packing = self.by_role.get(component.role, self.packing)
            total += packing.bytes_for(heads=component.heads_on_rank(shards), width=component.width)
        return total


_ISO = "IEEE 754"
_BRAIN = "arXiv 1905.12322 sec. 2"
_FP8_SOURCE = "arXiv 2209.05433 sec. 3"
_MX = "OCP Microscaling Formats v1.0 sec. 5"
_GGML = "llama.cpp ggml-common.h, block_q*"
_VLLM_HEAD = "vLLM 0.33 v1/attention/backends/triton_attn.py: one fp32 scale a token and head for K, one for V"
_LATENT_ROLES = frozenset({Role.LATENT, Role.ROPE})

CACHE_FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format(name="fp32", packing=FP32, description="4 bytes an element", source=_ISO, compute="fp32"),
        Format(name="fp16", packing=BF16, description="2 bytes an element", source=_ISO, compute="fp16"),
        Format(name="bf16", packing=BF16, description="2 bytes an element", source=_BRAIN),
        Format(
            name="fp8_e4m3",
            packing=FP8,
            description="1 byte an element, one scale a tensor (not counted)",
            source=_FP8_SOURCE,
            compute="fp8",
        ),
        Format(
            name="fp8_e5m2",
            packing=FP8,
            description="1 byte an element, one scale a tensor (not counted)",
            source=_FP8_SOURCE,
            compute="fp8",
        ),
        Format(
            name="int8",
            packing=FP8,
            description="1 byte an element, one scale a tensor (not counted)",
            source="TensorRT-LLM KV cache INT8: one scale a tensor",
        ),
        Format(
            name="int4",
            packing=Packing(2, 1),
            description="2 elements a byte, one scale a tensor (not counted)",
            source="packed nibbles, the lower bound of 4-bit caches",
        ),
        Format(
            name="int6",
            packing=Packing(4, 3),
            description="4 elements in 3 bytes: 6 bits an element on average",
            source="DeepSeek-V2's deployed cache, arXiv 2405.04434 sec. 3.2.3",
        ),
        Format(
            name="nvfp4",
            packing=NVFP4,
            description="16 elements in 8 bytes and one fp8 scale",
            source="vLLM 0.33 utils/torch_utils.py: d/2 + d/16 bytes a head",
        ),
        Format(name="mxfp4", packing=MXFP4, description="32 elements in 16 bytes and one e8m0 scale", source=_MX),
        Format(name="mxfp8", packing=MXFP8, description="32 elements in 32 bytes and one e8m0 scale", source=_MX),
        Format(
            name="int8_per_token_head",
            packing=Packing(1, 1, scale_bytes=4),
            description="1 byte an element and one fp32 scale a token and head",
            source=_VLLM_HEAD,
        ),
        Format(
            name="fp8_per_token_head",
            packing=Packing(1, 1, scale_bytes=4),
            description="1 byte an element and one fp32 scale a token and head",
            source=_VLLM_HEAD,
        ),
        Format(
            name="int4_per_token_head",
            packing=Packing(2, 1, scale_bytes=4),
            description="2 elements a byte and one fp32 scale a token and head",
            source=_VLLM_HEAD,
        ),
        Format(name="q8_0", packing=Packing(32, 34), description="32 elements in 34 bytes", source=_GGML),
        Format(name="q5_1", packing=Packing(32, 24), description="32 elements in 24 bytes", source=_GGML),
        Format(name="q5_0", packing=Packing(32, 22), description="32 elements in 22 bytes", source=_GGML),
        Format(name="q4_1", packing=Packing(32, 20), description="32 elements in 20 bytes", source=_GGML),
        Format(name="q4_0", packing=Packing(32, 18), description="32 elements in 18 bytes", source=_GGML),
        Format(
            name="fp8_ds_mla",
            packing=FP8,
            by_role={Role.LATENT: FP8_BLOCK_128, Role.ROPE: BF16},
            only_roles=_LATENT_ROLES,
            description="an MLA record: latent in fp8, an fp32 scale for 128 each, rope in bf16 (512+64: 656 bytes)",
            source="vLLM 0.33 v1/attention/backends/mla/flashmla_sparse.py; FlashMLA README, FP8 KV cache",
        ),
        Format(
            name="nvfp4_ds_mla",
            packing=FP8,
            by_role={Role.LATENT: NVFP4, Role.ROPE: FP8},
            only_roles=_LATENT_ROLES,
            description="an MLA record: latent in nvfp4 with its scales, rope in fp8 (512+64: 352 bytes)",
            source="vLLM 0.33 v1/attention/backends/mla/flashmla_sparse.py",
        ),
        Format(
            name="fp8_ds_v4",
            packing=FP8,
            by_role={Role.LATENT: FP8_BLOCK_64_E8M0, Role.ROPE: BF16},
            only_roles=_LATENT_ROLES,
            padding=1,
            description="DeepSeek-V4's record: fp8 with an e8m0 scale for 64 each, rope in bf16, 1 pad (584 bytes)",
            source="vLLM 0.33 v1/attention/backends/mla/flashmla_sparse.py; SGLang 0.5.23 pool_configurator.py",
        ),
        Format(
            name="fp8_index",
            packing=FP8_BLOCK_128,
            only_roles=frozenset({Role.INDEX}),
            description="an index key in fp8 with one fp32 scale for each 128 (128: 132 bytes)",
            source="vLLM 0.33 model_executor/models/deepseek_v2.py: head_dim + head_dim // 128 * 4",
        ),
        Format(
            name="mxfp4_index",
            packing=MXFP4,
            only_roles=frozenset({Role.INDEX}),
            description="an index key in mxfp4 (128: 68 bytes)",
            source="vLLM 0.33 v1/attention/backends/mla/indexer.py, fp4 index cache",
        ),
    )
}

ALIASES = {"fp8": "fp8_e4m3", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

WEIGHT_FORMATS: dict[str, Packing] = {
    "fp32": FP32,
    "bf16": BF16,
    "fp16": BF16,
    "fp8": FP8,
    "fp8_block": Packing(
        128 * 128, 128 * 128 + 4
    ),  # one fp32 scale for each 128 x 128 block, arXiv 2412.19437 sec. 3.3.2
    "int8": FP8,
    "mxfp8": MXFP8,
    "mxfp4": MXFP4,
    "nvfp4": NVFP4,
    "int4": Packing(128, 66),  # groups of 128 with one fp16 scale: GPTQ and AWQ as usually published
}
"""Bytes of weights; per-channel scales, a few thousandths of a percent, are not counted."""

WEIGHT_COMPUTE = {
    "fp32": "fp32",
    "fp16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "mxfp8": "fp8",
    "int8": "int8",
    "nvfp4": "fp4",
}
"""The format that products with such weights are computed in where the device has it; bf16 for those not named."""


def cache_format(name: str) -> Format:
    """The format of that name or alias. Raises UsageError with the nearest name."""
    found = CACHE_FORMATS.get(ALIASES.get(name, name))
    if found is None:
        from kvcalc.names import nearest

        raise UsageError(f"unknown cache format '{name}'", hint=nearest(name, [*CACHE_FORMATS, *ALIASES]))
    return found
