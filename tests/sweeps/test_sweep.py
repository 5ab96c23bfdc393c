import csv
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
import yaml

from evaluations import metrics
from identical import traces
from vaecli.config.jobs import EvaluationSpec, Resources
from vaecli.config.loading import dump_config, load_config
from vaecli.config.schema import Config, describe_settings, get_setting
from vaecli.devices import prefer_gpu
from vaecli.errors import ConfigError, DataError, UsageError, VaecliError
from vaecli.evaluation import evaluate
from vaecli.files import lock
from vaecli.reports.report import write_report
from vaecli.runs.checkpoint import load_checkpoint
from vaecli.runs.run import list_runs
from vaecli.sweeps import local
from vaecli.sweeps.execution import compare, run_configs, run_sweep
from vaecli.sweeps.jobs import finished_result
from vaecli.sweeps.sweep import JobOptions, JobResult, SweepResult, comparison, load_sweep, plan_jobs
from vaecli.training.loop import train


@pytest.fixture
def write(tmp_path, small):
    """Writes a sweep on small images, and its base beside it."""

    def spec(**values: object) -> Path:
        (tmp_path / "base.yaml").write_text(dump_config(small(name=None, training={"epochs": 2})))
        values = {"base": "base.yaml", "evaluation": {"k": 3, "binarised": False}} | values
        path = tmp_path / "sizes.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return spec


QUICK = EvaluationSpec(k=2, binarised=False)
GRID = {"model.latent_dim": [1, 2], "seed": [0, 1]}


def test_every_combination_and_the_points_beside_them(write):
    sweep = load_sweep(write(grid=GRID, points=[{"model.hidden_dim": [6, 5]}, {"model.latent_dim": 1, "seed": 0}]))
    assert sweep.keys == ("model.latent_dim", "seed", "model.hidden_dim")
    assert [describe_settings(config, sweep.keys) for config in sweep.configs] == [
        "latent_dim 1, seed 0, hidden_dim 8",
        "latent_dim 1, seed 1, hidden_dim 8",
        "latent_dim 2, seed 0, hidden_dim 8",
        "latent_dim 2, seed 1, hidden_dim 8",
        "latent_dim 3, seed 0, hidden_dim [6, 5]",
    ]  # the last point is the first combination again
    assert {config.name for config in sweep.configs} == {"sizes"}


def test_more_runs_than_can_be_planned_are_counted_and_not_made(write, small):
    keys = ["seed", "model.latent_dim", *(f"training.{key}" for key in ("epochs", "patience", "batch_size"))]
    path = write(grid={key: list(range(1, 101)) for key in keys}, points=[{"seed": 1}])
    with pytest.raises(ConfigError, match=r"sizes\.yaml: names 10,000,000,001 runs, and 100,000 is the most; split it"):
        load_sweep(path)
    with pytest.raises(ConfigError, match=r"small: names 2,000,000,000 runs"):
        comparison(small(), ["bernoulli", "gaussian"], 10**9, QUICK)


def test_all_points_are_validated_and_all_errors_told_at_once(write):
    path = write(grid={"model.latent_dim": [0, 1, "x"], "model.lattent": [1], "seed": [0, 1]})
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert [problem.removeprefix(str(path)) for problem in caught.value.problems] == [
        ": model.latent_dim=0: model.latent_dim: must be greater than or equal to 1, not 0",
        ": model.lattent=1: model.lattent: unknown key; did you mean model.latent_dim?",
        ": model.latent_dim=x: model.latent_dim: must be a valid integer, not 'x'",
    ]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({}, "names no runs; give it a grid or points"),
        ({"grid": {"seed": []}}, r"sizes.yaml:\d+: grid.*at least 1 item"),
        ({"grid": {"seed": 3}}, "must be a valid list"),
        ({"gird": {"seed": [1]}}, "gird: unknown key; did you mean grid"),
        ({"grid": GRID, "resources": {"threads": 0}}, "resources.threads: must be greater than or equal to 1"),
        ({"grid": GRID, "base": "none.yaml"}, "no such config"),
    ],
)
def test_specs_that_are_none(write, values, what):
    with pytest.raises(ConfigError, match=what):
        load_sweep(write(**values))


