import math

import numpy as np
import pytest
import yaml

from vaecli.errors import ConfigError, DataError, UsageError
from vaecli.papers.experiment import load_experiment, shipped_experiments
from vaecli.papers.spec import EPOCHS, read_experiment

FIGURE_2 = shipped_experiments()["aevb-figure-2"]


@pytest.mark.parametrize("path", shipped_experiments().values(), ids=str)
def test_every_shipped_experiment_states_its_source_and_how_ours_is_judged(path):
    spec = read_experiment(path)
    assert spec.title
    assert "arXiv" in spec.source or "tutorial" in spec.source
    assert all(published.source for published in spec.published.values())
    assert path.read_text().startswith(f"# vae reproduce {path.stem}")


def test_images_that_an_experiment_asks_for_change_nothing_but_another_data_set_does(tmp_path):
    np.save(tmp_path / "faces.npy", np.zeros((60, 28, 20), np.uint8))
    array = load_experiment("aevb-figure-2-frey", settings=[f"data.name={tmp_path / 'faces.npy'}"])
    assert array.changes == ()
    assert load_experiment("aevb-figure-2-frey", settings=["data.name=mnist"]).changes == ("data.name=mnist",)


def test_a_budget_of_images_becomes_whole_epochs_of_the_50_000_training_images():
    full = load_experiment("aevb-figure-2")
    assert {config.training.epochs for config in full.sweep.configs} == {2000}  # 1e8 / 50,000
    part = load_experiment("aevb-figure-2", budget=1e7 + 1)
    assert {config.training.epochs for config in part.sweep.configs} == {201}
    assert math.isclose(part.share, 0.1, rel_tol=1e-6)


def test_the_passes_of_burda_et_al_are_of_all_60_000_images():
    full = load_experiment("burda-table-1")
    assert {config.training.epochs for config in full.sweep.configs} == {3280}  # Σ 3^i, i = 0..7
    assert {config.optimizer.epsilon for config in full.sweep.configs} == {1e-4 / 20}  # of a mean over 20 images


def test_settings_of_the_command_line_stand_over_those_of_every_run_and_of_the_grid():
    found = load_experiment("aevb-figure-2", settings=["model.hidden_dim=8", "model.latent_dim=3", "model.init=paper"])
    assert [config.model.hidden_dim for config in found.sweep.configs] == [(8,), (8,)]  # of either algorithm
    assert found.settings == ("model.hidden_dim=8", "model.latent_dim=3", "model.init=paper")


def test_a_setting_that_makes_runs_alike_whose_numbers_differ_is_refused_with_the_remedy():
    with pytest.raises(
        UsageError, match=r"model\.latent_dim=20: aevb-figure-2 varies it.* use --where model\.latent_dim=20"
    ):
        load_experiment("aevb-figure-2", settings=["model.latent_dim=20"])


def test_some_runs_are_chosen_by_what_varies():
    found = load_experiment("aevb-figure-2")
    assert [config.model.latent_dim for config in found.of(["model.latent_dim=20"]).configs] == [20, 20]
    both = found.of(["model.latent_dim=20", "model.latent_dim=3", "training.algorithm=aevb"])
    assert [config.model.latent_dim for config in both.configs] == [3, 20]
    with pytest.raises(UsageError, match=r"--where model\.latent_dim: must be KEY=VALUE"):
        found.of(["model.latent_dim"])
    with pytest.raises(UsageError, match=r"no run of aevb-figure-2 is so"):
        found.of(["model.latent_dim=21"])
    with pytest.raises(UsageError, match=r"does not vary it; did you mean model\.latent_dim"):
        found.of(["model.latent=3"])


