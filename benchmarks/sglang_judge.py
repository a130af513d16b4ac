"""SGLang's own code as judge of kvcalc's token pools: the sizes that it derives and the tensors that it allocates.

The modules that size and build SGLang's pools are loaded from an unpacked wheel with torch for a CPU and stand-ins for
all else; the pools are built on torch's meta device, so that they may be as large as on a GPU. For every packaged
model, kvcalc says what its attention is; SGLang's configuration classes, sizing and pool classes make of it the tokens
that fit, the rows of the window pool and the bytes of every tensor, on the fullest stage and rank. All must be equal.

What SGLang is given: the number format, the page, the memory for tokens (how it is shared with states is not modelled),
the size of the pool of states, and the layers of each pipeline stage. What its arguments default to is read from it.

    pip download --no-deps --dest wheels sglang==0.5.23
    unzip -q wheels/sglang-0.5.23*.whl 'sglang/srt/*' -d sglang-0.5.23
    python benchmarks/sglang_judge.py sglang-0.5.6 sglang-0.5.23     (with torch) into results/engine_judge_sglang.json
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import inspect
import json
import logging
import os
import sys
import types
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby, product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from engine_judge import MIXES, RESULTS, Stub, stage_layers  # noqa: E402
from sglang_judge_configs import OWN_CONFIGS, architecture, bases, fields  # noqa: E402
from sglang_stand_ins import OPTIONS, Config, No, declared, install  # noqa: E402

from kvcalc import api  # noqa: E402
from kvcalc.architecture.attention import LatentAttention  # noqa: E402
from kvcalc.errors import UsageError  # noqa: E402
from kvcalc.sizing import stage_allocations  # noqa: E402
from kvcalc.workload import Parallelism  # noqa: E402

AVAILABLE_BYTES = 40 << 40
"""So much that a byte in a token's size shows in the number of tokens."""
STATE_SLOTS = 64
KV_DTYPES = ("bf16", "fp8", "nvfp4", "mxfp8")


