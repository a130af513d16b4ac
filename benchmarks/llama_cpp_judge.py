"""llama.cpp's own code as judge of kvcalc's llama.cpp layout and of `kvcalc reconcile`, on a CPU.

Models of a few narrow layers with zero weights are written here as GGUF files, loaded by llama-cpp-python and given
contexts of many settings; no token is run. What llama.cpp logs of each cache (cells, layers, sequences, streams, types
and sizes to the printed digit) must be what kvcalc's layout of that date says for a spec of the same shape, and the log
as a whole must leave `kvcalc reconcile` nothing unexplained.

    pip install llama-cpp-python==0.3.36 gguf typer rich pyyaml pydantic    compiles for some minutes
    python benchmarks/llama_cpp_judge.py    with the llama-cpp-python of this Python, into
                                            results/engine_judge_llama_cpp.json; rows of other versions stay
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from llama_cpp_models import MODELS, Tiny, write_gguf  # noqa: E402

from kvcalc import api  # noqa: E402
from kvcalc.architecture.attention import Role  # noqa: E402
from kvcalc.architecture.slots import Window  # noqa: E402
from kvcalc.commands.reconcile import make  # noqa: E402
from kvcalc.engines.llama_cpp import Streams, with_value_format  # noqa: E402
from kvcalc.engines.logs import read_log  # noqa: E402
from kvcalc.reconcile import EXPLAINED  # noqa: E402
from kvcalc.sizing import stage_allocations  # noqa: E402
from kvcalc.workload import Parallelism  # noqa: E402

RESULT = HERE / "results/engine_judge_llama_cpp.json"
RELEASED = {
    "0.3.9": ("2025-05-08", "8733e0cf6"),
    "0.3.16": ("2025-08-15", "4227c9be4"),
    "0.3.17": ("2026-03-23", "49bfddeca"),
    "0.3.20": ("2026-04-03", "f49e91787"),
    "0.3.36": ("2026-10-01", "0c1e57098"),
}
"""llama-cpp-python: the day of its release and, by its change log, the commit of llama.cpp in it."""
ALWAYS_UNIFIED = ("0.3.9",)
WHOLE_CONTEXTS = ("0.3.16",)
"""Versions in which each sequence of a model with states got n_ctx cells instead of its share."""
FLASH_PADDING = {"0.3.9": 256, "0.3.16": 256}

# --- contexts ---------------------------------------------------------------------------------------------------------

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
DTYPES = {"f32": "fp32", "f16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a context is asked for; the names are llama.cpp's."""

    n_ctx: int = 8192
    n_seq_max: int = 1
    n_ubatch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: bool = True
    kv_unified: bool = False
    swa_full: bool = False
    n_rs_seq: int = 0


SETTINGS = (
    Setting(),
    Setting(flash_attn=False, n_ctx=5000, n_ubatch=100),
    Setting(n_ctx=5000),
    Setting(n_ctx=500),
    Setting(n_ctx=18_000, n_seq_max=4, n_ubatch=128),
    Setting(n_ctx=18_000, n_seq_max=4, kv_unified=True),
    Setting(n_ctx=20_000, n_seq_max=4, swa_full=True),
    Setting(n_ctx=16_384, n_seq_max=64),
    *(Setting(type_k=name, type_v=name) for name in ("f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")),
    Setting(type_k="q8_0", n_seq_max=2),
    Setting(type_k="q8_0", type_v="q4_0", n_ctx=4000),
    Setting(n_seq_max=2, n_rs_seq=3),
)
LINES: list[str] = []


def asked(setting: Setting) -> dict[str, Any]:
    """What is not as usual."""
    return {name: value for name, value in asdict(setting).items() if value != getattr(Setting(), name)}


