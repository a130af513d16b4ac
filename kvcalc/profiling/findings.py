"""What a run's numbers say, in sentences: what bounds the attention here, which kernel wins, what MLA is worth, how
well the prediction held. Every figure is this run's own.
"""

from collections.abc import Iterator
from statistics import median

from kvcalc.profiling.case import ABSORBED
from kvcalc.profiling.predict import COMPUTE, LATENCY, MEMORY
from kvcalc.profiling.results import Measured, Results
from kvcalc.units import memory, ratio, seconds

_BOUNDS = {MEMORY: "bandwidth-bound", COMPUTE: "compute-bound", LATENCY: "latency-bound"}
Place = tuple[str, int, int, int]
"""Phase, batch, context_tokens, query_tokens: what two attentions must share to be compared."""


def findings(results: Results) -> list[str]:
    """Sentences, most telling first; none where nothing was timed."""
    if not results.timed:
        return []
    return [
        *_contention(results),
        *_bounds(results),
        *_winners(results),
        *_mla_against_others(results),
        *_prediction(results),
        *_noise(results),
    ]


def best(results: Results) -> dict[tuple[str, Place], Measured]:
    """The fastest kernel of each attention at each place."""
    found: dict[tuple[str, Place], Measured] = {}
    for each in results.timed:
        key = (each.planned.name, _place(each))
        if key not in found or _median_s(each) < _median_s(found[key]):
            found[key] = each
    return found


def _place(measured: Measured) -> Place:
    case = measured.planned.case
    return case.phase, case.batch, case.context_tokens, case.query_tokens


def _median_s(measured: Measured) -> float:
    assert measured.timing is not None
    return measured.timing.median_s


def _at(place: Place) -> str:
    _, batch, context, query = place
    return f"batch {batch}, {context:,} tokens" + (f", {query:,} query tokens" if query not in (1, context) else "")


def _contended(measured: Measured) -> bool:
    return measured.timing is not None and measured.timing.contended


def _contention(results: Results) -> Iterator[str]:
    contended = [each for each in results.timed if _contended(each)]
    if contended:
        yield (
            f"others used the CPU or its memory all along in {len(contended)} of {len(results.timed)} cases: their"
            " times are upper bounds, and what follows from them holds no further"
        )


def _bounds(results: Results) -> Iterator[str]:
    """Of each attention: what bounds its best kernel, and the number of heads at which that changes."""
    seen: dict[str, list[Measured]] = {}
    for (label, _), measured in best(results).items():
        seen.setdefault(label, []).append(measured)
    for label, group in seen.items():
        largest = max(group, key=lambda each: each.work.bytes)
        yield _bound(results, label, largest)
        small = [each for each in group if results.prediction(each).bound == LATENCY]
        if small and len(small) < len(group):
            most = max(small, key=lambda each: each.work.bytes)
            yield f"{label} is latency-bound up to {memory(most.planned.case.cache_read_bytes)} of cache"


def _bound(results: Results, label: str, measured: Measured) -> str:
    """What bounds one case, what its kernel reaches of it, and where that changes."""
    case, work, prediction = measured.planned.case, measured.work, results.prediction(measured)
    ceilings, bound = results.ceilings, prediction.bound
    ridge = ceilings.matmul_flop_per_s(work.dtype) / ceilings.read_bandwidth_bytes_per_s
    intensity = work.flop / work.bytes
    heads = "1 head" if case.n_heads == 1 else f"{case.n_heads} heads"
    sentence = f"{label} with {heads} is {_BOUNDS[bound]} here at {_at(_place(measured))}: "
    if bound == LATENCY:
        sentence += f"a launch takes {seconds(prediction.launch_s)}, the work {seconds(prediction.roofline_s)}"
    else:
        share = results.bandwidth_fraction(measured) if bound == MEMORY else results.flop_fraction(measured)
        of = "the measured read bandwidth" if bound == MEMORY else f"the measured {work.dtype} matrix product rate"
        sentence += (
            f"it does {intensity:.3g} FLOP for each byte, the machine {ridge:.3g}; "
            f"{measured.kernel} reaches {_percent(share or 0.0)} of {of}"
        )
    if case.is_latent and measured.form == ABSORBED:
        sentence += _crossover(measured, ridge)
    return sentence


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"