class Sglang:
    """An unpacked wheel."""

    def __init__(self, root: Path) -> None:
        gc.unfreeze()
        install(root)
        self.version = root.name.rpartition("-")[2]
        self.root, self.declared = root, declared(root)
        self.configs = importlib.import_module("sglang.srt.configs")
        self.config = importlib.import_module("sglang.srt.configs.model_config")
        self.configures = (root / "sglang/srt/mem_cache/kv_cache_configurator.py").exists()
        place = "mem_cache.kv_cache_configurator" if self.configures else "model_executor.model_runner"
        module = importlib.import_module(f"sglang.srt.{place}")
        self.runner = module.KVCacheConfigurator if self.configures else module.ModelRunner
        for name in ("handle_max_mamba_cache", "_handle_max_mamba_cache"):
            setattr(self.runner, name, lambda _, rest: rest)
        assert self.classes
        gc.freeze()  # the runner collects garbage for every case

    @cached_property
    def classes(self) -> tuple[frozenset[str], dict[str, ast.ClassDef]]:
        """The architectures that its models serve, and the classes that do."""
        trees = [ast.parse(file.read_text("utf-8-sig")) for file in (self.root / "sglang/srt/models").glob("*.py")]
        nodes = [node for tree in trees for node in tree.body]
        entries = [node.value for node in nodes if isinstance(node, ast.Assign) and "EntryClass" in ast.dump(node)]
        names = {word.id for entry in entries for word in ast.walk(entry) if isinstance(word, ast.Name)}
        return frozenset(names), {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    def serves(self, name: str, *, pipelines: bool = False) -> bool:
        """Whether a model class does; in stages, where its forward takes what the stage before made."""
        entries, classes = self.classes
        if name not in entries or not pipelines:
            return name in entries
        for node in classes[name].body:
            if isinstance(node, ast.FunctionDef) and node.name == "forward":
                return any(each.arg == "pp_proxy_tensors" for each in node.args.args)
        parents = [base.id for base in classes[name].bases if isinstance(base, ast.Name) and base.id in classes]
        return any(self.serves(parent, pipelines=True) for parent in parents)


def model_config(sglang: Sglang, model: Any) -> Any:
    """SGLang's ModelConfig, from its shapes on."""
    name = architecture(model.name)
    made = sglang.config.ModelConfig.__new__(sglang.config.ModelConfig)
    kind = Config
    if name in OWN_CONFIGS:
        module, _, own = OWN_CONFIGS[name].partition(".")
        kind = getattr(importlib.import_module(f"sglang.srt.configs.{module}"), own)
    text = kind(**fields(model), model_type=name.lower())
    text.architectures = [name]
    made.hf_text_config = text
    made.hf_config = text if "ForCausalLM" in name else Config(**{**vars(text), "text_config": text})
    made.is_draft_model = made.disable_hybrid_swa_memory = made.is_multimodal = made.is_hybrid_swa = False
    made.is_deepseek_v4_arch = made.is_hybrid_swa_compress = False
    made.context_len, made.attention_chunk_size = model.max_context_tokens, text.__dict__.get("attention_chunk_size")
    made.swa_attention_layer_ids = made.full_attention_layer_ids = made.quantization = None
    if hasattr(made, "_derive_hybrid_model"):
        made._derive_hybrid_model()
    made._derive_model_shapes()
    return made


def run(sglang: Sglang, model: Any, layout: Any, kv: str, mix: Any, stage: range) -> dict[str, int]:
    """What SGLang makes of one stage: as its runner does, from the memory that is free to the tensors of the pools."""
    import torch

    torch.meta = Stub("torch.meta")  # type: ignore[attr-defined]
    dtype = torch.float8_e4m3fn if "fp8" in kv else torch.float4_e2m1fn_x2 if "fp4" in kv else torch.bfloat16
    page, split = layout.block_tokens, mix.pp > 1
    OPTIONS.__dict__.clear()
    argument = {"fp8": "fp8_e4m3"} | ({} if sglang.configures else {"nvfp4": "fp4_e2m1"})
    OPTIONS.__dict__.update(sglang.declared, page_size=page, kv_cache_dtype=argument.get(kv, kv))
    OPTIONS.__dict__.update(GIVEN, attn_tp_size=mix.tp, tp_size=mix.tp, attn_dcp_size=mix.dcp, dcp_enabled=mix.dcp > 1)
    if sglang.version in ("0.5.6", "0.5.7", "0.5.8"):  # from 0.5.9 on the configuration is asked
        os.environ["SGLANG_MAMBA_SSM_DTYPE"] = sglang.declared["mamba_ssm_dtype"]
    made = model_config(sglang, model)
    layers = stage if split else range(made.num_attention_layers)
    made.start_layer, made.end_layer = layers.start, layers.stop
    arguments = {
        **RUNNER,
        "server_args": OPTIONS,
        "ps": OPTIONS,
        "model": types.SimpleNamespace(**({"start_layer": stage.start, "end_layer": stage.stop} if split else {})),
        "model_config": made,
        "dtype": torch.bfloat16,
        "model_dtype": torch.bfloat16,
        "kv_cache_dtype": dtype,
        "kv_cache_dtype_str": kv,
        "page_size": page,
        "sliding_window_size": made.hf_text_config.__dict__.get("sliding_window"),
        "is_hybrid_swa": made.is_hybrid_swa,
        "is_hybrid_swa_compress": made.is_hybrid_swa_compress,
        "use_mla_backend": made.attention_arch == sglang.config.AttentionArch.MLA,
        "start_layer": layers.start,
        "end_layer": layers.stop,
        "num_effective_layers": len(layers),
    }
    if sglang.configures:
        setup = importlib.import_module("sglang.srt.model_executor.model_runner_components.layer_setup")
        info = arguments["layer_info"] = called(setup.resolve_layer_indices, arguments)
        if hasattr(setup, "adjust_hybrid_swa_layer_ids"):
            called(setup.adjust_hybrid_swa_layer_ids, arguments)
        check_stage(info if hasattr(info, "swa_attention_layer_ids") else made, stage)
        return measured(called(sglang.runner, arguments).configure(pre_model_load_memory=AVAILABLE_BYTES >> 30))
    runner = sglang.runner.__new__(sglang.runner)
    runner.__dict__.update(arguments)
    if hasattr(runner, "adjust_hybrid_swa_layers_for_pp"):
        runner.adjust_hybrid_swa_layers_for_pp()
    check_stage(made, stage)
    total = AVAILABLE_BYTES >> 30
    memory = {"total_gpu_memory": total, "pre_model_load_memory": total}
    called(runner.init_memory_pool, memory | {"server_args": OPTIONS})
    return measured(runner)


GIVEN: dict[str, Any] = {
    "available_gib": AVAILABLE_BYTES >> 30,
    "mem_fraction_static": 1.0,
    "max_mamba_cache_size": STATE_SLOTS,
    "pp_size": 1,  # a stage is asked for its own size; the least of all stages is taken afterwards
    "attn_dp_size": 1,
    "launch_world_size": 1,
    "world_group": No(),
    "cuda_graph_config": OPTIONS,
    "backend": None,
    "full_prefill_max_req": None,
    "enable_mamba_extra_buffer": No(),
    "enable_mamba_extra_buffer_lazy": No(),
    "max_speculative_num_draft_tokens": None,
}
RUNNER: dict[str, Any] = {
    "device": "meta",
    "gpu_id": 0,
    "is_draft_worker": False,
    "spec_algorithm": type("None", (), {"is_none": lambda _: True, "__getattr__": lambda *_: No()})(),
    "mem_fraction_static": 1.0,
    "attn_dp_size": 1,
    "pp_size": 1,
    "dcp_size": 1,
    "enable_hisparse": False,
    "post_capture_kv_active": False,
    "req_to_token_pool": None,
    "token_to_kv_pool_allocator": None,
    "memory_pool_config": None,
    "forward_stream": None,
    "pp_group": None,
    "spec_aux_config": None,
    "_linear_attn_registry_cache": None,
}


def check_stage(owner: Any, stage: range) -> None:
    """Raise NotComparableError where a stage's pools have layers of another one."""
    layers = [*(owner.swa_attention_layer_ids or ()), *(owner.full_attention_layer_ids or ())]
    if not set(layers) <= set(stage):
        raise NotComparableError("this version counts layers of another stage into a stage's full and window pools")


def called(function: Any, arguments: dict[str, Any]) -> Any:
    """A call with those of the arguments that this version takes."""
    names = inspect.signature(function).parameters
    return function(**{name: value for name, value in arguments.items() if name in names})


def tensors(thing: Any, seen: set[int]) -> Iterator[Any]:
    """The tensors of a pool and of the pools in it, tables of pointers aside."""
    import torch

    if isinstance(thing, torch.Tensor):
        if thing.dtype not in (torch.uint64, torch.int64, torch.int32):
            yield thing
    elif isinstance(thing, list | tuple):
        for each in thing:
            yield from tensors(each, seen)
    elif id(thing) not in seen and hasattr(thing, "__dict__"):
        seen.add(id(thing))
        for each in vars(thing).values():
            yield from tensors(each, seen)


def size(found: Iterator[Any]) -> int:
    return sum({id(each): each.nbytes for each in found}.values())


def measured(result: Any) -> dict[str, int]:
    """Rows of the pools, and the bytes of their tensors."""
    states = getattr(result.req_to_token_pool, "mamba_pool", None)
    found = {"tokens": result.max_total_num_tokens, "bytes": size(tensors(result.token_to_kv_pool, {id(states)}))}
    if window := getattr(result, "swa_max_total_num_tokens", None):
        found["window"] = window
    if states is not None:
        found["state"], rest = divmod(size(tensors(states, set())), STATE_SLOTS + 1)
        assert not rest
    return found


# --- both -------------------------------------------------------------------------------------------------------------


class NotComparableError(Exception):
    """Why a case says nothing about kvcalc."""


def kvcalc_says(pool: Any) -> dict[str, int]:
    tokens, window = pool.rows(AVAILABLE_BYTES)
    found = {"tokens": tokens, "bytes": pool.tensor_bytes(tokens, window)}
    states = sum(item.count * item.record.stored_bytes(1) for item in pool.records if item.record.is_state)
    return found | ({"window": window} if window else {}) | ({"state": states} if states else {})


def judge(sglang: Sglang) -> Iterator[dict[str, Any]]:
    """Every case of a version."""
    from kvcalc.specs.sources import model_names

    mixes = {f"tp{mix.tp}" + (f" pp{mix.pp}" if mix.pp > 1 else ""): (mix, None) for mix in MIXES}
    mixes["page 64"] = (MIXES[0], 64)
    if sglang.version == "0.5.23":  # kvcalc refuses it before
        mixes["tp8 dcp2"] = (Parallelism(tp=8, dcp=2), None)
    for name in model_names():
        model = api.load_model(name)
        for kv, (case, (mix, page)) in product(KV_DTYPES, mixes.items()):
            found = judged(sglang, model, kv, mix, page)
            yield {"version": sglang.version, "model": name, "kv": kv, "case": case, **found}


def judged(sglang: Sglang, model: Any, kv: str, mix: Any, page: int | None) -> dict[str, Any]:
    name, engine = architecture(model.name), f"sglang@{sglang.version}"
    try:
        layout = api.layout_for(model, engine=engine, kv_dtype=kv, parallelism=mix, block_tokens=page)
        mine = [kvcalc_says(pool) for pool in stage_allocations(model, layout, mix)]
    except UsageError as error:
        return {"verdict": "kvcalc refuses", "reason": error.message}
    try:
        if not sglang.serves(name):
            raise NotComparableError("no model class of this version serves the architecture")
        if mix.pp > 1 and not sglang.serves(name, pipelines=True):
            raise NotComparableError("the model class of this version has no pipeline stages")
        if kv == "nvfp4" and sglang.configures and not any(isinstance(a, LatentAttention) for a in bases(model)):
            raise NotComparableError("from 0.5.16 on fp4 has a work buffer that goes by the attention backend")
        theirs = [run(sglang, model, layout, kv, mix, stage) for stage in stage_layers(len(model.layers), mix.pp)]
    except NotComparableError as reason:
        return {"verdict": "not comparable", "reason": str(reason)}
    if mine == theirs:
        return {"verdict": "equal", "stages": [list(each.values()) for each in mine]}
    return {"verdict": "different", "kvcalc": mine, "sglang": theirs}


def document(cases: list[dict[str, Any]], before: dict[str, Any]) -> dict[str, Any]:
    """Numbers by model and format, the other cases by reason; what was judged of other versions stays."""
    now = {case["version"] for case in cases}
    equal: dict[tuple[str, str, str], list[str]] = {}
    others: dict[tuple[str, str, str], list[str]] = {}
    for row in before.get("numbers", ()):
        key = (row["model"], row["kv"], json.dumps(row["cases"]))
        equal[key] = [version for version in row["versions"] if version not in now]
    for row in before.get("others", ()):
        key = (row["verdict"], row["reason"], json.dumps(row["cases"]))
        others[key] = [version for version in row["versions"] if version not in now]
    for version in now:
        mine = [case for case in cases if case["version"] == version]
        for (model, kv), group in groupby(mine, lambda case: (case["model"], case["kv"])):
            stages = {case["case"]: case["stages"] for case in group if case["verdict"] == "equal"}
            if stages:
                equal.setdefault((model, kv, json.dumps(stages)), []).append(version)
        counts: dict[tuple[str, str], Counter[str]] = {}
        for case in mine:
            if case["verdict"] != "equal":
                reason = case.get("reason", "").replace(f"sglang {version}", "SGLang")
                counts.setdefault((case["verdict"], reason), Counter())[case["model"]] += 1
        for (verdict, reason), models in counts.items():
            others.setdefault((verdict, reason, json.dumps(models)), []).append(version)
    found = [
        {"model": model, "kv": kv, "versions": sorted(versions, key=parts), "cases": json.loads(stages)}
        for (model, kv, stages), versions in equal.items()
        if versions
    ]
    left = [
        {"verdict": verdict, "reason": reason, "versions": sorted(versions, key=parts), "cases": json.loads(models)}
        for (verdict, reason, models), versions in sorted(others.items())
        if versions
    ]
    found.sort(key=lambda row: (row["model"], row["kv"], parts(row["versions"][0])))
    return {
        "what": f"SGLang's sizes and tensors against kvcalc's token pools, for {AVAILABLE_BYTES} bytes. Numbers of a "
        "stage: max_total_num_tokens, bytes of the tensors, rows of the window pool, bytes of a state, as far as any",
        **summary(found, left),
        "others": left,
        "numbers": found,
    }


def summary(found: list[dict[str, Any]], left: list[dict[str, Any]]) -> dict[str, Any]:
    """How many cases there are of each verdict, altogether and by version."""
    versions: dict[str, Counter[str]] = {}
    for row in found:
        for version in row["versions"]:
            versions.setdefault(version, Counter({"equal": 0, "different": 0}))["equal"] += len(row["cases"])
    for row in left:
        for version in row["versions"]:
            versions.setdefault(version, Counter())[row["verdict"]] += sum(row["cases"].values())
    verdicts: Counter[str] = Counter({"equal": 0, "different": 0})
    for count in versions.values():
        verdicts.update(count)
    return {"verdicts": verdicts, "rows": [{"version": key, **versions[key]} for key in sorted(versions, key=parts)]}


def parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def written(found: dict[str, Any]) -> str:
    """JSON with a line for each row."""
    blocks = [f" {json.dumps(key)}: {json.dumps(found[key])}" for key in ("what", "verdicts")]
    for key in ("rows", "others", "numbers"):
        lines = ",\n".join("  " + json.dumps(row) for row in found[key])
        blocks.append(f" {json.dumps(key)}: [\n{lines}\n ]")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="unpacked wheels, named sglang-VERSION")
    parser.add_argument("--dry-run", action="store_true", help="print only")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    cases = [case for folder in options.folders for case in judge(Sglang(folder))]
    path = RESULTS / "engine_judge_sglang.json"
    before = json.loads(path.read_text()) if path.exists() and not options.dry_run else {}
    found = document(cases, before)
    if not options.dry_run:
        path.write_text(written(found))
    print(found["verdicts"])
    different = [case for case in cases if case["verdict"] == "different"]
    for case in different:
        print(json.dumps(case))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
