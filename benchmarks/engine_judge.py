"""The engines' own code as judge of kvcalc's layouts: vLLM's block pool and the caches of transformers, on a CPU.

vLLM: the modules that plan its cache are loaded from an unpacked wheel, without its CUDA stack and without torch; what
they import beside themselves is replaced by stand-ins. For every packaged model, kvcalc says what a layer keeps and how
long a block is; vLLM's code makes the groups, the block count, the requests that fit and the number for the log. All
must be equal, and for models with recurrent states with prefix caching too. DeepSeek-V4's pages are made from its
dimensions alone (engine_judge_specs.py).

transformers: a model of a few narrow layers with an original's attention is run for prompts of two lengths; the
elements of its cache must be those of kvcalc's layout for that version.

    pip download --no-deps --dest wheels vllm==0.33.0
    unzip -q wheels/vllm-0.33.0*.whl 'vllm/v1/*' -d vllm-0.33.0
    python benchmarks/engine_judge.py vllm vllm-0.13.0 vllm-0.33.0    into results/engine_judge_vllm.json
    python benchmarks/engine_judge.py transformers                    with the transformers of this Python, into
                                                                      results/engine_judge_transformers.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from engine_judge_specs import Dtype, specs  # noqa: E402

from kvcalc import api  # noqa: E402
from kvcalc.engines.base import kept  # noqa: E402
from kvcalc.errors import KvcalcError, UsageError  # noqa: E402
from kvcalc.sizing import rank_records, stage_allocations  # noqa: E402
from kvcalc.workload import Parallelism  # noqa: E402

RESULTS = HERE / "results"
AVAILABLE_BYTES = 40 << 30
MAX_MODEL_LEN = 30_000
BATCHED_TOKENS = 8_192
MIXES = (Parallelism(), Parallelism(tp=2), Parallelism(tp=8), Parallelism(tp=2, pp=2))


# --- vLLM -------------------------------------------------------------------------------------------------------------


class Stub(types.ModuleType):
    """A module with whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class Finder:
    """Finds vLLM's planning modules in the wheel, and stand-ins for all else of vLLM and torch."""

    REAL = re.compile(
        r"vllm\.v1\.(kv_cache_interface|kv_cache_layout|core\.kv_cache_utils|core\.kv_cache_planning|kv_cache_spec_registry)$"
    )

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] not in ("vllm", "torch"):
            return None
        file = self.root / (name.replace(".", "/") + ".py")
        if self.REAL.match(name) and file.exists():
            return importlib.util.spec_from_file_location(name, file)
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = Stub(spec.name)
        module.__path__ = []  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__
        if name == "torch":
            module.dtype = Dtype
        elif name == "vllm.utils.math_utils" or name == "vllm.utils":
            module.cdiv = lambda a, b: -(a // -b)
            module.round_up = lambda a, b: -(a // -b) * b
        if name in ("vllm.utils", "vllm.utils.torch_utils"):
            module.get_dtype_size = lambda dtype: dtype.itemsize
        if name == "vllm.logger":
            module.init_logger = lambda _: LOGGER
        if name == "vllm.v1.hisparse.layout":
            module.get_hisparse_kv_cache_groups = lambda *_: None
        if name == "vllm.v1.attention.backend":
            module.MultipleOf = type("MultipleOf", (), {})


class Logger:
    """Keeps what vLLM logs."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def _keep(self, text: str, *args: Any, **_: Any) -> None:
        self.lines.append(text % args if args else text)

    info = info_once = warning = warning_once = debug = _keep


LOGGER = Logger()


def load_vllm(root: Path) -> tuple[Any, Any]:
    """The interface module and the planning module of a wheel."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("vllm", "torch")]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    sys.meta_path.insert(0, Finder(root))
    interface = importlib.import_module("vllm.v1.kv_cache_interface")
    utils = importlib.import_module("vllm.v1.core.kv_cache_utils")
    register(interface)
    if not hasattr(utils, "get_kv_cache_groups"):
        planning = importlib.import_module("vllm.v1.core.kv_cache_planning")
        planning.get_max_concurrency_for_kv_cache_config = utils.get_max_concurrency_for_kv_cache_config
        return interface, planning
    return interface, utils


def register(interface: Any) -> None:
    """What vLLM's managers register from 0.23 on: latents are planned as full attention, all else as itself."""
    try:
        registry = importlib.import_module("vllm.v1.kv_cache_spec_registry").KVCacheSpecRegistry
        registry.register(interface.FullAttentionSpec, manager_class=object)
    except (AssertionError, TypeError):
        return
    if not isinstance(registry, type):
        return
    for name in ("SlidingWindowSpec", "SlidingWindowMLASpec", "ChunkedLocalAttentionSpec", "MambaSpec"):
        registry.register(getattr(interface, name), manager_class=object)
    registry.register(
        interface.MLAAttentionSpec, manager_class=object, uniform_type_base_spec=interface.FullAttentionSpec
    )


def config(interface: Any, layout: Any, mix: Parallelism) -> Any:
    """As much of a VllmConfig as planning asks for."""
    made = MagicMock()
    made.model_config.max_model_len = MAX_MODEL_LEN
    made.scheduler_config.max_num_batched_tokens = BATCHED_TOKENS
    made.scheduler_config.disable_hybrid_kv_cache_manager = False
    made.max_in_flight_tokens = layout.pool_rules.in_flight_tokens
    made.parallel_config.decode_context_parallel_size = mix.dcp
    made.parallel_config.prefill_context_parallel_size = 1
    made.parallel_config.pipeline_parallel_size = mix.pp
    made.cache_config.num_gpu_blocks_override = None
    caches = layout.has_states and layout.caches_prefixes
    made.cache_config.mamba_cache_mode = "all" if layout.keeps_states_by_block else "align" if caches else "none"
    made.cache_config.prefix_cache_retention_interval = None
    made.attention_config.hisparse_config = None
    made.speculative_config = None
    if hasattr(interface, "KVCacheLayout"):  # from 0.29 on; LBNHC is what vLLM prefers, and V4 needs blocks outermost
        order = interface.KVCacheLayout.BLHNC if layout.is_compressed else interface.KVCacheLayout.LBNHC
        made.cache_config.get_resolved_kv_cache_layout.return_value = order
    return made


def vllm_says(interface: Any, planning: Any, version: str, model: Any, layout: Any, mix: Parallelism) -> dict[str, Any]:
    made, layers = config(interface, layout, mix), specs(interface, model, layout, mix, length=MAX_MODEL_LEN)
    groups = planning.get_kv_cache_groups(made, dict(layers))
    LOGGER.lines.clear()
    results = []
    for stage in stage_layers(len(model.layers), mix.pp):
        there = {name: spec for name, spec in layers.items() if int(name.partition(".")[0]) in stage}
        mine = [of_stage(interface, group, there) for group in groups] if mix.pp > 1 else groups
        arguments = [made, mine, AVAILABLE_BYTES]
        if version.startswith("0.11."):
            arguments.insert(2, there)
        results.append(planning.get_kv_cache_config_from_groups(*arguments))
    result = min(results, key=lambda each: each.num_blocks)
    if mix.pp > 1:
        return {"groups": len(groups), "blocks": result.num_blocks}
    concurrency = planning.get_max_concurrency_for_kv_cache_config(made, result)
    report = getattr(planning, "_report_kv_cache_config", None)
    tokens = int(concurrency * MAX_MODEL_LEN)
    if report is not None:
        report(made, result)
    stated = [found for line in LOGGER.lines if (found := re.search(r"KV cache size: ([\d,]+) tokens", line))]
    tokens = int(stated[-1][1].replace(",", "")) if stated else tokens
    return {
        "groups": len(groups),
        "blocks": result.num_blocks,
        "concurrency": round(float(concurrency), 6),
        "tokens": tokens,
    }


def stage_layers(layers: int, pp: int) -> list[range]:
    """Layers of each stage; a remainder goes one each to the stages before the last (vllm/distributed/utils.py)."""
    sizes = [layers // pp] * pp
    for offset in range(layers % pp):
        sizes[pp - 2 - offset] += 1
    return [range(sum(sizes[:stage]), sum(sizes[: stage + 1])) for stage in range(pp)]


def of_stage(interface: Any, group: Any, there: dict[str, Any]) -> Any:
    """A group with the layers of one stage alone, as vLLM gives it to a worker."""
    names, spec = [name for name in group.layer_names if name in there], group.kv_cache_spec
    if hasattr(spec, "kv_cache_specs"):
        spec = replace(spec, kv_cache_specs={name: spec.kv_cache_specs[name] for name in names})
    return interface.KVCacheGroupSpec(names, spec)


def kvcalc_says(model: Any, layout: Any, mix: Parallelism) -> dict[str, Any]:
    pools = stage_allocations(model, layout, mix)
    pool, blocks = pools[0], min(each.blocks(AVAILABLE_BYTES) for each in pools)
    if mix.pp > 1:
        return {"groups": pool.group_count, "blocks": blocks}
    return {
        "groups": pool.group_count,
        "blocks": blocks,
        "concurrency": round(blocks / pool.stated_sequence_blocks(MAX_MODEL_LEN), 6),
        "tokens": layout.stated_tokens(pool, blocks, max_model_len=MAX_MODEL_LEN),
    }


def judge_vllm(folders: list[Path]) -> dict[str, Any]:
    from kvcalc.specs.sources import model_names

    rows: list[dict[str, Any]] = []
    for folder in folders:
        version = folder.name.rpartition("-")[2]
        interface, planning = load_vllm(folder)
        for name in model_names():
            model = api.load_model(name)
            states = any(c.role.is_state for c in kept(model)) and not name.startswith("deepseek-v4")
            for mix, caching in product(MIXES, (False, True) if states else (False,)):
                found = judged(interface, planning, version, model, mix, caching)
                about = {"prefix_caching": True} if caching else {}
                rows.append({"version": version, "model": name, "tp": mix.tp, "pp": mix.pp, **about, **found})
    return {"what": "vLLM's planning code against kvcalc's block pool", **counted(rows), "rows": rows}


def judged(interface: Any, planning: Any, version: str, model: Any, mix: Parallelism, caching: bool) -> dict[str, Any]:
    try:
        layout = api.layout_for(
            model, engine=f"vllm@{version}", parallelism=mix, prefix_caching=caching, max_batched_tokens=BATCHED_TOKENS
        )
        mine = kvcalc_says(model, layout, mix)
    except UsageError as error:
        return {"verdict": "refused", "reason": error.message}
    try:
        theirs = vllm_says(interface, planning, version, model, layout, mix)
    except (NotImplementedError, ValueError, AssertionError) as error:
        return {"verdict": "vllm refuses", "reason": f"{type(error).__name__}: {error}"[:200], "kvcalc": mine}
    if mine == theirs:
        return {"verdict": "equal", "both": mine}
    return {"verdict": "different", "kvcalc": mine, "vllm": theirs}


def counted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    verdicts: dict[str, int] = {}
    for row in rows:
        verdicts[row["verdict"]] = verdicts.get(row["verdict"], 0) + 1
    return {"verdicts": dict(sorted(verdicts.items()))}


# --- transformers -----------------------------------------------------------------------------------------------------

TINY = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 128, "num_attention_heads": 8}
MLA = {"kv_lora_rank": 24, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": TINY | {"num_key_value_heads": 2},
    "deepseek_v2": TINY | MLA | EXPERTS | {"num_key_value_heads": 8, "first_k_dense_replace": 1},
    "deepseek_v3": TINY | MLA | EXPERTS | {"num_key_value_heads": 8, "first_k_dense_replace": 1},
    "deepseek_v32": TINY
    | MLA
    | EXPERTS
    | {"num_key_value_heads": 8, "index_head_dim": 16, "index_n_heads": 4, "index_topk": 8, "first_k_dense_replace": 1},
    "glm_moe_dsa": TINY
    | MLA
    | EXPERTS
    | {"num_key_value_heads": 8, "index_head_dim": 16, "index_n_heads": 4, "index_topk": 8},
    "gemma3_text": TINY
    | {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_oss": TINY
    | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon": TINY | {"num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False},
    "qwen3_next": TINY
    | EXPERTS
    | {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_hidden_layers": 4,
    },
}
LENGTHS = (40, 296)


def judge_transformers() -> dict[str, Any]:
    import transformers

    version = transformers.__version__
    rows = [
        {"version": version, "type": name, **judged_type(name, fields, version)} for name, fields in CONFIGS.items()
    ]
    return {"what": "the cache of transformers, elements for two lengths", **counted(rows), "rows": rows}


def judged_type(name: str, fields: dict[str, Any], version: str) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    if name not in CONFIG_MAPPING:
        return {"verdict": "not there"}
    made = CONFIG_MAPPING[name](**fields)
    document = made.to_dict()
    theirs = [cached_elements(made, length) for length in LENGTHS]
    try:
        mine = [kvcalc_elements(document, name, version, length) for length in LENGTHS]
    except KvcalcError as error:
        return {"verdict": "refused", "reason": error.message, "transformers": theirs}
    return {"verdict": "equal" if mine == theirs else "different", "kvcalc": mine, "transformers": theirs}


def cached_elements(made: Any, length: int) -> int:
    """Elements in the cache after a prompt; the model is so small that it runs on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers_cache import cache_elements

    model = AutoModelForCausalLM.from_config(made, attn_implementation="eager").eval()
    with torch.no_grad():
        output = model(input_ids=torch.ones((1, length), dtype=torch.long), use_cache=True)
    return sum(cache_elements(output).values())


def kvcalc_elements(document: dict[str, Any], name: str, version: str, length: int) -> int:
    """Elements of a sequence in kvcalc's layout: all in a format of one byte an element would be bytes."""
    from kvcalc.specs.build import build_model
    from kvcalc.specs.huggingface.convert import spec_from_config
    from kvcalc.specs.reader import Document

    spec = spec_from_config(document | {"architectures": None}, source="config.json", name=name)
    model = build_model(Document("config.json", "", spec))
    layout = api.layout_for(
        model, engine=f"transformers@{version}", kv_dtype="fp32", state_dtype="fp32", index_dtype="fp32"
    )
    total = Fraction(0)
    for item in rank_records(model.distinct_layers, layout, Parallelism()):
        for component in item.record.components:
            total += item.count * component.elements_per_slot * component.slots.stored(length)
    return ceil(total)


# --- results ----------------------------------------------------------------------------------------------------------


def store(path: Path, found: dict[str, Any], versions: set[str]) -> None:
    """Write the rows; those of other versions that were judged before stay."""
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in before if row["version"] not in versions] + found["rows"]
    rows.sort(key=lambda row: [int(part) for part in re.findall(r"\d+", row["version"])])
    head = json.dumps({"what": found["what"], **counted(rows)}, indent=1).removesuffix("\n}")
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    path.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')


def different(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row["verdict"] not in ("equal", "refused", "not there"):
            yield json.dumps(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", choices=["vllm", "transformers"])
    parser.add_argument("folders", nargs="*", type=Path, help="unpacked wheels, named vllm-VERSION")
    parser.add_argument("--dry-run", action="store_true", help="print only")
    options = parser.parse_args()
    found = judge_vllm(options.folders) if options.engine == "vllm" else judge_transformers()
    if not options.dry_run:
        store(RESULTS / f"engine_judge_{options.engine}.json", found, {row["version"] for row in found["rows"]})
    print(found["verdicts"])
    for line in different(found["rows"]):
        print(line)
    return 1 if any(row["verdict"] == "different" for row in found["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