def test_all_errors_of_a_file_are_told_at_once_each_with_its_line(tmp_path):
    text = FIGURE_2.read_text().replace("budget: 1.0e+8", "budget: -1").replace("kind: pictures", "kind: picture")
    text = text.replace("value: -124.1}", "valu: -124.1}")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    lines = text.splitlines()
    with pytest.raises(ConfigError) as caught:
        read_experiment(path)
    assert len(caught.value.problems) == 4  # a value is missing, and there is one too many
    found = dict(problem.removeprefix(f"{path}:").split(": ", 1) for problem in caught.value.problems)
    at = {int(line): what for line, what in found.items()}
    assert "budget: must be greater than 0" in at[1 + lines.index("budget: -1")]
    assert "charts.1.kind: must be 'curves', 'figures' or 'pictures'" in at[1 + lines.index("  - kind: picture")]
    wrong = next(i for i, line in enumerate(lines, 1) if "valu:" in line)
    assert at[wrong].startswith("published.early.values.1.val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"model.latent": 3}}, r"runs\.settings\.model\.latent: no such setting; did you mean"),
        ({"curve": "test"}, r"curve: must be 'train' or 'validation'"),
        ({"metric": "bound"}, r"has no such metric of a curve; known: elbo"),
        ({"evaluation": "tset", "metric": "elbo"}, r"no such evaluation, tset; did you mean test\?"),
        ({"evaluation": "test", "metric": "elbow"}, r"no such metric, elbow; did you mean elbo\?"),
        ({"where": {"model.hidden_dim": 3}}, r"where\.model\.hidden_dim: does not vary"),
        (
            {"where": {"training.algorithm": "aevb", "model.init": "paper"}},
            r"must say of which runs it is: model\.latent_dim varies",
        ),
        ({"panels": "seed"}, r"charts\.0: seed does not vary"),
        ({"published": ["testt"]}, r"no such published numbers, testt; did you mean test\?"),
        ({"chart metric": "elboo"}, r"charts\.0\.metric: no such metric of a curve, elboo; did you mean elbo\?"),
        ({"evaluation": "test", "metric": "proposal"}, r"no such metric, proposal"),  # it is no number
        ({"where": {"training.algorithm": "aevb", "model.latent_dim": 4}}, r"early\.values\.0\.where: no run is so"),
        ({"base": "nosuch"}, r"mine\.yaml: runs\.base: nosuch: no such config"),
        ({"gaps": {"test": {}}}, r"evaluations\.test: annealing or gaps has this name too"),
    ],
)
def test_what_refers_to_something_that_is_not_there_is_an_error(tmp_path, change, message):
    spec = yaml.safe_load(FIGURE_2.read_text())
    numbers, chart = spec["published"]["early"], spec["charts"][0]
    for key, value in change.items():
        if key == "settings":
            spec["runs"]["settings"] = value
        elif key in {"metric", "curve", "evaluation"}:
            numbers["ours"] = {k: v for k, v in numbers["ours"].items() if k != "curve" or "evaluation" not in change}
            numbers["ours"][key] = value
        elif key == "where":
            numbers["values"][0]["where"] = value
        elif key == "base":
            spec["runs"]["base"] = value
        elif key == "gaps":
            spec["gaps"] = value
        elif key == "chart metric":
            chart["metric"] = value
        else:
            chart[key] = value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(spec))
    with pytest.raises(ConfigError, match=message):
        load_experiment(path)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([{"model.latent_dim": 3}, {"model.latent_dim": 3, "training.batch_size": 50}], "training.batch_size varies"),
        ([{"model.latent_dim": 3, "seed": 0}, {"model.latent_dim": 3, "seed": 1}], None),
        ([{"model.latent_dim": 3}, {"model.latent_dim": 20}], None),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path, points, message):
    spec = yaml.safe_load(FIGURE_2.read_text()) | {"charts": []}
    spec["runs"] |= {"grid": {}, "points": points}
    values = [{"where": {"model.latent_dim": 3}, "value": -138.0}]
    spec["published"] = {"early": spec["published"]["early"] | {"values": values}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(spec))
    if message is None:
        assert len(load_experiment(path).sweep.configs) == 2
    else:
        with pytest.raises(ConfigError, match=rf"early\.values\.0\.where: must say of which runs it is: {message}"):
            load_experiment(path)


@pytest.mark.parametrize("at", ["settings", "grid", "points"])
def test_how_long_runs_are_is_told_by_the_budget_alone(tmp_path, at):
    with pytest.raises(UsageError, match=r"training\.epochs: .* use --budget"):
        load_experiment("aevb-figure-2", settings=["training.epochs=3"])
    spec = yaml.safe_load(FIGURE_2.read_text())
    spec["runs"][at] = {"settings": {EPOCHS: 3}, "grid": {EPOCHS: [3]}, "points": [{EPOCHS: 3}]}[at]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(spec))
    with pytest.raises(ConfigError, match=rf"runs\.{at}.*training\.epochs: .* use budget"):
        read_experiment(path)


@pytest.mark.parametrize("budget", [math.inf, math.nan, 0.0, -1.0])
def test_a_budget_that_is_no_number_of_images_is_refused(budget):
    with pytest.raises(UsageError, match="must be a finite number of images, above 0"):
        load_experiment("aevb-figure-2", budget=budget)


def test_a_budget_of_more_epochs_than_a_config_may_have_is_refused():
    with pytest.raises(ConfigError, match=r"a budget of 1,000,000,000,000 images: .*less than or equal to 10000000"):
        load_experiment("aevb-figure-2", budget=1e12)  # 2e7 epochs of 50,000


def test_runs_are_chosen_by_the_value_however_it_is_written(tmp_path):
    spec = yaml.safe_load(FIGURE_2.read_text()) | {"charts": [], "published": {}}
    spec["runs"]["grid"] = {"optimizer.learning_rate": [0.001, 0.01], "model.hidden_dim": [[8], [8, 9]]}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(spec))
    found = load_experiment(path)
    assert [c.optimizer.learning_rate for c in found.of(["optimizer.learning_rate=1e-3"]).configs] == [0.001] * 2
    assert [c.model.hidden_dim for c in found.of(["model.hidden_dim=[8,9]"]).configs] == [(8, 9)] * 2


def test_an_unknown_name_and_missing_images_are_said(tmp_path):
    with pytest.raises(ConfigError, match=r"aevb-figure2: no such experiment; did you mean aevb-figure-2"):
        load_experiment("aevb-figure2")
    with pytest.raises(DataError, match="no such file"):
        load_experiment("aevb-figure-2", settings=[f"data.name={tmp_path}/none.npy"])