def test_a_sweep_runs_what_is_missing_and_writes_its_results(write, tmp_path):
    updates: list = []
    sweep = load_sweep(write(grid=GRID))
    out, runs_dir = tmp_path / "out", tmp_path / "runs"
    swept = run_sweep(sweep, out, runs_dir=runs_dir, callback=updates.append)
    assert [(o.config.model.latent_dim, o.seed) for o in swept.results] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    results = write_report(swept, out)
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model.latent_dim"], row["seed"]) for row in rows] == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")]
    assert float(rows[2]["elbo"]) == results["runs"][2]["elbo"] == swept.results[2].metric("elbo")
    html = (out / "report.html").read_text()
    drawn = (out / "figures" / "by-model.latent_dim.svg").read_text()
    assert html.count("<svg") == html.count(drawn) == 1  # latent_dim; the seed is no axis
    report = (out / "report.md").read_text()
    assert "| 1 | 2 |" in report  # latent_dim 1, n = 2
    assert "| ELBO (higher is better) |" in report

    before = {run.path: run.last.stat().st_mtime_ns for run in list_runs(runs_dir)}
    wider = load_sweep(write(grid=GRID | {"seed": [0, 1, 2]}))
    again = run_sweep(wider, out, runs_dir=runs_dir)
    after = {run.path: run.last.stat().st_mtime_ns for run in list_runs(runs_dir)}
    assert len(again.results) == len(after) == 6
    assert before.items() <= after.items()
    with pytest.raises(UsageError, match="holds the results of another sweep"):
        run_sweep(load_sweep(write(grid={"model.latent_dim": [7]})), out, runs_dir=runs_dir)


def test_a_directory_is_no_sweeps_before_all_images_are_found(write, tmp_path):
    """Who misspelled a name may name it again, without another directory."""
    for name in (str(tmp_path / "none.npy"), str(tmp_path / "faces.npz")):
        sweep = load_sweep(write(points=[{"data.name": name}]))
        if name.endswith("none.npy"):
            with pytest.raises(DataError, match=r"none\.npy: no such file"):
                run_sweep(sweep, tmp_path / "out", runs_dir=tmp_path / "runs")
    assert run_sweep(sweep, tmp_path / "out", runs_dir=tmp_path / "runs").results[0].error is None


def test_a_run_is_the_same_alone_and_in_a_sweep(write, tmp_path, small):
    sweep = load_sweep(write(grid={"model.latent_dim": [2], "seed": [4, 5]}))
    swept = run_sweep(sweep, tmp_path / "out", runs_dir=tmp_path / "runs", jobs=2)
    alone = train(small(training={"epochs": 2}, model={"latent_dim": 2}, seed=5), runs_dir=tmp_path / "alone")
    together = swept.results[1].run
    assert [{**row, "seconds": 0} for row in alone.metrics] == [{**row, "seconds": 0} for row in together.metrics]


def test_a_failure_leaves_the_others_and_names_the_command(write, tmp_path):
    path = write(grid={"optimizer.learning_rate": [0.001, 1e30]})
    sweep = load_sweep(path)
    swept = run_sweep(sweep, tmp_path / "out", runs_dir=tmp_path / "runs")
    assert [result.error is None for result in swept.results] == [True, False]
    (failed,) = swept.failed
    assert failed.error.startswith("training diverged at step 2")
    assert sweep.command(failed) == f"vae train --config {tmp_path}/base.yaml optimizer.learning_rate=1.0e+30"
    write_report(swept, tmp_path / "out")
    assert "learning_rate 1e+30: training diverged" in (tmp_path / "out" / "report.html").read_text()


