import csv
import json
import time

import numpy as np
import pytest

from evaluations import metrics
from vaecli.config.jobs import EvaluationSpec
from vaecli.config.schema import Config
from vaecli.errors import DataError, InterruptedRunError, UsageError
from vaecli.reports import tables
from vaecli.reports.report import write_report
from vaecli.reports.tables import ACROSS, WITHIN, Difference, differences, rankings
from vaecli.runs.run import list_runs
from vaecli.sweeps import execution
from vaecli.sweeps.execution import compare
from vaecli.sweeps.sweep import JobResult, SweepResult, SweepUpdate, comparison
from vaecli.sweeps.sweep import metrics as metrics_of
from vaecli.training.loop import train


@pytest.fixture
def run_comparison(small, tmp_path):
    def run(decoders=("bernoulli", "gaussian", "i-gaussian"), n_seeds=2, out="out", jobs=1, k=5, **settings):
        updates: list[tuple[int, int, int]] = []  # runs in all, running, ended

        def callback(update: SweepUpdate) -> None:
            updates.append((len(update.configs), len(update.running), len(update.results)))

        base = small(training={"epochs": 2}, **settings)
        found = compare(
            base, decoders, n_seeds, tmp_path / out, runs_dir=tmp_path / "runs", jobs=jobs,
            evaluation=EvaluationSpec(k=k), callback=callback,
        )  # fmt: skip
        return found, updates

    return run


def test_every_decoder_is_trained_and_evaluated_once(run_comparison, tmp_path):
    found, updates = run_comparison()
    assert [(o.decoder, o.seed) for o in found.results] == [
        (decoder, seed) for decoder in ("bernoulli", "gaussian", "i-gaussian") for seed in (0, 1)
    ]
    assert [ended for _, running, ended in updates if not running] == list(range(7))
    assert {n for n, _, _ in updates} == {6}
    assert not found.failed
    before = {run.path: (run.last.stat().st_mtime_ns, run.metrics) for run in list_runs(tmp_path / "runs")}
    again, _ = run_comparison()
    assert {run.path: (run.last.stat().st_mtime_ns, run.metrics) for run in list_runs(tmp_path / "runs")} == before
    assert again.results == found.results


def test_a_run_made_by_hand_counts_and_one_that_was_cut_is_resumed(run_comparison, small, tmp_path):
    whole = train(small(training={"epochs": 2}, name="mine"), runs_dir=tmp_path / "runs")
    whole.write_status(**whole.status | {"state": "interrupted"})
    found, _ = run_comparison(("bernoulli",), n_seeds=1)
    assert found.results[0].run.path == whole.path
    assert whole.status["state"] == "completed"


def test_jobs_change_nothing_but_the_time(run_comparison, tmp_path):
    alone, _ = run_comparison(("i-gaussian",), n_seeds=2)
    (tmp_path / "runs").rename(tmp_path / "alone")
    together, _ = run_comparison(("i-gaussian",), n_seeds=2, out="other", jobs=2)
    for name in ("elbo", "log_evidence", "bits_per_dim", "binarised_nll"):
        assert metrics_of(alone.of("i-gaussian"), name) == pytest.approx(
            metrics_of(together.of("i-gaussian"), name), rel=1e-4
        )


def test_a_run_that_fails_takes_no_other_with_it(run_comparison, tmp_path, monkeypatch):
    run_jobs = execution.run_jobs

    def fail(jobs, stop):
        if jobs[0].config.model.decoder == "gaussian":
            return [JobResult(job.config, None, error="training diverged: at step 3") for job in jobs]
        return run_jobs(jobs, stop)

    monkeypatch.setattr(execution, "run_jobs", fail)
    found, _ = run_comparison(n_seeds=1)
    assert [o.decoder for o in found.failed] == ["gaussian"]
    results = write_report(found, tmp_path / "out")
    assert [bool(run["error"]) for run in results["runs"]] == [False, True, False]
    assert "training diverged: at step 3" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_comparison_that_is_stopped_goes_on_later(small, tmp_path, jobs):
    base = small(training={"epochs": 300})
    arguments = (base, ("bernoulli", "i-gaussian"), 1, tmp_path / "out")
    polls = iter(range(10**9))
    began = time.monotonic()

    def stop() -> bool:
        return next(polls) > 20 if jobs == 1 else bool(list(tmp_path.glob("runs/*/*/checkpoints/last.pt")))

    with pytest.raises(InterruptedRunError):
        compare(*arguments, runs_dir=tmp_path / "runs", jobs=jobs, evaluation=EvaluationSpec(k=2), stop=stop)
    states = {run.status["state"] for run in list_runs(tmp_path / "runs")}
    assert "interrupted" in states
    assert time.monotonic() - began < 60
    (tmp_path / "runs").rename(tmp_path / "kept")
    assert all(run.last.is_file() for run in list_runs(tmp_path / "kept") if run.status["state"] == "interrupted")


def test_a_directory_that_holds_another_comparison(run_comparison, tmp_path):
    run_comparison(("bernoulli",), n_seeds=1)
    kept = (tmp_path / "out" / "comparison.json").read_text()
    with pytest.raises(UsageError, match="holds the results of another comparison"):
        run_comparison(("bernoulli",), n_seeds=1, k=6)
    with pytest.raises(UsageError, match="another comparison"):
        run_comparison(("gaussian",), n_seeds=1)
    assert (tmp_path / "out" / "comparison.json").read_text() == kept
    run_comparison(("bernoulli", "i-gaussian"), n_seeds=2)  # wider: the same comparison grown
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not empty, and not a comparison's"):
        run_comparison(("bernoulli",), n_seeds=1, out="full")


