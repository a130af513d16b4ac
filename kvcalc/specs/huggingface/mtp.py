"""Multi-token prediction layers, where the publisher's file says that there are some.

All build on DeepSeek-V3's (arXiv 2412.19437 sec. 2.2): a layer of the model behind a projection of the token's
embedding and the last hidden state to one vector; five norms (two of the layer, one on each input of the projection,
one before the head).
"""

from typing import Any

from kvcalc.specs.huggingface.config import Config
from kvcalc.specs.huggingface.rows import Part, matrix, vector

NORMS = 5
COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")


def like_the_last(config: Config, layers: list[Part]) -> Part:
    """A layer like the last one, with an indexer of its own where it has one, and one projection of both inputs."""
    hidden = config.count("hidden_size")
    attention: Any = layers[-1]["attention"]
    if attention.get("selection", {}).get("indexer") == "shared":
        attention = next(
            layer["attention"] for layer in layers if layer["attention"]["selection"]["indexer"] != "shared"
        )
    return {**layers[-1], "attention": attention, "norms": NORMS, "other": [matrix("eh_proj", 2 * hidden, hidden)]}


def window_only(config: Config, layers: list[Part]) -> Part:
    """DeepSeek-V4: the window without a compressed stream, two projections, and a collapse of the residual streams."""
    hidden, streams = config.count("hidden_size"), config.count("hc_mult")
    compressed = ("compress_ratio", "overlap", "top_k", "index_heads", "index_head_dim")
    attention = {key: value for key, value in layers[-1]["attention"].items() if key not in compressed}
    other = [
        {**matrix("e_proj_h_proj", hidden, hidden), "count": 2},
        *layers[-1]["other"],
        matrix("hyper_connection_head", streams * hidden, streams),
        vector("hyper_connection_head_bias_and_scale", streams + 1),
    ]
    return {**layers[-1], "attention": attention, "norms": NORMS, "other": other}


def mtp_layers(config: Config, layer: Part) -> list[Part]:
    """As many as the file states; a class default alone says nothing about a checkpoint."""
    count = mtp_count(config)
    return [{**({"repeat": count} if count > 1 else {}), **layer}] if count else []


def mtp_count(config: Config) -> int:
    counts = [config.get(field) or 0 for field in COUNTS if config.is_given(field)]
    return max(counts, default=0)
