import io
from dataclasses import replace

from rich.console import Console

from evaluations import metrics
from vaecli.config.jobs import EvaluationSpec
from vaecli.runs.run import Run
from vaecli.shown import Shown, Summary
from vaecli.sweeps.sweep import JobResult, SweepResult, comparison
from vaecli.training.loop import train


def terminal(shown: object) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


class Foreign(Shown):
    def summary(self):
        return Summary("<b>run</b> [bold]", [("<i>", "a & [red]b")], ("<th>", "[blue]"), ("<p>[x]",))


def test_what_enters_markup_is_escaped():
    html = Foreign()._repr_html_()
    assert "&lt;b&gt;run&lt;/b&gt;" in html
    assert ">a &amp; [red]b</td>" in html
    assert not {"<b>", "<i>"} & set(html.split())
    text = terminal(Foreign())
    assert "<b>run</b> [bold]" in text
    assert "a & [red]b" in text
    assert "<p>[x]" in text


def test_a_run_shows_how_it_ended_and_its_samples(small, tmp_path):
    run = train(small(), runs_dir=tmp_path)
    best = run.status["best"]
    html = run._repr_html_()
    assert f">{best['elbo']:.2f} = {best['log_likelihood']:.2f} - {best['kl']:.2f} nats, epoch " in html
    assert ">3 of 3, " in html
    assert 'src="data:image/png;base64,iVBOR' in html
    assert run.name in terminal(run)
    (run.path / "status.json").write_text("{")
    assert "unreadable" in run._repr_html_()


def test_a_run_that_is_not_there_shows_so(tmp_path):
    assert ">unreadable (its directory: " in Run(tmp_path / "none")._repr_html_()


def test_an_evaluation_shows_its_metrics():
    found = metrics(elbo=-97.4, log_evidence=-91.2, binarised_nll=91.25)
    assert f"{found.elbo:.2f}" in terminal(found)
    assert "relaxed, not a likelihood" in terminal(replace(found, caveat="relaxed, not a likelihood"))
    few = replace(found, log_evidence_effective_sample_size=2.0)
    assert f"{found.log_evidence:.2f} (bound)" in few._repr_html_()


def test_a_comparison_shows_a_row_for_each_run(small):
    sweep = comparison(small(), ["bernoulli", "gaussian"], 1, EvaluationSpec())
    done, failed = sweep.configs
    found = metrics(elbo=-97.4, log_evidence=-91.2, binarised_nll=91.25)
    result = SweepResult(sweep, (JobResult(done, None, found), JobResult(failed, None, error="no <disk>")))
    html = result._repr_html_()
    assert ">bernoulli</th>" in html
    assert f">{found.binarised_nll:.2f}</td>" in html
    assert "no &lt;disk&gt;" in html
    assert html.count("<tr>") == 3
