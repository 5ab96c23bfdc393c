import pytest
from pydantic import ValidationError

from vaecli.config.loading import load_config, parse_config
from vaecli.config.schema import Config
from vaecli.config.sections import ModelConfig
from vaecli.config.unused import unused_settings
from vaecli.errors import ConfigError


def test_defaults_are_those_of_the_documentation():
    config = Config()
    assert config.data.model_dump() == {
        "name": "mnist", "kind": "images", "binarize": "dynamic", "dequantize": True,
        "shuffle": False, "train": None, "validation": None, "test": None,
    }  # fmt: skip
    assert (config.model.latent_dim, config.model.hidden_dim, config.objective.L) == (20, (500,), 1)
    assert (config.optimizer.learning_rate, config.optimizer.schedule) == (0.002, "cosine")
    assert (config.training.batch_size, config.training.epochs, config.seed, config.device) == (100, 40, 0, "auto")


def test_configs_are_immutable():
    with pytest.raises(ValidationError):
        Config().seed = 1


@pytest.mark.parametrize(("given", "layers"), [(500, (500,)), ([300, 200], (300, 200))])
def test_hidden_layers_are_a_number_or_a_list(given, layers):
    assert ModelConfig(hidden_dim=given).hidden_dim == layers


@pytest.mark.parametrize(
    ("values", "caveat"),
    [
        ({}, None),
        ({"data": {"binarize": "none"}}, "relaxed, not a likelihood"),
        ({"model": {"decoder": "gaussian"}}, None),
        ({"model": {"decoder": "gaussian"}, "data": {"binarize": "none"}}, None),
        ({"model": {"decoder": "gaussian"}, "data": {"dequantize": False}}, "ill-posed: density of discrete pixels"),
        (
            {"model": {"decoder": "i-gaussian"}, "data": {"dequantize": False}},
            "density of discrete pixels, not comparable",
        ),
    ],
)
def test_bounds_that_are_no_likelihoods_carry_a_caveat(values, caveat):
    assert parse_config(values).caveat == caveat


@pytest.mark.parametrize(
    ("decoder", "unused"),
    [
        ("bernoulli", {"data.dequantize", "model.mean", "model.min_log_sigma", "model.sigma"}),
        ("gaussian", {"data.binarize", "model.sigma"}),
        ("i-gaussian", {"data.binarize", "model.min_log_sigma"}),
        ("discretized-logistic", {"data.binarize", "data.dequantize", "model.mean", "model.sigma"}),
    ],
)
def test_settings_that_do_not_apply_are_known(decoder, unused):
    found = set(unused_settings(parse_config({"model": {"decoder": decoder}})))
    assert found == unused | {"model.prior_components", "model.classes", "objective.L_warmup"}


def test_samples_that_are_never_drawn_are_known():
    few = {"objective": {"L": 5, "L_warmup": 3}, "training": {"epochs": 3}}
    assert unused_settings(parse_config(few))["objective.L"] == "L_warmup lasts for all epochs"
    assert "objective.L" not in unused_settings(parse_config(few | {"training": {"epochs": 4}}))


def test_a_given_scale_is_well_posed_and_leaves_the_floor_without_effect():
    model = {"decoder": "sigma-gaussian", "sigma": 0.1}
    config = parse_config({"model": model, "data": {"dequantize": False}})
    assert unused_settings(config)["model.min_log_sigma"] == "model.sigma is 0.1"
    assert config.caveat == "density of discrete pixels, not comparable"
    gaussian = parse_config({"model": model | {"decoder": "gaussian"}, "data": {"dequantize": False}})
    assert unused_settings(gaussian)["model.sigma"] == "gaussian does not have it"
    assert gaussian.is_ill_posed
    with pytest.raises(ConfigError, match=r"model.sigma: must be greater than 0, not 0"):
        parse_config({"model": {"sigma": 0}})


def test_settings_that_a_prior_leaves_without_effect_are_known():
    unused = unused_settings(parse_config({"model": {"prior": "vamp"}, "data": {"dequantize": True}}))
    assert "model.prior_components" not in unused
    assert unused["objective.estimator"] == "with a diagonal posterior and a vamp prior the KL has no closed form"