def test_a_report_says_what_it_shows_and_counts_runs_in_one_way(write, tmp_path):
    grid = {"model.latent_dim": [1, 2], "optimizer.learning_rate": [0.001, 1e30], "objective.L": [1]}
    swept = run_sweep(load_sweep(write(grid=grid)), tmp_path / "out", runs_dir=tmp_path / "runs")
    write_report(swept, tmp_path / "out")
    for text in ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md")):
        assert "2 runs, and 2 that failed, on" in text
        assert "over model.latent_dim; a point for each run." in text  # there is one seed: no mean, no band
        assert "interval over seeds" not in text
        assert "cannot be compared" not in text  # there is one chart
        assert "bernoulli (2 of 2 runs)" in text
        assert "ELBO over objective.L" not in text  # it does not vary


def kill_workers() -> None:
    for child in multiprocessing.active_children():
        child.kill()


def test_a_worker_that_is_killed_is_replaced_and_its_run_goes_on_to_the_same_bits(small, tmp_path):
    configs = [small(seed=seed, training={"epochs": 150 if seed == 0 else 2}) for seed in range(3)]
    killed: list[bool] = []

    def kill_once() -> bool:
        """Asked again and again: as soon as the long run has a checkpoint, all processes are killed."""
        if not killed and any(run.name.endswith("s0") and run.last.is_file() for run in list_runs(tmp_path / "runs")):
            killed.append(True)
            kill_workers()
        return False

    outcomes = run_configs(
        configs, JobOptions(tmp_path / "runs", evaluation=QUICK), jobs=2, resources=Resources(), stop=kill_once
    )
    assert killed
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert len(list_runs(tmp_path / "runs")) == 3
    assert traces(outcomes[0].run) == traces(train(configs[0], runs_dir=tmp_path / "uncut"))


def test_processes_end_with_the_one_that_started_them(write, tmp_path, small):
    path = write(grid={"seed": [0, 1], "training.epochs": [1_000_000]})
    command = [sys.executable, "-m", "vaecli", "sweep", str(path), "--jobs", "2", "--quiet"]
    with subprocess.Popen(command, cwd=tmp_path) as driver:
        while not (runs := [run for run in list_runs(tmp_path / "runs") if run.is_training]):
            assert driver.poll() is None
            time.sleep(0.05)
        driver.kill()
    deadline = time.monotonic() + 30
    while any(run.is_training for run in runs):
        assert time.monotonic() < deadline, "a worker goes on by itself"
        time.sleep(0.05)


def test_a_signal_to_all_processes_of_a_sweep_keeps_every_run_where_it_was(write, tmp_path):
    """As a scheduler sends it: what each run says of itself is where its checkpoint is."""
    path = write(grid={"seed": [0, 1], "training.epochs": [1_000_000]})
    command = [sys.executable, "-m", "vaecli", "sweep", str(path), "--jobs", "2"]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True) as driver:
        while [len(run.metrics) > 5 for run in list_runs(tmp_path / "runs")] != [True, True]:
            assert driver.poll() is None
            time.sleep(0.05)
        os.killpg(driver.pid, signal.SIGTERM)
        _, shown = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "the same command resumes every run from its last checkpoint" in shown
    for run in list_runs(tmp_path / "runs"):
        step = load_checkpoint(run.last).progress.step
        assert step > 0
        assert (run.status["state"], run.status["reason"].split(",")[0]) == ("interrupted", f"stopped at step {step}")


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), ImportError("no sem_open")])
def test_processes_that_the_system_has_no_room_for_are_one_message(small, tmp_path, monkeypatch, error):
    """No semaphores, for want of shared memory, of descriptors, or of any."""

    def refuse(*arguments, **more):
        raise error

    monkeypatch.setattr("_multiprocessing.SemLock", refuse)
    configs = [small(seed=seed) for seed in range(2)]
    with pytest.raises(VaecliError, match=rf"the worker processes cannot start \(.*{error.args[-1]}\); try --jobs 1"):
        run_configs(configs, JobOptions(tmp_path / "runs"), jobs=2)


