from contextlib import nullcontext
from pathlib import Path

import pytest

from identical import traces
from vaecli.errors import LimitReachedError, VaecliError
from vaecli.runs import archive as shipping
from vaecli.runs.archive import pack, store, unpack
from vaecli.runs.run import Run, list_runs
from vaecli.sweeps.jobs import Job, JobOptions, complete, done_before
from vaecli.training.loop import resume, train
from vaecli.training.stopping import Limit


@pytest.fixture
def store_some(monkeypatch):
    """Stores a delivery, until so many files are written."""
    write = shipping.write_bytes

    def store_until_full(files, run: Run, most: int) -> None:
        written: list[Path] = []

        def write_or_fail(path: Path, content: bytes) -> None:
            if len(written) == most:
                raise OSError(28, "No space left on device", str(path))
            written.append(path)
            write(path, content)

        monkeypatch.setattr(shipping, "write_bytes", write_or_fail)
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


def test_a_delivery_that_is_cut_at_any_file_leaves_a_run_that_goes_on_to_the_same_bits(small, tmp_path, store_some):
    config = small()
    uncut = traces(train(config, runs_dir=tmp_path / "uncut"))
    deliveries = []
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "there", limit=Limit(images=60))
    (there,) = list_runs(tmp_path / "there")
    deliveries.append(pack(there))
    with pytest.raises(LimitReachedError):
        resume(there, limit=Limit(images=50))
    deliveries.append(pack(there))
    for most in range(len(deliveries[1])):
        run = unpack(deliveries[0], tmp_path / "here" / "small" / f"cut-{most}")
        store_some(deliveries[1], run, most)
        assert traces(resume(Run(run.path))) == uncut


def test_a_run_whose_delivery_is_cut_is_not_taken_for_done_before_all_of_it_is_there(small, tmp_path, store_some):
    config, there = small(), JobOptions(tmp_path / "there", k=2, binarised=False)
    done = complete(Job(config, None, there))
    before, after = pack(train(config, runs_dir=tmp_path / "cut")), pack(done.run)
    for most in range(len(after) + 1):
        run = unpack(before, tmp_path / "here" / "small" / f"cut-{most}")
        store_some(after, run, most)
        task = Job(config, run, JobOptions(tmp_path / "here", k=2, binarised=False))
        for outcome in (done_before(task), complete(task)):
            if outcome is not None:
                assert outcome.error is None
                assert outcome.per_image("log_evidence").mean() == pytest.approx(done.figures["log_evidence"], abs=1e-4)
    assert done_before(task) is not None
