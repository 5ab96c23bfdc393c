import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vaecli import cli, memory
from vaecli.errors import UsageError, VaecliError
from vaecli.training.loop import train

STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.skipif(not STATM.exists(), reason="asks Linux for the memory of this process")


@contextmanager
def address_space(limit: Callable[[int], int]) -> Iterator[int]:
    """Let this process have no more address space than a function of what it has."""
    used = int(STATM.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit(used), hard))
    try:
        yield limit(used)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def layers(n_bytes: float) -> list[int]:
    """Two layers whose weights in between and back are so many float32."""
    return [int((n_bytes / 8) ** 0.5)] * 2


def test_the_memory_of_a_process_is_what_its_limit_leaves():
    machine = memory.process_memory()
    with address_space(lambda used: used + 2**28) as limit:
        assert memory.process_memory() == min(limit, machine)
    assert memory.process_memory() == machine


@pytest.mark.parametrize(
    ("groups", "membership", "expected"),
    [
        ({"a/b/memory.max": "max", "a/memory.max": "3000", "memory.max": "5000"}, "0::/a/b\n", 3000),
        ({"memory.max": "2000"}, "0::/not/seen/from/here\n", 2000),
        ({"memory/a/memory.limit_in_bytes": "1000"}, "5:cpu:/x\n4:memory,hugetlb:/a\n0::/\n", 1000),
        ({}, "0::/\n", None),
        (None, "", None),
    ],
)
def test_the_memory_of_a_process_is_what_its_control_group_leaves(tmp_path, monkeypatch, groups, membership, expected):
    """As containers and clusters set them; those above hold as well, and some are not seen from inside."""
    machine = memory.process_memory()
    for name, content in (groups or {}).items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    if groups is not None:
        (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path / "groups")
    found = memory.process_memory()
    assert found == expected if expected else found >= machine


def test_a_model_too_large_for_the_process_is_refused_before_it_is_built(small, tmp_path):
    """Parameters, gradient and moments together, a tenth more than all that the process may have."""
    with address_space(lambda used: used + 2**28) as limit:
        config = small(model={"hidden_dim": layers(1.1 * limit / 4)})
        with pytest.raises(UsageError, match=r"is all that may be used here \(cpu\); make model.hidden_dim"):
            train(config, runs_dir=tmp_path)


def test_a_model_too_large_for_what_is_left_is_one_message(small, tmp_path):
    """The parameters alone are twice what is left."""
    with address_space(lambda used: used + used // 16) as limit:
        config = small(model={"hidden_dim": layers(2 * limit / 17)})
        with pytest.raises(VaecliError, match=r"^out of memory; make training.batch_size"):
            train(config, runs_dir=tmp_path)
    assert not list(tmp_path.glob("small"))


def test_a_command_that_needs_more_than_is_left_is_one_message(small, tmp_path, monkeypatch, capsys):
    """A million images of 30 float32 are 120 MB."""
    run = train(small(training={"epochs": 1}), runs_dir=tmp_path)
    monkeypatch.setattr(sys, "argv", ["vae", "sample", "--ckpt", str(run.path), "--n", "1000000"])
    with address_space(lambda used: used + 2**26), pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "vae: out of memory; ask for less, or for a smaller model, or run it where there is more\n"
    )
