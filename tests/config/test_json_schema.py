import jsonschema
import pytest
import yaml

from vaecli.config.data_sets import DATA_SETS
from vaecli.config.json_schema import SCHEMA_FILE, config_schema
from vaecli.config.likelihoods import LIKELIHOODS, Likelihood, Support
from vaecli.config.loading import all_keys, dump_config, find_config, load_config, parse_config, shipped_configs
from vaecli.config.schema import Config
from vaecli.errors import ConfigError

SCHEMA = config_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def setting(key: str) -> dict:
    """What the schema says of a dotted key."""
    section, _, name = key.rpartition(".")
    if not section:
        return SCHEMA["properties"][name]
    (reference,) = (way["$ref"] for way in SCHEMA["properties"][section]["anyOf"] if "$ref" in way)
    return SCHEMA["$defs"][reference.rpartition("/")[2]]["properties"][name]


def loads(text: str) -> bool:
    try:
        parse_config(yaml.safe_load(text))
    except ConfigError:
        return False
    return True


def test_it_is_a_json_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_are_valid_and_name_it_for_editors(name):
    text = find_config(name).read_text()
    VALIDATOR.validate(yaml.safe_load(text))
    assert f"\n# yaml-language-server: $schema={SCHEMA_FILE}\n" in text
    assert find_config(name).with_name(SCHEMA_FILE).is_file()


@pytest.mark.parametrize("name", shipped_configs())
def test_a_config_as_a_run_writes_it_is_valid(name):
    VALIDATOR.validate(yaml.safe_load(dump_config(load_config(name))))


@pytest.mark.parametrize("key", all_keys())
def test_every_key_has_its_meaning_and_its_default(key):
    section, _, name = key.rpartition(".")
    default = Config().model_dump(mode="json")
    assert setting(key)["default"] == (default[section] if section else default)[name]
    assert setting(key)["description"][-1] in ".)"


@pytest.mark.parametrize("key", [key for key in all_keys() if setting(key).get("type") in {"integer", "number"}])
def test_every_number_has_its_range(key):
    assert {"minimum", "exclusiveMinimum"} & setting(key).keys()


@pytest.mark.parametrize(
    "text",
    [
        "model: {hidden_dim: 500}",
        "model: {hidden_dim: [500, 200]}",
        "model: {hidden_dim: []}",
        "model: {network: conv, channels: 8}",
        "training: {compile: on}",  # which YAML 1.1 reads as true
        "training: {compile: 'on'}",
        "training: {compile: no}",
        "training: {patience: null}",
        "objective: {kl_weight: 1}",
        "model: {min_log_sigma: -7}",
        "model:",
        "data: {name: faces.npy}",
        "data: {name: /srv/faces.npz}",
        "data: {name: train-images-idx3-ubyte.gz}",
        "device: cuda:1",
        *(f"data: {{name: {name}}}" for name in DATA_SETS),
        *(f"model: {{decoder: {name}}}" for name in LIKELIHOODS),
    ],
)
def test_what_loads_is_valid(text):
    assert loads(text)
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "latent_dim: 3",
        "model: {latnet_dim: 3}",
        "model: {decoder: bernouli}",
        "model: {latent_dim: 0}",
        "model: {latent_dim: true}",
        "model: {hidden_dim: [500, 0]}",
        f"model: {{hidden_dim: {[1] * 101}}}",
        "model: {network: conv, channels: []}",
        "training: {compile: 1}",
        "training: {compile: maybe}",
        "optimizer: {learning_rate: 0}",
        "data: {name: faces.png}",
        "data: {name: fashon-mnist}",
        "device: gpu",
        "model: 3",
        "seed: -1",
    ],
)
def test_what_does_not_load_is_not(text):
    assert not loads(text)
    assert not VALIDATOR.is_valid(yaml.safe_load(text))


def test_a_decoder_of_ones_own_is_valid(monkeypatch):
    monkeypatch.setitem(LIKELIHOODS, "tight", Likelihood("Tight", Support.UNIT_INTERVAL))
    jsonschema.validate({"model": {"decoder": "tight"}}, config_schema())