def contexts(path: Path) -> Iterator[tuple[Setting, list[str] | None]]:
    """The log of each context of a model, from the model's own lines on; None where llama.cpp refuses the context."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def keep(level: int, text: bytes, _: Any) -> None:
        LINES.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    LINES.clear()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    loaded = list(LINES)
    if not model:
        raise LookupError("".join(line for line in loaded if "create_tensor: loading" not in line)[-1000:])
    known = {name for name, _ in llama_cpp.llama_context_params._fields_}
    for setting in SETTINGS:
        if not {name for name in asked(setting) if name != "flash_attn"} <= known:
            continue
        params = llama_cpp.llama_context_default_params()
        for name, value in asdict(setting).items():
            if name in known or name == "flash_attn":
                field = name if name in known else "flash_attn_type"
                setattr(params, field, TYPES[value] if name.startswith("type_") else value)
        LINES.clear()
        context = llama_cpp.llama_init_from_model(model, params)
        yield setting, "".join([*loaded, *LINES]).splitlines(keepends=True) if context else None
        if context:
            llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


# --- both sides -------------------------------------------------------------------------------------------------------

_POOL = re.compile(
    r"llama_\w+: size = +([\d.]+) MiB \( *(\d+) cells, +(\d+) layers, +(\d+)(?:/(\d+))? seqs(?: +(\d+) rs_seq)?\), "
    r"[KR] \((\w+)\): +([\d.]+) MiB, [VS] \((\w+)\): +([\d.]+) MiB"
)
_OLD_CELLS = re.compile(r"llama_\w+: kv_size = (\d+), .*n_layer = (\d+)")
_OLD = re.compile(r"KV self size += +([\d.]+) MiB, K \((\w+)\): +([\d.]+) MiB, V \((\w+)\): +([\d.]+) MiB")
Pool = dict[str, Any]


def printed(lines: list[str]) -> list[Pool]:
    """What llama.cpp states of each cache: integers, types, and sizes in MiB as printed."""
    found: list[Pool] = []
    cells = {"cells": 0, "layers": 0}
    for line in lines:
        if pool := _OLD_CELLS.search(line):
            cells = {"cells": int(pool[1]), "layers": int(pool[2])}
        elif pool := _OLD.search(line):
            size, k_type, k, v_type, v = pool.groups()
            found.append({**cells, "MiB": size, "K": f"{k_type} {k}", "V": f"{v_type} {v}"})
        elif pool := _POOL.search(line):
            size, cell, layers, sequences, streams, rows, k_type, k, v_type, v = pool.groups()
            counts = {"cells": int(cell), "layers": int(layers), "sequences": int(sequences)}
            counts |= {"streams": int(streams)} if streams else {"rollbacks": int(rows or 0)}
            found.append({**counts, "MiB": size, "K": f"{k_type} {k}", "V": f"{v_type} {v}"})
    return found


def computed(model: Any, layout: Any, context_tokens: int, streams: Streams, *, old: bool) -> tuple[list[Pool], int]:
    """The same from kvcalc's layout, and the exact bytes of all."""
    cells: Any = stage_allocations(model, layout, Parallelism())[0]
    pools: dict[str, Pool] = {}
    for item in cells.records:
        record, role = item.record, item.record.components[0].role
        size = item.count * cells.record_bytes(record, context_tokens, streams)
        if not size:
            continue
        name = "states" if record.is_state else "windows" if isinstance(record.slots, Window) else "all"
        pool = pools.setdefault("index" if role is Role.INDEX else name, {"bytes": 0, "K": 0, "V": 0, "layers": 0})
        pool["bytes"] += size
        pool["record"] = record
        pool["layers"] += 0 if role is Role.VALUE else item.count
        for component in record.components:
            packing = record.format.by_role.get(component.role, record.format.packing)
            share = packing.bytes_for(heads=component.heads, width=component.width)
            pool["V" if component.role in (Role.VALUE, Role.STATE) else "K"] += size // record.bytes_per_slot * share
    names = [name for name in ("all", "windows", "index", "states") if name in pools]
    total = sum(pool["bytes"] for pool in pools.values())
    return [stated_as(pools[name], model, layout, cells, context_tokens, streams, old) for name in names], total


def stated_as(
    pool: Pool, model: Any, layout: Any, cells: Any, context_tokens: int, streams: Streams, old: bool
) -> Pool:
    """A cache as llama.cpp prints it."""
    record = pool["record"]
    kv, _, value = layout.precision.kv.name.partition(", V ")
    types = ("fp32", "fp32") if record.is_state else (kv, value or kv)
    if isinstance(record.slots, Window) and layout.window_format:
        types = (layout.window_format.name,) * 2
    k_type, v_type = ({dtype: name for name, dtype in DTYPES.items()}.get(each, each) for each in types)
    found: Pool = {"cells": streams.sequences, "layers": len(model.layers), "sequences": streams.sequences}
    if record.is_state:
        found["rollbacks"] = streams.rollbacks
    else:
        found |= {"cells": cells.cells(record.slots, context_tokens, streams), "layers": pool["layers"]}
        found["streams"] = streams.streams
    if old:
        found = {name: found[name] for name in ("cells", "layers")}
    sizes = {"MiB": mib(pool["bytes"]), "K": f"{k_type} {mib(pool['K'])}", "V": f"{v_type} {mib(pool['V'])}"}
    return found | sizes


def mib(size_bytes: int) -> str:
    """As C prints it: the bytes as a 32-bit float, over 2^20, two digits."""
    return f"{ctypes.c_float(size_bytes).value / (1 << 20):.2f}"