def test_channels_are_those_of_convolutions():
    assert parse_config({"model": {"network": "conv"}}).model.channels_of_layers == (32, 64)
    assert parse_config({"model": {"network": "conv", "channels": 8}}).model.channels_of_layers == (8,)
    with pytest.raises(ConfigError, match=r"model.channels: must be null with network: mlp, which has hidden_dim only"):
        parse_config({"model": {"channels": [8]}})


def test_on_and_off_are_words_although_yaml_has_them_as_booleans():
    for given, wanted in ((True, "on"), (False, "off"), ("auto", "auto"), ("on", "on")):
        assert parse_config({"training": {"compile": given}}).training.compile == wanted
    with pytest.raises(ConfigError, match=r"training.compile: must be 'auto', 'on' or 'off', not 1"):
        parse_config({"training": {"compile": 1}})


@pytest.mark.parametrize(
    ("key", "name", "others"),
    [
        ("posterior", "flow", "'diagonal' or 'full'"),
        ("posterior", "iaf", "'diagonal' or 'full'"),
        ("prior", "flow", "'standard' or 'mixture'"),
    ],
)
def test_a_flow_of_one_dimension_is_refused_with_its_line(tmp_path, key, name, others):
    path = tmp_path / "one.yaml"
    path.write_text(f"model:\n  {key}: {name}\n  latent_dim: 1\n")
    with pytest.raises(ConfigError, match=rf"one.yaml:2: model.{key}: must be {others}.*not '{name}'"):
        load_config(path)


def test_pseudo_inputs_do_not_meet_statistics_of_minibatches():
    """They would enter the running means by which images are normalised at evaluation."""
    with pytest.raises(
        ConfigError, match=r"model.prior: must be 'standard', 'mixture' or 'flow' with normalization: batch"
    ):
        parse_config({"model": {"prior": "vamp", "normalization": "batch"}})
    assert parse_config({"model": {"prior": "vamp", "normalization": "layer"}}).model.prior == "vamp"


def test_what_an_algorithm_leaves_without_effect_is_known():
    unused = unused_settings(parse_config({"training": {"algorithm": "wake-sleep"}}))
    followed = {"objective.estimator", "objective.kl_weight", "objective.kl_warmup"}
    assert {unused[key] for key in followed} == {"wake-sleep does not follow the gradient of the ELBO"}
    assert not followed & unused_settings(parse_config({})).keys()
    of_mcem = unused_settings(parse_config({"training": {"algorithm": "mcem"}})).keys()
    assert of_mcem - unused.keys() == {"training.cuda_graph"}


@pytest.mark.parametrize("algorithm", ["wake-sleep", "mcem"])
@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("objective: {name: iwae}", "with objective.name: iwae, which is a gradient of its own"),
        ("model: {prior: vamp}", "with prior: vamp, whose parts are the encoder's"),
        ("model: {normalization: batch}", "with normalization: batch, whose statistics"),
    ],
)
def test_what_an_algorithm_does_not_go_with_is_refused_with_its_line(tmp_path, algorithm, other, reason):
    path = tmp_path / "config.yaml"
    path.write_text(f"{other}\ntraining:\n  epochs: 2\n  algorithm: {algorithm}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    (problem,) = raised.value.problems
    assert problem.startswith(f"{path}:4: training.algorithm: must be 'aevb' {reason}")
    assert problem.endswith(f", not '{algorithm}'")
    assert load_config(path, ["training.algorithm=aevb"]).training.algorithm == "aevb"


def test_a_bound_that_is_given_the_label_says_so_and_stands_by_itself():
    plain, told = parse_config({}), parse_config({"model": {"condition": "labels"}})
    assert (told.caveat, told.is_likelihood) == ("given the label", True)
    assert told.support_title == f"{plain.support_title}: given the label"
    relaxed = parse_config({"model": {"condition": "labels"}, "data": {"binarize": "none"}})
    assert relaxed.caveat == "relaxed, not a likelihood; given the label"
