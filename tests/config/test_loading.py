from pathlib import Path

import pytest
import yaml

from vaecli.config.loading import dump_config, find_config, load_config, override, parse_config, shipped_configs
from vaecli.config.schema import Config
from vaecli.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return path

    return write


def problems(source, overrides=()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def test_a_config_names_only_what_it_means(write):
    config = load_config(write("model: {latent_dim: 7}\nseed: 3\n"), ["objective.L=5", "model.hidden_dim=[30, 20]"])
    assert (config.model.latent_dim, config.seed, config.objective.L) == (7, 3, 5)
    assert config.model.hidden_dim == (30, 20)
    assert config.name == "x"
    assert config.training == Config().training


def test_the_command_line_wins_over_the_file(write):
    assert load_config(write("seed: 3\n"), ["seed=4", "seed=5"]).seed == 5


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", "1E-3", ".1e-2"])
def test_numbers_as_people_write_them(write, written):
    path = write(f"optimizer: {{learning_rate: {written}}}\n")
    assert load_config(path).optimizer.learning_rate == 0.001
    assert load_config(path, [f"optimizer.learning_rate={written}"]).optimizer.learning_rate == 0.001


@pytest.mark.parametrize(
    ("text", "line", "key", "remedy"),
    [
        ("model:\n  latnet_dim: 3\n", 2, "model.latnet_dim", "did you mean model.latent_dim?"),
        ("latent_dim: 3\n", 1, "latent_dim", "did you mean model.latent_dim?"),
        ("model:\n  latent_dim: 3\n  latent_dim: 4\n", 3, "model.latent_dim", "given twice, first at"),
        ("model:\n  latent_dim: wide\n", 2, "model.latent_dim", "must be a valid integer, not 'wide'"),
        ("model:\n  latent_dim: true\n", 2, "model.latent_dim", "must be a valid integer, not True"),
        ("model:\n  latent_dim: 2.5\n", 2, "model.latent_dim", "must be a valid integer, not 2.5"),
        ("model:\n  latent_dim: -1\n", 2, "model.latent_dim", "greater than or equal to 1, not -1"),
        ("model:\n  hidden_dim: wide\n", 2, "model.hidden_dim", "must be a number, or a list of numbers, not 'wide'"),
        ("model:\n  hidden_dim: [500, 0]\n", 2, "model.hidden_dim", "greater than or equal to 1, not 0"),
        ("objective: {L: 0}\n", 1, "objective.L", "greater than or equal to 1, not 0"),
        ("training: {batch_size: 0}\n", 1, "training.batch_size", "greater than or equal to 1, not 0"),
        ("optimizer: {learning_rate: .nan}\n", 1, "optimizer.learning_rate", "finite number"),
        ("optimizer: {learning_rate: 0}\n", 1, "optimizer.learning_rate", "greater than 0"),
        ("model: {decoder: bernouli}\n", 1, "model.decoder", "did you mean bernoulli?"),
        ("data: {binarize: dynamc}\n", 1, "data.binarize", "did you mean dynamic?"),
        ("data: {name: fashon-mnist}\n", 1, "data.name", "did you mean fashion-mnist?"),
        ("model: 3\n", 1, "model", "must be a section"),
        ("device: gpu\n", 1, "device", "cuda"),
        ("name: ../up\n", 1, "name", "100 in all, such as up, not '../up'"),
        ("name: _x\n", 1, "name", "such as x, not '_x'"),
        ("name: 'a;b'\n", 1, "name", "such as a-b, not 'a;b'"),
        (
            "name: '..'\n",
            1,
            "name",
            "a letter or a digit, then letters, digits and any of _ . + -, 100 in all, not '..'",
        ),
        ("training: {patience: 3}\ndata: {validation: 0}\n", None, "training.patience", "needs validation images"),
        ("model: {[1]: 2}\n", 1, "", "a key must be a name"),
        ("seed: 2020-13-45\n", 1, "seed", "month must be in 1..12"),
    ],
)
def test_an_error_says_where_what_and_what_would_be_right(write, text, line, key, remedy):
    path = write(text)
    (problem,) = problems(path)
    assert problem.startswith(f"{path}:{line}: {key}" if line else str(path))
    assert key in problem
    assert remedy in problem


def test_all_errors_are_told_at_once(write):
    path = write("seed: -1\nmodel:\n  decoder: x\n  latent: 2\n")
    found = problems(path, ["objective.L=0", "training.epoch=3", "nonsense"])
    assert len(found) == 6
    assert any(p.startswith("command line: objective.L=0: objective.L: ") for p in found)
    assert any("did you mean training.epochs?" in p for p in found)
    assert any("KEY=VALUE" in p for p in found)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- 1\n- 2\n", "holds a list"),
        ("just words\n", "holds a single value"),
        ("model: [1\n", ":2: not valid YAML"),
        ("a: b: c\n", ":1: not valid YAML"),
        ("\tseed: 1\n", "not valid YAML"),
        ("a: &x [1]\nb: *x\n", ":2: aliases"),
        ("a: " + "[" * 50 + "]" * 50, "nested deeper than 20 levels"),
        ("seed: 1\n\x00", "not valid YAML"),
    ],
)
def test_files_that_are_no_config(write, text, remedy):
    (problem,) = problems(write(text))
    assert remedy in problem


