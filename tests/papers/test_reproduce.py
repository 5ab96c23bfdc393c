import json
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from vaecli.cli import reproduce  # noqa: F401 (registers the command)
from vaecli.cli.app import app
from vaecli.config.loading import override
from vaecli.errors import UsageError, VaecliError
from vaecli.files import lock
from vaecli.papers.comparison import Figure, compare, gather_outcomes
from vaecli.papers.experiment import load_experiment, shipped_experiments
from vaecli.papers.results import thin
from vaecli.papers.spec import Ours, Published, Value
from vaecli.runs.run import list_runs
from vaecli.sweeps.execution import run_sweep
from vaecli.training.loop import resume

TINY = ("model.hidden_dim=4", "training.compile=off", "training.batch_size=20", "device=cpu")


@pytest.fixture
def vae(tmp_path, monkeypatch, faces):
    """Run a command on the small images, in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0):
        found = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
        assert found.exit_code == code, found.output
        return found

    return run


SPEC = {
    "title": "A <b>title</b> | with more",
    "source": "Somebody, arXiv 0000.00000, table 1",
    "about": "Two sizes.",
    "budget": 180,
    "runs": {"base": "bernoulli", "settings": {"optimizer.schedule": "constant"}, "grid": {"model.latent_dim": [2, 3]}},
    "evaluations": {"test": {"proposal": "encoder", "k": 2, "binarised": False, "checkpoint": "last"}},
    "published": {
        "end": {
            "title": "the end",
            "source": "table 1",
            "ours": {"metric": "elbo", "evaluation": "test"},
            "images": 180,
            "goal": "at_least",
            "tolerance": 1,
            "values": [
                {"where": {"model.latent_dim": 2}, "value": -1000.0, "uncertainty": 0.5},
                {"where": {"model.latent_dim": 3}, "value": 0.0},
            ],
        },
        "half": {
            "title": "half the way",
            "source": "figure 1",
            "ours": {"metric": "elbo", "curve": "validation"},
            "images": 90,
            "tolerance": 1,
            "values": [{"where": {"model.latent_dim": 2}, "value": 0.0}],
        },
    },
    "charts": [
        {"kind": "curves", "title": "Curves", "panels": "model.latent_dim", "published": ["end", "half"]},
        {"kind": "figures", "title": "Figures"},
        {"kind": "pictures", "title": "Manifolds", "panels": "model.latent_dim", "show": "manifold"},
    ],
    "notes": ["One note."],
}


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


def epochs_of(runs_dir: Path) -> list[int]:
    return [run.status["epoch"] for run in list_runs(runs_dir)]


def test_a_part_of_the_budget_is_labelled_and_a_larger_one_extends_the_same_runs(vae, mine, faces):
    # 45 training images: 4 epochs are 180 images, 1 epoch is 45
    first = json.loads(vae("reproduce", mine, *TINY, "--data", faces, "--budget", 45, "--json").stdout)
    assert epochs_of(Path("runs")) == [1, 1]
    assert [figure["verdict"] for figure in first["figures"]][2] == "not reached yet: 45 of 90 images"
    assert "after 25 % of the images" in first["figures"][0]["verdict"]
    assert [figure["met"] for figure in first["figures"]] == [None, None, None]
    page = Path("runs/papers/mine-changed/report.html").read_text()
    assert "25 % of the 180 of the full experiment" in page
    assert "Settings were changed" in page

    names = [run.name for run in list_runs("runs")]
    whole = json.loads(vae("reproduce", mine, *TINY, "--data", faces, "--json").stdout)
    assert [run.name for run in list_runs("runs")] == names
    assert epochs_of(Path("runs")) == [4, 4]
    met = [figure["met"] for figure in whole["figures"]]
    assert met == [True, False, False]  # an ELBO is above -1000, and below 0 by more than 1
    assert whole["figures"][1]["verdict"] == f"missed by {-whole['figures'][1]['ours'] - 1:.2f}"
    with pytest.raises(UsageError, match="holds the results of another experiment; name another directory with --out"):
        vae("reproduce", mine, *TINY, "model.activation=tanh", "--data", faces, "--report")
    # a smaller budget is no reason to train again, nor to throw anything away
    vae("reproduce", mine, *TINY, "--data", faces, "--budget", 45, "--quiet")
    assert epochs_of(Path("runs")) == [4, 4]


def test_an_extended_run_has_the_bits_of_one_that_was_never_cut(vae, mine, faces, tmp_path):
    vae("reproduce", mine, *TINY, "--data", faces, "--where", "model.latent_dim=2", "--budget", 90, "--quiet")
    vae("reproduce", mine, *TINY, "--data", faces, "--where", "model.latent_dim=2", "--quiet")
    vae("reproduce", mine, *TINY, "--data", faces, "--where", "model.latent_dim=2", "--quiet", "--runs-dir", "other")
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics]
        for directory in ("runs", "other")
        for run in list_runs(directory)
    ]
    assert len(rows) == 2
    assert rows[0] == rows[1]


def test_a_killed_run_whose_status_is_ahead_of_its_checkpoint_is_resumed_and_not_taken_as_trained(vae, mine, faces):
    command = ("reproduce", mine, *TINY, "--data", faces, "--where", "model.latent_dim=2", "--json")
    vae(*command, "--budget", 90)
    (run,) = list_runs("runs")
    status = json.loads((run.path / "status.json").read_text())
    step = status["step"]  # 2 epochs of 3 minibatches, and last.pt is of this step
    status |= {"state": "running", "epoch": 4, "step": 2 * step, "epochs": 4}
    (run.path / "status.json").write_text(json.dumps(status))
    shown = json.loads(vae(*command, "--report").stdout)["runs"][0]
    assert not shown["finished"]
    assert shown["evaluations"].keys() == {"test"}  # of the checkpoint that there is
    assert json.loads(vae(*command, "--budget", 90, "--report").stdout)["runs"][0]["finished"]
    assert json.loads(vae(*command).stdout)["runs"][0]["finished"]
    assert [row["epoch"] for row in run.metrics if row["split"] == "train"] == [1, 2, 3, 4]


def test_a_page_is_not_written_over_that_of_other_settings_or_of_another_grid(vae, mine, faces, tmp_path):
    command = ("--data", faces, "--report", "--quiet")
    vae("reproduce", mine, *TINY, *command)
    vae("reproduce", mine, *TINY, *command, "--budget", 45)
    vae("reproduce", mine, *TINY, *command, "--budget", 900, "--where", "model.latent_dim=3")
    with pytest.raises(UsageError, match="holds the results of another experiment"):
        vae("reproduce", mine, *TINY, "model.latent_dim=3", *command)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "mine.yaml"
    runs = SPEC["runs"] | {"grid": {"model.latent_dim": [3, 20]}}
    other.write_text(yaml.safe_dump(SPEC | {"runs": runs, "published": {}, "charts": []}))
    with pytest.raises(UsageError, match="holds the results of another experiment"):
        vae("reproduce", other, *TINY, *command)


def test_a_damaged_further_evaluation_is_made_again(vae, tmp_path, faces):
    path = tmp_path / "mine.yaml"
    train = SPEC["evaluations"]["test"] | {"split": "train"}
    path.write_text(yaml.safe_dump(SPEC | {"evaluations": SPEC["evaluations"] | {"train": train}}))
    command = ("reproduce", path, *TINY, "--data", faces, "--where", "model.latent_dim=2", "--budget", 45, "--json")
    first = json.loads(vae(*command).stdout)
    (further,) = Path("runs").glob("mine/*/evaluations/*train*.json")
    further.write_text("{")
    assert json.loads(vae(*command).stdout)["runs"][0]["evaluations"].keys() == {"test", "train"}
    assert first["runs"][0]["evaluations"].keys() == {"test", "train"}


def test_lists_may_be_panels_and_lines_and_the_page_shows_what_all_runs_share(vae, tmp_path, faces):
    key = "model.hidden_dim"
    spec = SPEC | {"budget": 1234567, "data": "faces", "published": {}}
    spec["runs"] = {"base": "bernoulli", "grid": {key: [[4, 3], [5]]}}
    spec["charts"] = [{"kind": "curves", "title": "Curves", "panels": key, "lines": key}]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(spec))
    vae("reproduce", path, "--data", faces, "--budget", 12345678, "--report", "--quiet")
    page = Path("runs/papers/mine/report.html").read_text()
    assert page.count("<svg") == 1
    assert "Settings were changed" not in page  # its images had to be given
    assert "--budget 12345678.0 --data faces.npz" in page  # and nothing of where they lie here
    config = page[page.index("The config that all share") :]
    assert "latent_dim: " in config
    assert "epochs: " not in config
    assert "hidden_dim: " not in config


@pytest.mark.parametrize(("value", "goals"), [(-1000.0, 1), (None, 0)])
def test_a_goal_is_stated_where_a_number_is_published(vae, tmp_path, faces, value, goals):
    end = SPEC["published"]["end"] | {"values": [{"where": {"model.latent_dim": 2}, "value": value}]}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SPEC | {"published": {"end": end}, "charts": SPEC["charts"][1:2]}))
    vae("reproduce", path, "--data", faces, "--report", "--quiet")
    assert Path("runs/papers/mine-changed/report.md").read_text().count("Goal: ") == goals


def test_a_schedule_that_ends_with_the_run_starts_anew_with_another_budget(vae, mine, faces):
    command = ("reproduce", mine, *TINY, "optimizer.schedule=cosine", "--data", faces, "--quiet")
    vae(*command, "--where", "model.latent_dim=2", "--budget", 45)
    vae(*command, "--where", "model.latent_dim=2", "--budget", 90)
    assert epochs_of(Path("runs")) == [1, 2]


def test_the_page_from_what_there_is_trains_nothing(vae, mine, faces):
    vae("reproduce", mine, *TINY, "--data", faces, "--report", "--quiet")  # before there is anything
    vae("reproduce", mine, *TINY, "--data", faces, "--where", "model.latent_dim=3", "--quiet")
    with lock(Path("runs/papers/mine-changed/.lock")):  # of a process that trains
        shown = vae("reproduce", mine, *TINY, "--data", faces, "--report")
    assert shown.stdout == "runs/papers/mine-changed/report.html\n"
    assert len(list_runs("runs")) == 1
    results = json.loads(Path("runs/papers/mine-changed/results.json").read_text())
    assert results["figures"][0]["verdict"] == "not run yet"
    text = Path("runs/papers/mine-changed/report.md").read_text()
    assert "A &lt;b>title&lt;/b> \\| with more" in text
    assert "| 2 | – | -1000.00 ± 0.5 | – | not run yet |" in text
    for figure in ("mine-1", "mine-2"):
        assert ET.parse(f"runs/papers/mine-changed/figures/{figure}.svg").getroot().get("role") == "img"
        assert f"figures/{figure}.svg" in text
    page = Path("runs/papers/mine-changed/report.html").read_text()
    assert "<b>title" not in page
    assert page.count("<svg") == 2  # no manifold: the only run has three latent dimensions


def test_a_page_shows_runs_that_are_elsewhere_by_their_results(vae, mine, faces, tmp_path, images):
    """Half of the runs here, half on another machine, where the images have another path: the page of all."""
    mine.write_text(yaml.safe_dump(SPEC | {"data": "some images"}))
    options = ("--data", faces, "--quiet")
    vae("reproduce", mine, *TINY, *options)
    whole = json.loads(Path("runs/papers/mine-changed/results.json").read_text())
    lines = Path("runs/papers/mine-changed/figures/mine-1.svg").read_text().count("<path")
    elsewhere = tmp_path / "elsewhere.npz"
    elsewhere.write_bytes(faces.read_bytes())
    there = ("--data", elsewhere, "--runs-dir", "there", "--where", "model.latent_dim=2", "--quiet")
    vae("reproduce", mine, *TINY, *there)
    assert str(tmp_path) not in Path("there/papers/mine-changed/results.json").read_text()

    here = ("--runs-dir", "here", "--with", "there/papers/mine-changed/results.json")
    vae("reproduce", mine, *TINY, *options, *here, "--where", "model.latent_dim=3")
    assert len(list_runs("here")) == 1
    merged = json.loads(Path("here/papers/mine-changed/results.json").read_text())
    assert merged["figures"] == whole["figures"]
    assert [run["curves"] for run in merged["runs"]] == [run["curves"] for run in whole["runs"]]
    assert [run["finished"] for run in merged["runs"]] == [True, True]
    assert Path("here/papers/mine-changed/figures/mine-1.svg").read_text().count("<path") == lines
    assert ", elsewhere</li>" in Path("here/papers/mine-changed/report.html").read_text()
    # its own results can be added to a third, and what is nowhere is not made up
    third = ("--runs-dir", "third", "--with", "here/papers/mine-changed/results.json", "--report")
    vae("reproduce", mine, *TINY, *options, *third)
    assert json.loads(Path("third/papers/mine-changed/results.json").read_text())["figures"] == whole["figures"]

    # with twice the budget those runs are a part of the way; other images are other runs
    more = json.loads(vae("reproduce", mine, *TINY, *options, *third, "--budget", 360, "--json").stdout)
    assert [run["finished"] for run in more["runs"]] == [False, False]
    assert [run["images"] for run in more["runs"]] == [180, 180]
    np.savez(elsewhere, images=255 - images)
    other = ("--data", elsewhere, *third, "--out", "other", "--json")
    assert [run["images"] for run in json.loads(vae("reproduce", mine, *TINY, *other).stdout)["runs"]] == [0, 0]


def test_what_a_page_shows_is_not_lost_with_the_runs_nor_when_they_go_on(vae, mine, faces):
    """Its own results.json tells of runs that are gone, and of the evaluation of a run that has gone on since."""
    command = ("reproduce", mine, *TINY, "--data", faces, "--where", "model.latent_dim=2", "--json")
    first = json.loads(vae(*command, "--budget", 90).stdout)["figures"][0]
    (run,) = list_runs("runs")
    resume(run, override(run.config, ["training.epochs=3"]))  # and is not evaluated there
    again = json.loads(vae(*command, "--report").stdout)
    assert again["runs"][0]["images"] == 135
    assert again["figures"][0]["ours"] == first["ours"]
    assert again["figures"][0]["images"] == 90
    assert again["figures"][0]["verdict"] == "met, after 50 % of the images"
    shutil.rmtree(run.path)
    gone = json.loads(vae(*command, "--report").stdout)
    assert gone["runs"] == again["runs"]
    assert gone["figures"] == again["figures"]


def test_a_number_of_the_best_checkpoint_is_of_the_images_that_it_saw(vae, tmp_path, faces):
    """At a step size this large the last of 20 epochs is not the best."""
    path = tmp_path / "mine.yaml"
    best = SPEC["evaluations"]["test"] | {"checkpoint": "best"}
    path.write_text(yaml.safe_dump(SPEC | {"evaluations": {"test": best}, "budget": 900}))
    command = (*TINY, "optimizer.learning_rate=0.5", "--data", faces, "--where", "model.latent_dim=2", "--json")
    figure = json.loads(vae("reproduce", path, *command).stdout)["figures"][0]
    (run,) = list_runs("runs")
    assert run.status["best"]["epoch"] < 20
    assert figure["images"] == 45 * run.status["best"]["epoch"]
    assert "of the best checkpoint after 180 images" in Path("runs/papers/mine-changed/report.md").read_text()


def test_a_page_is_not_written_over_that_of_another_experiment_of_the_same_runs(vae, mine, faces, tmp_path):
    command = ("--data", faces, "--report", "--quiet")
    vae("reproduce", mine, *TINY, *command)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "mine.yaml"
    other.write_text(yaml.safe_dump(SPEC | {"source": "Somebody else"}))
    with pytest.raises(UsageError, match="holds the page of another experiment; name another directory with --out"):
        vae("reproduce", other, *TINY, *command)


def test_a_changed_experiment_is_not_taken_for_the_published_one(vae, mine, faces, tmp_path):
    vae("reproduce", "aevb-figure-4", "model.hidden_dim=4", f"data.name={faces}", "--report", "--quiet")
    assert json.loads(vae("reproduce", "ls", "--json").stdout)["aevb-figure-4"]["done"] == "not run yet"
    assert Path("runs/papers/aevb-figure-4-changed/report.html").is_file()


def test_charts_of_nothing_are_left_out(vae, tmp_path, faces):
    charts = [{"kind": "figures", "title": "None"}, {"kind": "curves", "title": "None", "panels": "model.latent_dim"}]
    charts[1]["where"] = {"model.latent_dim": 99}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SPEC | {"published": {}, "charts": charts}))
    vae("reproduce", path, "--data", faces, "--report", "--quiet")
    assert "<svg" not in Path("runs/papers/mine-changed/report.html").read_text()


def test_a_caveat_says_of_how_many_runs_it_is(vae, tmp_path, faces):
    path = tmp_path / "mine.yaml"
    runs = {"settings": {"data.dequantize": False}, "grid": {"model.decoder": ["bernoulli", "gaussian"]}}
    path.write_text(yaml.safe_dump(SPEC | {"runs": runs, "published": {}, "charts": []}))
    vae("reproduce", path, "--data", faces, "--report", "--quiet")
    text = Path("runs/papers/mine-changed/report.md").read_text()
    assert "- The bound of 1 of 2 runs is ill-posed: density of discrete pixels." in text


def test_images_may_lie_where_yaml_would_read_something_else(vae, mine, faces, tmp_path):
    (tmp_path / "a: b #1").mkdir()
    odd = (tmp_path / "a: b #1" / "faces.npz").absolute()
    odd.write_bytes(faces.read_bytes())
    plan = json.loads(vae("reproduce", mine, *TINY, "--data", odd, "--dry-run", "--json").stdout)
    assert len(plan["runs"]) == 2


UNEQUAL = json.dumps(
    {
        "evaluations": {},
        "runs": [
            {
                "identity": {},
                "settings": {},
                "epochs": 1,
                "finished": True,
                "images": 45,
                "evaluations": {},
                "curves": {"train": {"images": [45, 90], "metrics": {"elbo": [-1.0]}}},
            }
        ],
    }
)
"""Otherwise right."""


def test_of_a_long_curve_so_many_points_are_kept_that_none_is_missed_on_a_logarithmic_axis():
    """Of 2,000 epochs of 50,000 images: the first, the last, and one within 1 % of any number of images."""
    images = [50_000 * epoch for epoch in range(1, 2001)]
    kept = [images[i] for i in thin(images)]
    assert len(kept) <= 500
    assert (kept[0], kept[-1]) == (5e4, 1e8)
    for wanted in (1e6, 1e7, 3e7):
        assert min(abs(at - wanted) for at in kept) <= 0.01 * wanted
    assert thin(images[:500]) == [*range(500)]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", UNEQUAL, '{"runs": 3, "evaluations": {}}', '{"runs": [{"run": "x"}], "evaluations": {}}', None],
)
def test_results_that_cannot_be_read_are_told_before_anything_is_trained(vae, mine, faces, content):
    if content is not None:
        Path("results.json").write_text(content)
    message = r"results.json: (no such file|is damaged|is not the results.json of an experiment's page)"
    with pytest.raises(VaecliError, match=message):
        vae("reproduce", mine, *TINY, "--data", faces, "--with", "results.json")
    assert not Path("runs").exists()


def test_the_runs_are_listed_and_nothing_is_done(vae, mine, faces):
    plan = json.loads(vae("reproduce", mine, *TINY, "--data", faces, "--dry-run", "--json").stdout)
    assert plan["runs"] == [{"model.latent_dim": z, "training.epochs": 4} for z in (2, 3)]
    assert not Path("runs").exists()


def test_the_list_says_what_is_there_and_what_has_been_done(vae):
    listed = json.loads(vae("reproduce", "ls", "--json").stdout)
    assert listed.keys() == shipped_experiments().keys()
    assert {row["done"] for row in listed.values()} == {"not run yet"}
    text = vae("reproduce", "ls").stdout
    assert all(f"{name}\n" in text for name in listed)


def test_a_run_that_fails_has_exit_code_5_and_stands_on_the_page(vae, mine, faces, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("vaecli.evaluation.evaluate.evaluate_spec", fail)
    failed = vae("reproduce", mine, *TINY, "--data", faces, "--where", "model.latent_dim=2", "--budget", 45, code=5)
    assert "1 of 1 runs failed; the same command does them again" in failed.stderr
    assert "RuntimeError: broken" in Path("runs/papers/mine-changed/report.html").read_text()
    results = json.loads(Path("runs/papers/mine-changed/results.json").read_text())
    assert results["figures"][0]["verdict"] == "not evaluated yet"


NUMBERS = Published(
    title="a",
    source="b",
    ours=Ours(metric="elbo", evaluation="test"),
    images=100,
    tolerance=0.5,
    values=[Value(value=-10)],
)


@pytest.mark.parametrize(
    ("goal", "ours", "verdict"),
    [
        ("near", -10.5, "met"),
        ("near", -9.25, "missed by 0.25"),
        ("at_least", -9.0, "met"),
        ("at_least", -10.75, "missed by 0.25"),
        ("at_most", -11.0, "met"),
        ("at_most", -9.0, "missed by 0.50"),
    ],
)
def test_a_number_is_met_within_its_tolerance_or_missed_by_what_is_beyond(goal, ours, verdict):
    published = NUMBERS.model_copy(update={"goal": goal})
    assert Figure(published, published.values[0], ours, None, 1, 100).verdict == verdict
    early = Figure(published, published.values[0], ours, None, 1, 50)
    assert early.verdict == f"{verdict}, after 50 % of the images"
    late = Figure(published, published.values[0], ours, None, 1, 250)
    assert late.verdict == f"{verdict}, after 250 % of the images"


LONG = {"cremer-gaps", "aevb-figure-3"}
"""They fit a Gaussian to each image, or sample its posterior."""
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in shipped_experiments()]


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_experiment_runs_from_end_to_end(name, faces, tmp_path, vae):
    """Of the runs of each, the first and the last, on small images; the page then shows the others as not run yet."""
    settings = [*TINY, f"data.name={faces}", "data.validation=9", "data.train=null"]
    experiment = load_experiment(name, budget=45.0, settings=settings)
    configs = experiment.sweep.configs
    chosen = experiment.of([])
    chosen = chosen.__class__(**{**vars(chosen), "configs": (configs[0], configs[-1])})
    found = run_sweep(chosen, tmp_path / "out", runs_dir=tmp_path / "runs")
    assert [result.error for result in found.results] == [None] * len(found.results)
    outcomes = gather_outcomes(experiment, runs_dir=tmp_path / "runs")
    assert [o.is_trained for o in outcomes] == [o.config in (configs[0], configs[-1]) for o in outcomes]
    assert all(o.evaluations.keys() == experiment.spec.all_evaluations.keys() for o in outcomes if o.is_trained)
    figures = [figure for of_kind in compare(experiment, outcomes).values() for figure in of_kind]
    assert all(np.isfinite(figure.ours) for figure in figures if figure.ours is not None)
    vae("reproduce", name, *settings, "--budget", 45, "--report", "--quiet", "--runs-dir", tmp_path / "runs")
    assert (tmp_path / "runs" / "papers" / f"{name}-changed" / "report.html").is_file()