@pytest.mark.parametrize("most", [10, 13, 16])
def test_few_descriptors_are_one_message(write, tmp_path, most):
    path = write(grid={"seed": [0, 1]})
    limit = f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most})); "
    command = (
        limit + f"from vaecli import cli; sys.argv = ['vae', 'sweep', {str(path)!r}, '--jobs', '2', '-q']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("vae: the worker processes cannot start ([Errno 24] Too many open files")
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_kills_its_process_fails_alone(small, tmp_path):
    def kill_always() -> bool:
        if any(run.name.endswith("s0") and run.is_training for run in list_runs(tmp_path / "runs")):
            kill_workers()
        return False

    configs = [small(seed=seed, training={"epochs": 3000 if seed == 0 else 2}) for seed in range(2)]
    work = JobOptions(tmp_path / "runs", evaluation=QUICK)
    first, second = run_configs(configs, work, jobs=2, resources=Resources(), stop=kill_always)
    assert first.error == "its process was killed twice"
    assert second.error is None


def _fail(*arguments: object) -> None:
    os._exit(1)


def test_processes_that_cannot_begin_are_an_error_and_no_endless_loop(small, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_start_worker", _fail)
    configs = [small(seed=seed) for seed in range(2)]
    with pytest.raises(VaecliError, match="end as soon as they start; try --jobs 1"):
        run_configs(configs, JobOptions(tmp_path / "runs"), jobs=2)


def test_settings_by_their_keys():
    config = Config()
    assert get_setting(config, "model.hidden_dim") == 500
    assert get_setting(config, "seed") == 0
    assert describe_settings(config, ("model.decoder", "objective.L")) == "decoder bernoulli, L 1"


def test_a_plot_has_a_line_for_every_choice_and_a_chart_for_every_support(write, tmp_path):
    sweep = load_sweep(
        write(grid={"model.decoder": ["bernoulli", "gaussian"], "model.latent_dim": [1, 16], "seed": [0, 1]})
    )
    results = tuple(
        JobResult(
            config, None, metrics(elbo=-100.0 + config.seed, log_evidence_effective_sample_size=9.0, active_units=16)
        )
        for config in sweep.configs
    )
    written = write_report(SweepResult(sweep, results), tmp_path)
    assert [run["elbo"] for run in written["runs"]] == [-100.0, -99.0] * 4
    content = (tmp_path / "report.md").read_text()
    assert content.count("### ") == 2
    assert "| bernoulli | 1 | 2 | -99.50 ± 6.35 |" in content  # t interval of -100 and -99: 12.706 · 0.5
    assert json.loads((tmp_path / "results.json").read_text())["spec"]["grid"]["seed"] == [0, 1]


def test_what_is_done_already_is_told_at_once_and_starts_nothing(small, tmp_path, monkeypatch):
    work = JobOptions(tmp_path / "runs", evaluation=QUICK)
    configs = [small(seed=0), small(seed=1, data={"validation": 0})]
    first = run_configs(configs, work)
    monkeypatch.setattr("vaecli.sweeps.execution.run_jobs", None)
    monkeypatch.setattr("vaecli.sweeps.local.ProcessPoolExecutor", None)
    assert run_configs(configs, work, jobs=2) == first
    assert all(outcome.error is None for outcome in first)


def test_a_known_run_whose_evaluation_is_damaged_or_another_is_not_done(small, tmp_path):
    config, work = small(), JobOptions(tmp_path / "runs", evaluation=QUICK)
    (done,) = run_configs([config], work)
    (job,) = plan_jobs([config], work)
    assert finished_result(job) == done
    assert finished_result(replace(job, options=replace(work, evaluation=EvaluationSpec(k=3)))) is None
    assert finished_result(replace(job, run=None)) is None
    evaluation = done.path
    evaluation.write_text(evaluation.read_text()[:-20])
    assert finished_result(job) is None


@pytest.mark.parametrize(("n_gpus", "chosen"), [(0, []), (1, []), (4, [0, 1, 2, 3, 0, 1])])
def test_gpus_go_round_among_processes_where_there_are_several(monkeypatch, n_gpus, chosen):
    found: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    for number in range(6):
        prefer_gpu(number)
    assert found == chosen


def test_a_metric_that_is_not_finite_is_a_failure_of_that_run_alone(small, tmp_path, monkeypatch):
    """As where one image has no mass under the model: the others go on, and the report is written."""
    terms_of = evaluate.expected_terms

    def spoil(vae, *arguments):
        terms = terms_of(vae, *arguments)
        lost = float("inf") if next(runs) == 1 else 0.0
        return terms._replace(log_likelihood=terms.log_likelihood - lost)

    runs = iter(range(3))
    monkeypatch.setattr(evaluate, "expected_terms", spoil)
    base = small(training={"epochs": 1})
    found = compare(base, ["bernoulli"], 3, tmp_path / "out", runs_dir=tmp_path / "runs", evaluation=QUICK)
    assert [result.error is None for result in found.results] == [True, False, True]
    assert "not finite: elbo" in found.failed[0].error
    write_report(found, tmp_path / "out")
    assert "seed 1: " in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("left", [None, 0, 100])
def test_a_damaged_evaluation_is_made_again(small, tmp_path, suffix, left):
    config, options = small(), JobOptions(tmp_path / "runs", evaluation=QUICK)
    (done,) = run_configs([config], options)
    path, log_evidence = done.path.with_suffix(suffix), done.per_image("log_evidence")
    whole = path.read_bytes()
    path.unlink() if left is None else path.write_bytes(whole[:left])
    (again,) = run_configs([config], options)
    assert again == done
    assert np.array_equal(again.per_image("log_evidence"), log_evidence)
    assert suffix == ".npz" or path.read_bytes() == whole


def test_damaged_metrics_of_images_are_said_with_their_remedy(small, tmp_path):
    (done,) = run_configs([small()], JobOptions(tmp_path / "runs", evaluation=QUICK))
    path = done.path.with_suffix(".npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(VaecliError, match=r"\.npz: is damaged; delete it, and the same command makes it again"):
        _ = [done.per_image(name) for name in ("log_evidence", "mean_squared_error", "bits_per_dim")]


def test_old_names_of_resources_are_answered_with_the_new_ones(write):
    for old, new in (("seconds_per_delivery", "sync_interval"), ("together", "replicates")):
        with pytest.raises(ConfigError, match=rf"resources\.{old}: unknown key; it is now called resources\.{new}"):
            load_sweep(write(grid=GRID, resources={old: 3}))


def test_a_directory_in_use_is_left_alone(write, tmp_path):
    sweep, out = load_sweep(write(grid=GRID)), tmp_path / "out"
    out.mkdir()
    with lock(out / ".lock"), pytest.raises(UsageError, match="another process is writing its results there"):
        run_sweep(sweep, out, runs_dir=tmp_path / "runs")
    assert not list_runs(tmp_path / "runs")


def test_a_manifest_of_an_earlier_version_is_refused_or_read(write, tmp_path):
    """Sweeps had fewer keys for the evaluation; comparisons had the base and the decoders."""
    sweep, out = load_sweep(write(grid=GRID)), tmp_path / "out"
    run_sweep(sweep, out, runs_dir=tmp_path / "runs")
    manifest = json.loads((out / "sweep.json").read_text())
    (out / "sweep.json").write_text(json.dumps(manifest | {"evaluation": {"k": 3, "binarised": False}}))
    run_sweep(sweep, out, runs_dir=tmp_path / "runs")
    (out / "sweep.json").write_text(
        json.dumps({"base": {}, "data_sha256": None, "k": 3, "members": [["bernoulli", 0]]})
    )
    with pytest.raises(UsageError, match="was written by an earlier version; name another directory with --out"):
        run_sweep(sweep, out, runs_dir=tmp_path / "runs")


def test_a_single_test_image_has_metrics_without_standard_errors(small, images, tmp_path):
    np.save(tmp_path / "few.npy", images[:15])  # a tenth of 15 is one image
    config = small(data={"name": str(tmp_path / "few.npy")}, training={"epochs": 1})
    (found,) = run_configs([config], JobOptions(tmp_path / "runs", evaluation=QUICK))
    assert found.error is None
    assert found.evaluation.n_images == 1
    assert found.evaluation.elbo_se is None
    assert found.metric("elbo") is not None


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my sweep", "my-sweep"), ("_x", "x"), ("Übersicht", "Übersicht"), ("日本", "日本"), (".hidden", "hidden"),
        ("a\nb", "a-b"), ("x" * 150, "x" * 100), ("..", None), ("a;b", "a-b"),
    ],
)  # fmt: skip
def test_a_file_of_any_name_gives_runs_sweeps_and_comparisons_a_name_that_can_be_a_folders(write, tmp_path, file, name):
    path = write(grid=GRID).rename(tmp_path / f"{file}.yaml")
    sweep = load_sweep(path)
    path.write_text((tmp_path / "base.yaml").read_text().replace("name: null\n", ""))
    base = load_config(path)
    compared = comparison(base, ["gaussian"], 1, QUICK)
    assert (base.name, sweep.name, compared.name) == (name, name or "sweep", name or "comparison")
    for config in (base, *sweep.configs, *compared.configs):
        (tmp_path / "again.yaml").write_text(dump_config(config.model_copy(update={"name": config.name or "again"})))
        assert load_config(tmp_path / "again.yaml").identity == config.identity  # as resuming and evaluating do
        assert load_config(tmp_path / "again.yaml").name == (config.name or "again")


@pytest.mark.parametrize("name", ["$b_{$", "<script>&", "a\nb\x01", "b" * 200])
def test_any_name_can_stand_in_a_plot(write, tmp_path, name):
    names = [str(tmp_path / f"{name}.npy"), str(tmp_path / "c.npy")]
    sweep = load_sweep(write(grid={"data.name": names, "model.latent_dim": [1, 2]}))
    results = tuple(JobResult(config, None, metrics(elbo=-1.0)) for config in sweep.configs)
    write_report(SweepResult(sweep, results), tmp_path / "out")
    drawn = (tmp_path / "out" / "figures" / "by-model.latent_dim.svg").read_text()
    lines = "".join(ET.fromstring(drawn).itertext())
    assert "c.npy" in lines
    assert ("$b_{$.npy" in lines) == (name == "$b_{$")
    assert drawn in (tmp_path / "out" / "report.html").read_text()


def test_a_name_is_no_markup_of_a_report(write, tmp_path):
    names = [str(tmp_path / name) for name in ("<img src=x onerror=alert(1)>.npy", "a|b `c` [d](e).npy")]
    sweep = load_sweep(write(grid={"data.name": names}))
    done, failed = sweep.configs
    results = (JobResult(done, None, metrics(elbo=-1.0)), JobResult(failed, None, error="<script>\n# no & not"))
    write_report(SweepResult(sweep, results), tmp_path / "out")
    html, markdown = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<img src=x" not in html + markdown
    assert "<script>" not in html + markdown
    assert "&lt;img src=x onerror=alert(1)>.npy" in markdown
    assert "a\\|b \\`c\\` [d]\\(e).npy | 0 |" in markdown
    assert ": &lt;script> # no &amp; not" in markdown


def test_runs_are_known_that_were_recorded_before_there_was_a_setting(small, tmp_path):
    config, options = small(training={"epochs": 1}), JobOptions(tmp_path, None, QUICK)
    run = train(config, runs_dir=tmp_path)
    status = json.loads((run.path / "status.json").read_text())
    identity = json.loads(status["identity"])
    del identity["optimizer"]["epsilon"]
    (run.path / "status.json").write_text(json.dumps(status | {"identity": json.dumps(identity)}))
    assert [job.run for job in plan_jobs([config], options)] == [run]
    other = small(training={"epochs": 1}, optimizer={"epsilon": 1e-4})
    assert [job.run for job in plan_jobs([other], options)] == [None]