def test_a_file_too_large_is_not_parsed(write):
    assert "larger than 1,000,000 bytes" in problems(write("# " + "x" * 1_000_000))[0]


def test_python_objects_in_yaml_are_not_made(write, tmp_path):
    text = f"seed: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n"
    (problem,) = problems(write(text))
    assert "the tag tag:yaml.org,2002:python/object/apply:os.mkdir is not supported" in problem
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["bernoulli", "bernoulli.yaml", "configs/bernoulli.yaml"])
def test_shipped_configs_are_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(name)
    assert (config.name, config.model.decoder) == ("bernoulli", "bernoulli")


def test_a_file_of_ones_own_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bernoulli.yaml").write_text("seed: 9\n")
    assert load_config("bernoulli.yaml").seed == 9


def test_names_that_are_not_there(tmp_path):
    assert "did you mean bernoulli?" in problems("bernouli.yaml")[0]
    assert "no such config; known: bernoulli, " in problems("zzz/nothing.yaml")[0]
    assert "is a directory" in problems(tmp_path)[0]


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_are_valid_and_open_with_their_command_and_their_nats(name):
    load_config(name)
    first, second, *_ = find_config(name).read_text().splitlines()
    assert first.startswith(f"# vae train --config {name}.yaml")
    assert "expect about" in second or "expect a validation ELBO of about" in second


def test_there_is_a_config_for_each_promise():
    assert set(shipped_configs()) >= {"bernoulli", "gaussian", "i-gaussian", "tutorial", "paper-mnist"}


def test_a_dumped_config_has_every_default_and_reads_back(write):
    config = load_config(write("model: {hidden_dim: [4, 3]}\noptimizer: {learning_rate: 1e-5}\n"))
    text = dump_config(config)
    assert load_config(write(text)) == config
    assert yaml.safe_load(text)["training"]["patience"] is None
    assert "hidden_dim: 500" in dump_config(Config())


def test_an_array_is_found_again_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(None, ["data.name=faces.npy"]).data.name == str(tmp_path / "faces.npy")


def test_overrides_of_a_config():
    assert override(Config(), ["training.epochs=60", "data.validation=null"]).training.epochs == 60
    with pytest.raises(ConfigError, match="did you mean"):
        override(Config(), ["training.epoch=60"])


def test_parse_config_reports_keys_without_a_file():
    with pytest.raises(ConfigError, match=r"^config: model.latent_dim: must be"):
        parse_config({"model": {"latent_dim": 0}})
