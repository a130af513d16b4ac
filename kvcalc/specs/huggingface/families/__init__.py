"""The family tables: model_type -> Family."""

from kvcalc.specs.huggingface.families import dense, hub_only, hybrid, latent, moe, older, shared
from kvcalc.specs.huggingface.family import Family

FAMILIES: dict[str, Family] = {
    **dense.FAMILIES,
    **older.FAMILIES,
    **moe.FAMILIES,
    **latent.FAMILIES,
    **hybrid.FAMILIES,
    **shared.FAMILIES,
    **hub_only.FAMILIES,
}
