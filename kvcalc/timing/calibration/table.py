"""Tables of attention cases in CSV: read into arrays, checked row by row, and predicted a million rows at a time.

Columns: attention (mha, gqa, mqa, mla), n_heads (on this rank), n_kv_heads, head_dim, kv_lora_rank, qk_rope_head_dim,
batch, context_tokens, query_tokens, kv_dtype, window_tokens, and latency_us for measured points. A column without
meaning for a row may be empty or absent; an unknown one is an error. An error names the row.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from kvcalc.architecture.attention import Component, GroupedAttention, LatentAttention
from kvcalc.architecture.formats import cache_format
from kvcalc.errors import KvcalcError, UsageError
from kvcalc.names import nearest
from kvcalc.timing.attention_time import AttentionCase
from kvcalc.timing.calibration.arrays import CHUNK_ROWS, NUMPY, take

COLUMNS = (
    "attention",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "batch",
    "context_tokens",
    "query_tokens",
    "kv_dtype",
    "window_tokens",
    "latency_us",
)
KINDS = ("mha", "gqa", "mqa", "mla")
_WHOLE = ("n_heads", "n_kv_heads", "head_dim", "kv_lora_rank", "qk_rope_head_dim", "batch", "context_tokens")
_DEFAULTS = {"query_tokens": 1.0, "window_tokens": 0.0}
MAX_WHOLE = 1 << 40
MAX_WIDTH = 1 << 17
"""Above any head's width, so that widths and format pack into one exact float."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseTable:
    """A table's rows as they were written, and as arrays.

    kind     index into KINDS; `window` where a window is shorter than the context
    seconds  measured times; None without a latency_us column
    """

    header: str
    lines: Sequence[str]
    kind: np.ndarray
    case: AttentionCase
    window: np.ndarray
    seconds: np.ndarray | None

    def __len__(self) -> int:
        return len(self.lines)


def read_table(text: str, *, source: str, points: bool) -> CaseTable:
    """Read a table; `points` wants latency_us. Raises UsageError that names the row."""
    names, lines, columns = _columns(text.removeprefix("\ufeff"), source)
    if points and "latency_us" not in names:
        raise UsageError(f"{source} has no column latency_us", hint="points need the measured time of each row")
    rows = _Rows(source, dict(zip(names, columns, strict=True)), len(lines))
    return rows.table(header=",".join(names), lines=lines)


def _columns(text: str, source: str) -> tuple[list[str], Sequence[str], list[Sequence[str]]]:
    """Column names, each row's text, and the cells by column."""
    if '"' in text:
        records = [record for record in csv.reader(io.StringIO(text)) if record]
        lines: Sequence[str] = [_join(record) for record in records]
        cells = [len(record) for record in records]
    else:
        records = []
        lines = [line for line in text.splitlines() if line and not line.isspace()]
        cells = [line.count(",") + 1 for line in lines]
    if not lines:
        raise UsageError(f"{source} is empty", hint=f"the first line names columns: {', '.join(COLUMNS[:4])}, ...")
    names = [name.strip() for name in (records[0] if records else lines[0].split(","))]
    for name in names:
        if name not in COLUMNS:
            raise UsageError(f"{source}: unknown column '{name}'", hint=nearest(name, COLUMNS))
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise UsageError(f"{source}: column '{doubled}' is there twice")
    if len(lines) == 1:
        raise UsageError(f"{source} has no rows below its header")
    bad = next((number for number, count in enumerate(cells) if count != len(names)), None)
    if bad is not None:
        raise UsageError(f"{source}, row {bad}: {cells[bad]} cells for {len(names)} columns")
    # one split of the whole text: a list a row would cost several times as much
    flat = [cell for record in records for cell in record] if records else ",".join(lines).split(",")
    return names, lines[1:], [flat[number + len(names) :: len(names)] for number in range(len(names))]