def test_the_report_has_its_files_its_tables_and_its_caveats(run_comparison, tmp_path):
    found, _ = run_comparison(data={"binarize": "none"}, n_seeds=2)
    out = tmp_path / "out"
    results = write_report(found, out)
    html, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    for name in ("panel", "curves", "bridges"):
        assert (out / "figures" / f"{name}.svg").read_text() in html
        assert f"figures/{name}.svg" in markdown
    assert html.count("<svg") == html.count('role="img"') == 3
    assert "http://" not in html.replace("http://www.w3.org/", "")
    assert "https://" not in html
    for text in (html, markdown):
        assert "binary, pixels grey: relaxed, not a likelihood" in text
        assert "The bound is relaxed, not a likelihood: bernoulli (2 of 2 runs)" in text
        assert all(column.meaning in text for column in WITHIN)
        assert all(column.meaning.split("(")[0] in text for column in ACROSS)
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["decoder"] for row in rows] == ["bernoulli"] * 2 + ["gaussian"] * 2 + ["i-gaussian"] * 2
    assert float(rows[0]["elbo"]) == results["runs"][0]["elbo"]
    assert json.loads((out / "results.json").read_text())["runs"][3]["seed"] == 1


def test_differences_are_tested_within_a_support_and_across_by_what_both_have(run_comparison, tmp_path):
    found, _ = run_comparison(n_seeds=2, k=100)
    tested = write_report(found, tmp_path / "out")["differences"]
    pairs = {(d["figure"], frozenset((d["better"], d["worse"]))) for d in tested}
    gaussians, with_bernoulli = frozenset(("gaussian", "i-gaussian")), frozenset(("bernoulli", "gaussian"))
    assert ("log evidence", gaussians) in pairs
    assert ("log evidence", with_bernoulli) not in pairs  # a mass on bits and a density are never ranked
    assert ("bits/dim", gaussians) in pairs
    assert ("bits/dim", with_bernoulli) not in pairs  # a Bernoulli has none
    assert ("binarised NLL", with_bernoulli) in pairs
    for d in tested:
        if d["holds"]:
            assert max(d["over_seeds"], d["over_images"]) < 0.05


def test_a_bound_is_marked_and_ranks_nothing(run_comparison, tmp_path):
    """Of 5 samples fewer than 10 are effective: what they say is a bound, except of what needs no samples."""
    found, _ = run_comparison(n_seeds=2, k=5)
    tested = write_report(found, tmp_path / "out")["differences"]
    assert {d["figure"] for d in tested} == {"MSE"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| ≥ " in report
    assert "The bits/dim is a bound, marked ≥ or ≤, and ranks nothing" in report


def made_up(values: dict[str, list[float]]) -> SweepResult:
    """Return a comparison of these binarised NLLs by decoder, one a seed."""
    sweep = comparison(Config(), list(values), 3, EvaluationSpec(k=5))
    results = [
        JobResult(config, None, metrics(binarised_nll=values[config.model.decoder][config.seed]))
        for config in sweep.configs
    ]
    return SweepResult(sweep, tuple(results))


def test_a_better_decoder_is_called_better_only_when_both_tests_agree(monkeypatch):
    found = made_up({"bernoulli": [100.0, 100.1, 100.2], "gaussian": [90.0, 90.1, 90.2]})

    def difference():
        (one,) = [d for d in differences(found) if d.figure == "binarised NLL"]
        return one

    assert (difference().better, difference().by) == ("gaussian", pytest.approx(10.0))
    assert difference().over_seeds < 1e-6
    assert not difference().holds  # nothing is known of single images
    monkeypatch.setattr(tables, "paired_over_images", lambda *arguments: 0.2)
    assert not difference().holds
    monkeypatch.setattr(tables, "paired_over_images", lambda *arguments: 0.01)
    assert difference().holds


def test_an_array_of_other_content_under_the_same_name_is_another_comparison(run_comparison, images, tmp_path):
    path = tmp_path / "own.npy"
    np.save(path, images)
    settings = {"data": {"name": str(path)}, "decoders": ("bernoulli",), "n_seeds": 1}
    first, _ = run_comparison(**settings)
    np.save(path, 255 - images)
    with pytest.raises(UsageError, match="another comparison"):
        run_comparison(**settings)
    second, _ = run_comparison(**settings, out="second")
    assert second.results[0].run.path != first.results[0].run.path
    with pytest.raises(DataError, match="no such file"):
        run_comparison(**settings | {"data": {"name": str(tmp_path / "none.npy")}}, out="third")


def test_the_identity_of_a_run_is_its_config(small):
    assert small().identity == small(name="other", device="auto").identity
    assert small().identity != small(seed=1).identity


def test_decoders_are_ranked_with_a_sign_that_says_whether_neighbours_differ():
    found = made_up({"bernoulli": [100.0] * 3, "gaussian": [90.0] * 3, "i-gaussian": [90.1] * 3})
    pairs = (("gaussian", "bernoulli", 0.01), ("i-gaussian", "bernoulli", 0.01), ("gaussian", "i-gaussian", 0.7))
    tested = [Difference("binarised NLL", a, b, 1.0, 2, p, p) for a, b, p in pairs]
    tested += [Difference(title, a, b, 0.0, 2, 1.0, 1.0) for title in ("MSE", "log evidence") for a, b, _ in pairs]
    assert ("binarised NLL", "gaussian ≈ i-gaussian > bernoulli") in rankings(found, tested)
