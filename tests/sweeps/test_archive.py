from contextlib import nullcontext
from pathlib import Path

import pytest

from identical import traces
from vaecli.config.jobs import EvaluationSpec
from vaecli.errors import LimitReachedError, VaecliError
from vaecli.runs.run import Run, list_runs
from vaecli.sweeps.jobs import finished_result, run_jobs
from vaecli.sweeps.sweep import Job, JobOptions
from vaecli.training.loop import resume, train
from vaecli.training.stopping import Limit

pytest.importorskip("ray")
from vaecli.sweeps import ray_worker
from vaecli.sweeps.ray_worker import pack, store, unpack


@pytest.fixture
def store_some(monkeypatch):
    """Store the files of a slice, until so many are written."""
    write = ray_worker.write_bytes

    def store_until_full(files, run: Run, most: int) -> None:
        written: list[Path] = []

        def write_or_fail(path: Path, content: bytes) -> None:
            if len(written) == most:
                raise OSError(28, "No space left on device", str(path))
            written.append(path)
            write(path, content)

        monkeypatch.setattr(ray_worker, "write_bytes", write_or_fail)
        with nullcontext() if most == len(files) else pytest.raises(VaecliError, match="cannot be written: No space"):
            store(files, run, run.path.parent, run.name)
        assert len(written) == most

    return store_until_full


def test_a_run_goes_on_wherever_its_files_are(small, tmp_path):
    config = small()
    uncut = train(config, runs_dir=tmp_path / "uncut")
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "first", limit=Limit(images=70))
    (first,) = list_runs(tmp_path / "first")
    files = pack(first)
    assert not any(Path(name).name.startswith(".") for name in files)
    elsewhere = resume(unpack(files, tmp_path / "second" / "runs" / first.name))
    back = store(pack(elsewhere), None, tmp_path / "back" / "small", first.name)
    assert back.path == tmp_path / "back" / "small" / first.name
    assert traces(back) == traces(uncut)
    assert store(files, None, back.path.parent, first.name).name == f"{first.name}-2"


def test_a_slice_that_is_cut_at_any_file_leaves_a_run_that_goes_on_to_the_same_bits(small, tmp_path, store_some):
    config = small()
    uncut = traces(train(config, runs_dir=tmp_path / "uncut"))
    slices = []
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "there", limit=Limit(images=60))
    (there,) = list_runs(tmp_path / "there")
    slices.append(pack(there))
    with pytest.raises(LimitReachedError):
        resume(there, limit=Limit(images=50))
    slices.append(pack(there))
    for most in range(len(slices[1])):
        run = unpack(slices[0], tmp_path / "here" / "small" / f"cut-{most}")
        store_some(slices[1], run, most)
        assert traces(resume(Run(run.path))) == uncut


def test_a_run_whose_files_are_cut_is_not_taken_for_done_before_all_of_it_is_there(small, tmp_path, store_some):
    config, spec = small(), EvaluationSpec(k=2, binarised=False)
    trained = train(config, runs_dir=tmp_path / "there")
    before = pack(trained)
    (done,) = run_jobs([Job(config, trained, JobOptions(tmp_path / "there", evaluation=spec))])
    after = pack(done.run)
    for most in range(len(after) + 1):
        run = unpack(before, tmp_path / "here" / "small" / f"cut-{most}")
        store_some(after, run, most)
        job = Job(config, run, JobOptions(tmp_path / "here", evaluation=spec))
        for result in (finished_result(job), *run_jobs([job])):
            if result is not None:
                assert result.error is None
                assert result.per_image("log_evidence").mean() == pytest.approx(done.metric("log_evidence"), abs=1e-4)
    assert finished_result(job) is not None