def kvcalc_says(model: Any, version: str, setting: Setting, rollbacks: int) -> tuple[list[Pool], int]:
    """The caches of a context, and the exact bytes of all."""
    streams = Streams(
        sequences=setting.n_seq_max,
        streams=1 if setting.kv_unified or version in ALWAYS_UNIFIED else setting.n_seq_max,
        whole_windows=setting.swa_full,
        rollbacks=rollbacks,
    )
    states = any(each.kind not in ("gqa", "mla") for layer in model.layers for each in layer.attentions)
    shares = 1 if states and version in WHOLE_CONTEXTS else streams.streams
    layout = api.layout_for(
        model,
        engine=engine(version),
        kv_dtype=DTYPES.get(setting.type_k, setting.type_k),
        max_batched_tokens=setting.n_ubatch,
        block_tokens=FLASH_PADDING.get(version) if setting.flash_attn else None,
    )
    layout = with_value_format(layout, DTYPES.get(setting.type_v, setting.type_v))
    return computed(model, layout, -(-setting.n_ctx // shares), streams, old=version in ALWAYS_UNIFIED)


def engine(version: str) -> str:
    return f"llama-cpp@{RELEASED[version][0]}"


def judged(tiny: Tiny, version: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each setting of a model."""
    gguf, spec = folder / f"{tiny.title}.gguf", folder / f"{tiny.title}.yaml"
    write_gguf(tiny, gguf)
    spec.write_text(json.dumps(tiny.spec()))
    model = api.load_model(str(spec))
    head = {"version": version, "model": tiny.title}
    try:
        for setting, lines in contexts(gguf):
            row = {**head, "setting": asked(setting)}
            yield row | ({"verdict": "llama.cpp refuses"} if lines is None else verdict(model, version, setting, lines))
    except LookupError as error:
        unknown = "unknown model architecture" in str(error)
        yield {**head, "verdict": "not there"} if unknown else {**head, "verdict": "not loaded", "log": str(error)}


def verdict(model: Any, version: str, setting: Setting, lines: list[str]) -> dict[str, Any]:
    theirs = printed(lines)
    rollbacks = max((pool.get("rollbacks", 0) for pool in theirs), default=0)
    mine, size = kvcalc_says(model, version, setting, rollbacks)
    account = reconciled(model, version, lines)
    same = mine == theirs and account == EXPLAINED
    both = {"both": theirs} if mine == theirs else {"kvcalc": mine, "llama.cpp": theirs}
    return {"verdict": "equal" if same else "different", **both, "bytes": size, "reconcile": account}


def reconciled(model: Any, version: str, lines: list[str]) -> str:
    """What `kvcalc reconcile` says of the log."""
    options = dict.fromkeys(("gpu", "kv_dtype", "block_tokens", "prefix_caching", "max_batched_tokens"))
    ranks = dict.fromkeys(("tp", "pp", "dcp"))
    return make(read_log(lines), model=model, engine=engine(version), ranks=ranks, **options)[0].verdict


# --- results ----------------------------------------------------------------------------------------------------------


def counted(rows: list[dict[str, Any]]) -> dict[str, int]:
    verdicts = [row["verdict"] for row in rows]
    return {name: verdicts.count(name) for name in sorted(set(verdicts))}


def store(rows: list[dict[str, Any]], version: str) -> None:
    """Write the rows; those of other versions that were judged before stay."""
    before = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = [row for row in before if row["version"] != version] + rows
    rows.sort(key=lambda row: [int(part) for part in row["version"].split(".")])
    names = dict.fromkeys(row["version"] for row in rows)
    versions = {name: dict(zip(("released", "llama.cpp"), RELEASED[name], strict=True)) for name in names}
    what = "caches that llama.cpp logs against kvcalc's layout, and its logs reconciled"
    head = json.dumps({"what": what, "package": "llama-cpp-python", "versions": versions, "verdicts": counted(rows)})
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    RESULT.write_text(f'{head.removesuffix("}")},\n "rows": [\n{lines}\n ]\n}}\n')


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="only this one")
    parser.add_argument("--dry-run", action="store_true", help="print only")
    options = parser.parse_args()
    import llama_cpp

    version = llama_cpp.__version__
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            if options.model in (None, model.title):
                rows += judged(model, version, Path(folder))
    if not options.dry_run:
        store(rows, version)
    print(version, counted(rows))
    for row in rows:
        if row["verdict"] in ("different", "not loaded"):
            print(json.dumps(row))
    return 1 if any(row["verdict"] in ("different", "not loaded") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
