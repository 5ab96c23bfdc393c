"""The kinds of values that settings take: what may be written for each, and what becomes of it."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Describe a part of the config: immutable, of exact types, without unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


def _layers(value: object) -> object:
    """Accept one layer as a number, several as a list."""
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, int) else value


def _on_or_off(value: object) -> object:
    """Take the booleans that YAML reads `on` and `off` as."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


Size = Annotated[int, Field(ge=1, le=65536)]
_Layers = Annotated[tuple[Size, ...], Field(max_length=100)]
_Channels = Annotated[tuple[Size, ...], Field(min_length=1, max_length=16)]
Layers = Annotated[_Layers, BeforeValidator(_layers, json_schema_input_type=Size | _Layers)]
Channels = Annotated[_Channels, BeforeValidator(_layers, json_schema_input_type=Size | _Channels)]
Switch = Annotated[
    Literal["auto", "on", "off"],
    BeforeValidator(_on_or_off, json_schema_input_type=Literal["auto", "on", "off"] | bool),
]
