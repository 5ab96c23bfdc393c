"""The JSON Schema of the YAML, for editors and other programs: generated from the models that read it."""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from vaecli.config.schema import Config

SCHEMA_FILE = "vaecli.schema.json"
"""What a config calls the file of its schema, which lies beside it."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _WithoutTitles(GenerateJsonSchema):
    """Leave out the titles of settings, which would only say their keys again."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Return whether a setting has a title."""
        return False


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a config.

    Whatever loads is valid under it. What it does not say is told when a config is loaded: which settings do not go
    together, that a whole number is written without a point, and what a folder may be called.
    """
    schema = Config.model_json_schema(schema_generator=_WithoutTitles)
    for name, setting in schema["properties"].items():
        if "$ref" in setting:  # a section, of which nothing may be written but its name
            schema["properties"][name] = {"anyOf": [{"$ref": setting.pop("$ref")}, {"type": "null"}], **setting}
    return {"$schema": DIALECT, **schema, "title": "A config of vaecli"}


def schema_text() -> str:
    """Return the JSON Schema of a config as the text of its file."""
    return json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"
