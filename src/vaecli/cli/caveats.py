"""What is to be said about a config before anything is done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vaecli.config.schema import Config


def caveats(configs: Sequence[Config], overrides: Sequence[str]) -> list[str]:
    """What of the configs has no effect, and what their bounds are not; each once."""
    notes = [f"{', '.join(keys)}: no effect, {reason}" for reason, keys in _unused(configs, overrides).items()]
    if any(config.is_relaxed for config in configs):
        notes.append("data.binarize: none puts grey pixels into a Bernoulli: its bound is relaxed, not a likelihood")
    for config in [config for config in configs if config.is_ill_posed][:1]:
        floor = config.model.min_log_sigma
        limit = "has no upper limit" if floor is None else f"is limited only by model.min_log_sigma: {floor}"
        notes.append(
            f"a learned scale on discrete pixels is ill-posed: the bound {limit}; data.dequantize: true mends it"
        )
    return notes


def _unused(configs: Sequence[Config], overrides: Sequence[str]) -> dict[str, list[str]]:
    """Settings that were written and do nothing, by the reason."""
    from vaecli.config.schema import Config

    default = Config().model_dump()
    named = {text.partition("=")[0] for text in overrides}
    reasons: dict[str, list[str]] = {}
    for config in configs:
        written = config.model_dump()
        for key, reason in config.unused_settings.items():
            section, _, name = key.partition(".")
            if (key in named or written[section][name] != default[section][name]) and key not in reasons.get(
                reason, []
            ):
                reasons.setdefault(reason, []).append(key)
    return reasons