def _crossover(measured: Measured, ridge: float) -> str:
    """Absorbed MLA reads the same cache for any number of heads H, so its intensity grows with them:

        H flop_per_head = ridge (cache bytes + H query and output bytes of a head)    at the H where the bound changes

    The batch moves neither side: every sequence brings its own cache.
    """
    case, work = measured.planned.case, measured.work
    flop_per_head = (work.flop - ridge * case.query_output_bytes) / case.n_heads
    if flop_per_head <= 0:
        return "; more heads would not change that"
    heads = int(ridge * case.cache_read_bytes / flop_per_head)
    if heads < 1:
        return "; with any number of heads it is compute-bound on this machine, whatever the batch"
    return f"; it is bandwidth-bound up to {heads} heads a rank on this machine, whatever the batch"


def _winners(results: Results) -> Iterator[str]:
    """Which kernel is fastest for each attention, and by how much over the next."""
    by_label: dict[str, dict[Place, list[Measured]]] = {}
    for each in results.timed:
        by_label.setdefault(each.planned.name, {}).setdefault(_place(each), []).append(each)
    for label, places in by_label.items():
        contested = [sorted(group, key=_median_s) for group in places.values() if len(group) > 1]
        if not contested:
            continue
        wins: dict[str, list[float]] = {}
        for first, second, *_ in contested:
            wins.setdefault(first.kernel, []).append(_median_s(second) / _median_s(first))
        for kernel, leads in sorted(wins.items(), key=lambda item: -len(item[1])):
            yield (
                f"{label}: {kernel} is the fastest in {len(leads)} of {len(contested)} cases, "
                f"{ratio(round(median(leads), 2))} as fast as the next (median)"
            )


def _mla_against_others(results: Results) -> Iterator[str]:
    """MLA beside the same model with GQA and MHA, each with its fastest kernel, at equal batch and context."""
    fastest = best(results)
    own = {place: each for (_, place), each in fastest.items() if each.planned.case.is_latent}
    for (label, place), other in fastest.items():
        mla = own.get(place)
        if other.planned.what_if is None or mla is None:
            continue
        faster = _median_s(other) / _median_s(mla)
        verdict = f"{ratio(round(faster, 2))} faster" if faster >= 1 else f"{ratio(round(1 / faster, 2))} slower"
        bytes_ratio, flop_ratio = mla.work.bytes / other.work.bytes, mla.work.flop / other.work.flop
        yield (
            f"at {_at(place)}: MLA ({mla.kernel}) takes {seconds(_median_s(mla))}, the same model with {label} "
            f"({other.kernel}) {seconds(_median_s(other))}: MLA is {verdict}; it moves "
            f"{ratio(bytes_ratio)} the bytes and computes {ratio(flop_ratio)} the FLOPs"
            + ("; measured under contention, not to be relied on" if _contended(mla) or _contended(other) else "")
        )


def _prediction(results: Results) -> Iterator[str]:
    errors = sorted(results.prediction(each).error(_median_s(each)) for each in best(results).values())
    off = median(abs(error) for error in errors)
    yield (
        f"measured over expected, fastest kernels: {errors[0]:+.0%} to {errors[-1]:+.0%}, half of them within"
        f" {off:.0%}; that is the kernels' inefficiency as much as the prediction's error"
    )


def _noise(results: Results) -> Iterator[str]:
    timings = [each.timing for each in results.timed if each.timing is not None]
    spread = median((timing.p80_s - timing.p20_s) / timing.median_s for timing in timings)
    retaken = sum(timing.contended_samples for timing in timings)
    sentence = f"noise: p20 to p80 spans {spread:.1%} of the median (median of {len(timings)} cases)"
    if retaken:
        sentence += (
            f"; others used the CPU or its memory during {retaken} samples, which count only where there are no others"
        )
    yield sentence
