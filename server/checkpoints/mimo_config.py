"""The configuration of MiMo checkpoints, which transformers does not know without code of theirs."""

from __future__ import annotations


def register_mimo() -> None:
    """Let transformers read ``model_type: mimo``: Qwen2's configuration, and ``num_nextn_predict_layers``."""
    from transformers import AutoConfig, Qwen2Config
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if "mimo" not in CONFIG_MAPPING:
        AutoConfig.register("mimo", type("MiMoConfig", (Qwen2Config,), {"model_type": "mimo"}))
