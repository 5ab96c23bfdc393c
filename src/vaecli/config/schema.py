"""The config of a run as frozen models of its YAML. Every field has a default, so a config names only what it means."""

import json
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from vaecli.config.fields import Section
from vaecli.config.likelihoods import LIKELIHOODS, Support
from vaecli.config.sections import DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainingConfig
from vaecli.files import MAX_NAME, safe_name

RESUMABLE = ("training.epochs", "training.patience", "device")
"""The settings that may change when a run is resumed."""
DEVICE = r"^(auto|cpu|cuda(:\d{1,3})?|mps)$"


def refuse(section: str, key: str, value: object, reason: str) -> None:
    """Raise the ValidationError of one setting of a section, for what another section has."""
    error = PydanticCustomError("value_error", reason)
    details = InitErrorDetails(type=error, loc=(key,), input=value)
    raise ValidationError.from_exception_data(section, [details])


def _as_folder(name: str) -> str:
    name, safe = unicodedata.normalize("NFC", name), safe_name(name)
    if name != safe:
        rule = f"a letter or a digit, then letters, digits and any of _ . + -, {MAX_NAME} in all"
        raise ValueError(f"Input should be {rule}" + (f", such as {safe}" if safe else ""))
    return name


class Config(Section):
    """Describe everything that decides what a run computes."""

    name: Annotated[str, AfterValidator(_as_folder)] | None = None
    """The folder under the runs directory; null: the config file's name."""
    data: DataConfig = DataConfig()
    """Which images or vectors, and how they become x."""
    model: ModelConfig = ModelConfig()
    """The networks of q(z|x) and p(x|z), and the prior p(z)."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The lower bound that is maximised."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How the parameters follow its gradient."""
    training: TrainingConfig = TrainingConfig()
    """How long to train, in minibatches of which size, and how steps are made faster."""
    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Of every random number."""
    device: str = Field("auto", pattern=DEVICE)
    """auto: CUDA where there is one, else the CPU."""

    @field_validator("data", "model", "objective", "optimizer", "training", mode="before")
    @classmethod
    def _empty_section(cls, value: object) -> object:
        """Let `model:` with nothing below it mean all its defaults."""
        return {} if value is None else value

    @field_validator("model")
    @classmethod
    def _model_fits_the_data(cls, value: ModelConfig, info: Any) -> ModelConfig:
        data = info.data.get("data")
        if data is None or data.kind == "images":
            return value
        if not value.likelihood.takes_vectors:
            names = [repr(name) for name, likelihood in LIKELIHOODS.items() if likelihood.takes_vectors]
            refuse("model", "decoder", value.decoder, f"Input should be {', '.join(names)} with data.kind: vectors")
        if value.mean != "linear":
            refuse(
                "model", "mean", value.mean, "Input should be 'linear' with data.kind: vectors, which have no bounds"
            )
        if value.network != "mlp":
            refuse("model", "network", value.network, "Input should be 'mlp' with data.kind: vectors, not pictures")
        if value.prior == "vamp":
            reason = "Input should be 'standard', 'mixture' or 'flow' with data.kind: vectors: pseudo-inputs are images"
            refuse("model", "prior", value.prior, reason)
        return value

    @field_validator("training")
    @classmethod
    def _algorithm_fits_the_model(cls, value: TrainingConfig, info: Any) -> TrainingConfig:
        name, objective, model = value.algorithm, info.data.get("objective"), info.data.get("model")
        if name == "aevb" or objective is None or model is None:
            return value
        if objective.name != "elbo":
            reason = f"with objective.name: {objective.name}, which is a gradient of its own"
        elif model.prior == "vamp":
            reason = "with prior: vamp, whose parts are the encoder's, and the encoder does not learn from log p(x, z)"
        elif model.normalization == "batch":
            reason = "with normalization: batch, whose statistics are those of minibatches of images alone"
        elif model.condition != "none":
            reason = "with condition: labels, which its dreams and chains do not have"
        else:
            return value
        refuse("training", "algorithm", name, f"Input should be 'aevb' {reason}")
        return value

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> "Config":
        if self.training.patience is not None and self.data.validation == 0:
            raise ValueError("training.patience needs validation images, and data.validation is 0")
        return self

    @property
    def support(self) -> Support:
        """Return what x is in p(x|z): of images the decoder says it, of vectors they do."""
        return Support.REAL if self.data.kind == "vectors" else self.model.likelihood.support

    @property
    def identity(self) -> str:
        """Return what makes two runs the same run: all of the config but its name and the device."""
        return json.dumps(self.model_dump(mode="json", exclude={"name", "device"}), sort_keys=True)

    @property
    def is_relaxed(self) -> bool:
        """Return whether a binary likelihood is given grey pixels: its bound is then not a likelihood."""
        return self.support is Support.BINARY and self.data.binarize == "none"

    @property
    def is_ill_posed(self) -> bool:
        """Return whether a learned scale meets pixels without noise, so that only its floor bounds the density."""
        learns_scale = self.model.likelihood.learns_scale and not self.model.fixes_scale
        return learns_scale and self.support is Support.UNIT_INTERVAL and not self.data.dequantize

    @property
    def is_likelihood(self) -> bool:
        """Return whether the bound is one on a likelihood of pixels: made binary, dequantised, or as levels."""
        support = self.support
        return not self.is_relaxed and (support is not Support.UNIT_INTERVAL or self.data.dequantize)

    @property
    def caveat(self) -> str | None:
        """Return what must be said wherever the bound is shown, if anything."""
        caveats = []
        if self.is_relaxed:
            caveats.append("relaxed, not a likelihood")
        elif self.is_ill_posed:
            caveats.append("ill-posed: density of discrete pixels")
        elif not self.is_likelihood:
            caveats.append("density of discrete pixels, not comparable")
        if self.model.condition == "labels":
            caveats.append("given the label")
        return "; ".join(caveats) or None

    @property
    def observed(self) -> str:
        """Say in a few words how pixels become x."""
        support, data = self.support, self.data
        if support is Support.REAL:
            return "standardised"
        if support is Support.LEVELS:
            return "as they are"
        if support is Support.UNIT_INTERVAL:
            return "dequantised" if data.dequantize else "grey"
        ways = {"dynamic": "binarised anew", "threshold": "binarised at ½", "static": "binarised once", "none": "grey"}
        return ways[data.binarize]

    @property
    def support_title(self) -> str:
        """Say what the bound is a statement about: only bounds with the same title may be compared."""
        caveat = f": {self.caveat}" if self.caveat else ""
        what = "numbers" if self.support is Support.REAL else "pixels"
        return f"{self.support.value}, {what} {self.observed}{caveat}"


def get_setting(config: Config, key: str) -> Any:
    """Return the value of a setting by its dotted key; a list of one as its number, as it is written."""
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def describe_settings(config: Config, keys: Sequence[str]) -> str:
    """Describe the settings of these keys by the last part of each key: `decoder bernoulli, seed 0`."""
    return ", ".join(f"{key.rpartition('.')[2]} {get_setting(config, key)}" for key in keys)


def identity(config: Config, *, extend: bool = False) -> str:
    """Return what makes two runs the same run; the number of epochs is no part of it where that can be extended."""
    return recorded_identity(config.identity, extend=extend) if extend else config.identity


def recorded_identity(recorded: str, *, extend: bool = False) -> str:
    """Return the identity of a run from what was recorded of it: settings that came later have their defaults."""
    values = json.loads(recorded)
    for key, default in json.loads(Config().identity).items():
        values[key] = default | values.get(key, {}) if isinstance(default, dict) else values.get(key, default)
    if extend and values["optimizer"]["schedule"] == "constant":
        del values["training"]["epochs"]
    return json.dumps(values, sort_keys=True)