def _join(record: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(record)
    return out.getvalue()


class _Parsed(dict[str, float]):
    """Each distinct cell of a column, parsed once."""

    def __init__(self, parse: Callable[[str], float]) -> None:
        super().__init__()
        self.parse = parse

    def __missing__(self, cell: str) -> float:
        value = self[cell] = self.parse(cell.strip())
        return value


class _Rows:
    """The cells of a table, parsed and checked."""

    def __init__(self, source: str, cells: dict[str, Sequence[str]], count: int) -> None:
        self.source, self.cells, self.count = source, cells, count

    def table(self, *, header: str, lines: Sequence[str]) -> CaseTable:
        kind = self._parse("attention", _kind, None).astype(np.int64)
        numbers = {name: self._parse(name, _whole, _DEFAULTS.get(name, np.nan)) for name in (*_WHOLE, *_DEFAULTS)}
        dtypes = self.cells.get("kv_dtype", ("",) * self.count)
        seconds = self._parse("latency_us", _positive, np.nan) * 1e-6 if "latency_us" in self.cells else None
        mla = kind == KINDS.index("mla")
        heads = numbers["n_heads"]
        self._need(~np.isnan(heads), "n_heads is missing or 0")
        self._need(~np.isnan(numbers["batch"]), "batch is missing or 0")
        self._need(~np.isnan(numbers["context_tokens"]), "context_tokens is missing or 0")
        self._need(~mla | ~np.isnan(numbers["kv_lora_rank"]), "mla needs kv_lora_rank")
        self._need(~mla | ~np.isnan(numbers["qk_rope_head_dim"]), "mla needs qk_rope_head_dim")
        self._need(mla | ~np.isnan(numbers["head_dim"]), "head_dim is missing or 0")
        if seconds is not None:
            self._need(~np.isnan(seconds), "latency_us is missing")
        kv_heads = self._kv_heads(kind, heads, numbers["n_kv_heads"])
        context, query = numbers["context_tokens"], numbers["query_tokens"]
        self._need(query <= context, "query_tokens is above context_tokens")
        self._need(
            ~(mla & (numbers["window_tokens"] > 0)), "a window over mla is not modelled; leave window_tokens out"
        )
        window = (numbers["window_tokens"] > 0) & (numbers["window_tokens"] + query - 1 < context)
        self._need(~(numbers["head_dim"] >= MAX_WIDTH), f"head_dim is {MAX_WIDTH} or more")
        self._need(~(numbers["kv_lora_rank"] >= MAX_WIDTH), f"kv_lora_rank is {MAX_WIDTH} or more")
        self._need(~(numbers["qk_rope_head_dim"] >= MAX_WIDTH), f"qk_rope_head_dim is {MAX_WIDTH} or more")
        entry, flop, value, moved, eight = self._dimensions(mla, numbers, dtypes)
        return CaseTable(
            header=header,
            lines=lines,
            kind=kind,
            window=window,
            seconds=seconds,
            case=AttentionCase(
                batch=numbers["batch"],
                n_heads=heads,
                n_kv_heads=kv_heads,
                context_tokens=np.where(window, numbers["window_tokens"] + query - 1, context),
                query_tokens=query,
                entry_bytes=entry,
                flop_per_pair=flop,
                value_elements=value,
                query_output_elements=moved,
                eight_bit=eight > 0,
                history_tokens=np.where(window, context, 0),
            ),
        )

    def _kv_heads(self, kind: np.ndarray, heads: np.ndarray, given: np.ndarray) -> np.ndarray:
        mha, gqa, mqa, mla = (kind == number for number in range(len(KINDS)))
        self._need(~gqa | ~np.isnan(given), "gqa needs n_kv_heads")
        self._need(
            ~mha | np.isnan(given) | (given == heads), "mha has as many KV heads as heads; n_kv_heads says otherwise"
        )
        self._need(~mqa | np.isnan(given) | (given == 1), "mqa has one KV head; n_kv_heads says otherwise")
        found = np.where(mla | mqa, 1.0, np.where(mha, heads, given))
        self._need(heads % found == 0, "n_heads is not a multiple of n_kv_heads")
        return found

    def _dimensions(
        self, mla: np.ndarray, numbers: dict[str, np.ndarray], dtypes: Sequence[str]
    ) -> tuple[np.ndarray, ...]:
        """Bytes of an entry, FLOPs of a pair and widths, each distinct combination worked out once."""
        first = np.where(mla, numbers["kv_lora_rank"], numbers["head_dim"])
        second = np.where(mla, numbers["qk_rope_head_dim"], 0.0)
        names = {name: number for number, name in enumerate(dict.fromkeys(dtypes))}
        code = np.fromiter(map(names.__getitem__, dtypes), float, self.count)
        packed = ((first * MAX_WIDTH + second) * len(names) + code) * 2 + mla
        _, at, inverse = np.unique(packed, return_index=True, return_inverse=True)
        keys = zip(mla[at].tolist(), first[at].tolist(), second[at].tolist(), code[at].tolist(), strict=True)
        spelled, found = list(names), []
        for row, (is_mla, width, rope, dtype) in zip(at.tolist(), keys, strict=True):
            try:
                found.append(_dimensions(bool(is_mla), int(width), int(rope), spelled[int(dtype)].strip() or "bf16"))
            except KvcalcError as error:
                raise UsageError(f"{self.source}, row {row + 1}: {error.message}", hint=error.hint) from None
        return tuple(np.array(column, float)[inverse] for column in zip(*found, strict=True))

    def _parse(self, name: str, parse: Callable[[str], float], missing: float | None) -> np.ndarray:
        """A column as numbers; `missing` for an empty or absent cell, or an error where it is None."""
        if name not in self.cells:
            if missing is None:
                raise UsageError(f"{self.source} has no column {name}")
            return np.full(self.count, missing)
        parsed = _Parsed(lambda cell: parse(cell) if cell or missing is None else missing)
        cells = self.cells[name]
        try:
            return np.fromiter(map(parsed.__getitem__, cells), float, self.count)
        except ValueError as error:
            bad = next(number for number, cell in enumerate(cells) if cell not in parsed)
            raise UsageError(f"{self.source}, row {bad + 1}: {name} {error}") from None

    def _need(self, good: np.ndarray, message: str) -> None:
        if not np.all(good):
            raise UsageError(f"{self.source}, row {int(np.argmin(good)) + 1}: {message}")


def _kind(cell: str) -> float:
    if cell not in KINDS:
        raise ValueError(f"'{cell}' is not one of {', '.join(KINDS)}")
    return float(KINDS.index(cell))


def _whole(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"'{cell}' is not a number") from None
    if not 0 <= value <= MAX_WHOLE or value != int(value) or (value == 0 and cell.strip("0.")):
        raise ValueError(f"'{cell}' is not a whole number above 0")
    return value if value else np.nan


def _positive(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"'{cell}' is not a number") from None
    if not 0 < value < 1e12:
        raise ValueError(f"'{cell}' is not a time above 0")
    return value


@cache
def _dimensions(mla: bool, width: int, rope: int, dtype: str) -> tuple[float, float, float, float, float]:
    """Of one KV head: entry bytes, FLOPs of a pair, value width, query and output elements, whether 8 bits."""
    attention: Any
    if mla:
        attention = LatentAttention(
            n_heads=1, kv_lora_rank=width, qk_nope_head_dim=1, qk_rope_head_dim=rope, v_head_dim=1
        )
    else:
        attention = GroupedAttention(n_heads=1, n_kv_heads=1, head_dim=width, v_head_dim=width)
    components: tuple[Component, ...] = attention.components()
    format = cache_format(dtype)
    size = format.record_bytes(components, shards=1)
    elements = sum(component.elements_per_slot for component in components)
    flop = sum(component.flop_per_pair for component in components)
    return float(size), float(flop), float(width), float(attention.query_output_elements), float(size < 1.5 * elements)


def predict(table: CaseTable, chosen: Callable[[int, bool, bool], Any]) -> dict[str, np.ndarray]:
    """roofline_us, expected_us, low_us, high_us and bound of each row.

    chosen  the CalibratedKernel for an index into KINDS, whether heads share KV heads, and whether the cache has 8 bits
    """
    from kvcalc.timing.attention_time import attention_time, roofline_s
    from kvcalc.timing.calibrated import BOUNDARIES_BYTES, UNFUSED_HIGH, UNSEEN_SCALE

    case, count = table.case, len(table)
    out = {name: np.empty(count) for name in ("roofline_us", "expected_us", "low_us", "high_us")}
    bounds = np.empty(count, dtype=np.int64)
    mla = table.kind == KINDS.index("mla")
    shared = case.n_heads > case.n_kv_heads
    group = np.where(mla, KINDS.index("mla"), np.where(shared, 1, 0)) * 2 + case.eight_bit
    for number in np.unique(group).tolist():
        members = np.flatnonzero(group == number)
        kernel = chosen(number // 2, bool(number // 2 != 0), bool(number % 2))
        low, high = (np.array(side) for side in (kernel.interval.low, kernel.interval.high))
        for start in range(0, len(members), CHUNK_ROWS):
            rows = members[start : start + CHUNK_ROWS]
            part = take(case, rows)
            time = attention_time(part, kernel.machine, kernel.kernel.shape, kernel.values, NUMPY)
            total = time.total_s
            regime = np.searchsorted(BOUNDARIES_BYTES, part.cache_bytes, side="right")
            scale = np.where(table.window[rows] | (part.query_tokens > 1), UNSEEN_SCALE, 1.0)
            out["roofline_us"][rows] = roofline_s(part, kernel.machine, NUMPY) * 1e6
            out["expected_us"][rows] = total * 1e6
            out["low_us"][rows] = total * low[regime] ** scale * 1e6
            upper = high[regime] ** scale
            if kernel.family.max_group is not None and number // 2 != KINDS.index("mla"):
                unfused = part.n_heads / part.n_kv_heads > kernel.family.max_group
                upper = np.where(unfused, np.maximum(upper, UNFUSED_HIGH), upper)
            out["high_us"][rows] = total * upper * 1e6
            bounds[rows] = np.where(time.tiles_s < total / 2, 0, np.where(time.memory_share >= time.matrix_share, 1, 2))
    out["bound"] = np.array(["latency", "memory", "compute"])[bounds]
    return out


def to_csv(table: CaseTable, predicted: dict[str, np.ndarray]) -> str:
    """Each row as it was written, with what is predicted behind it."""
    columns = [predicted[name].tolist() for name in ("roofline_us", "expected_us", "low_us", "high_us", "bound")]
    body = [
        f"{line},{roofline:.6g},{expected:.6g},{low:.6g},{high:.6g},{bound}"
        for line, roofline, expected, low, high, bound in zip(table.lines, *columns, strict=True)
    ]
    return "\n".join([f"{table.header},roofline_us,expected_us,low_us,high_us,bound", *body, ""])
