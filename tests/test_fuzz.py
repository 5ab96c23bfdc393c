"""Inputs that were damaged or made to do harm: an error of ours or something usable, soon, and in little memory."""

import gzip
import io
import resource
import signal
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vaecli.config.loading import all_keys, dump_config, load_config, shipped_configs
from vaecli.config.schema import Config
from vaecli.data.dataset import Dataset
from vaecli.data.sources import load_array
from vaecli.errors import ConfigError, DataError, VaecliError
from vaecli.runs.checkpoint import load_checkpoint
from vaecli.training.loop import train
from vaecli.training.opening import new_state

SECONDS, BYTES = 5, 2**30
fuzzed = settings(suppress_health_check=list(HealthCheck))


@contextmanager
def bounded() -> Iterator[None]:
    """At most 5 seconds, and at most 1 GiB more memory than before."""

    def late(*arguments: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < BYTES


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with some bytes changed, cut out, doubled or put in."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.sampled_from([1, 2, 4, 8, 100, 4096]))
        match draw(st.sampled_from(["change", "flip", "cut", "double", "put", "end", "zero"])):
            case "change":
                content[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[at : at + length]
            case "double":
                content[at:at] = content[at : at + length]
            case "put":
                content[at:at] = draw(st.binary(max_size=length))
            case "end":
                del content[at:]
            case "zero":
                content[at : at + length] = bytes(length)
    return bytes(content)


WORDS = ["A", "L", "nan", ".inf", "1e3", "0x10", "1_000", "~", "2026-11-22", "adam", "gaussian", "x" * 300, "x.npy"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-3, 70_000)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(WORDS)
)


def _nested(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)


VALUES = st.recursive(SCALARS, _nested, max_leaves=8)


KEYS, DEFAULTS = all_keys(), Config().model_dump(mode="json")
SHIPPED = {name: path.read_bytes() for name, path in shipped_configs().items()}


@st.composite
def configs(draw: st.DrawFn) -> dict | bytes:
    """A config whose values, and sometimes keys, are anything; or the text of one, damaged."""
    if draw(st.booleans()):
        return draw(damaged(SHIPPED[draw(st.sampled_from(list(SHIPPED)))]))
    values = deepcopy(DEFAULTS)
    for key in draw(st.lists(st.sampled_from(KEYS) | st.text(max_size=10), min_size=1, max_size=5)):
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {}) if isinstance(target.get(parent, {}), dict) else {}
        target[last] = draw(VALUES)
    return values


@pytest.fixture(scope="module", autouse=True)
def _subnormals(good):
    """Training flushes them, and without them no floats are made up."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@fuzzed
@given(config=configs(), flow=st.booleans())
def test_any_config_is_read_or_explained(folder, config, flow):
    path = folder / "config.yaml"
    if isinstance(config, dict):
        config = yaml.safe_dump(config, allow_unicode=True, default_flow_style=flow).encode("utf-8", "surrogatepass")
    path.write_bytes(config)
    with bounded():
        try:
            config = load_config(path)
        except ConfigError as error:
            assert error.exit_code == 2
            assert error.problems
            assert all(len(problem) < 5000 for problem in error.problems)
        else:
            (folder / "again.yaml").write_text(dump_config(config), encoding="utf-8")
            assert load_config(folder / "again.yaml") == config


@fuzzed
@given(setting=st.text(max_size=60) | st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=40)))
def test_any_setting_is_taken_or_explained(setting):
    with bounded():
        try:
            load_config(None, [setting])
        except ConfigError as error:
            assert error.problems


@pytest.fixture(scope="module")
def good(folder):
    """The bytes of a checkpoint in the middle of an epoch, and the state that takes it."""
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 3), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    config = load_config(
        None,
        [
            f"data.name={folder / 'images.npy'}", "data.test=2", "data.validation=2", "model.latent_dim=1",
            "model.hidden_dim=2", "training.batch_size=3", "training.epochs=2", "device=cpu",
        ],
    )  # fmt: skip
    steps = iter(range(10))
    with pytest.raises(VaecliError):
        train(config, runs_dir=folder / "runs", stop=lambda: next(steps) >= 1)
    (path,) = folder.glob("runs/*/*/checkpoints/last.pt")
    data = Dataset(config.data, config.model.likelihood.support)
    return path.read_bytes(), lambda: new_state(config, data.train, torch.device("cpu"))


def load(folder, content: bytes, state) -> None:
    """Load a checkpoint, and if it is one, use it."""
    path = folder / "fuzzed.pt"
    path.write_bytes(content)
    with bounded():
        try:
            checkpoint = load_checkpoint(path)
            vae = checkpoint.build_vae()
            assert all(parameter.isfinite().all() for parameter in vae.parameters())
            state().restore(checkpoint)
        except VaecliError as error:
            assert error.exit_code in {1, 2}
            assert len(str(error)) < 5000


@fuzzed
@given(data=st.data())
def test_any_damaged_checkpoint_is_used_or_explained(folder, good, data):
    whole, state = good
    load(folder, data.draw(damaged(whole)), state)


@fuzzed
@given(data=st.data())
def test_a_checkpoint_whose_table_of_contents_was_damaged(folder, good, data):
    """Through the archive's checksum, which damage anywhere else does not pass."""
    whole, state = good
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, data.draw(damaged(content)) if entry.filename.endswith(".pkl") else content)
    load(folder, buffer.getvalue(), state)


TENSORS = st.builds(
    lambda shape, kind: torch.zeros(shape).to(kind),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]),
) | st.builds(lambda: torch.zeros(1).expand(2**40))
PARTS = VALUES | TENSORS | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), TENSORS, max_size=3)


@fuzzed
@given(data=st.data())
def test_a_checkpoint_with_any_part_replaced(folder, good, data):
    whole, state = good
    content = torch.load(io.BytesIO(whole), weights_only=True)
    target = content
    while True:
        key = data.draw(st.sampled_from(sorted(target, key=str)))
        if not isinstance(target[key], dict) or not target[key] or data.draw(st.booleans()):
            break
        target = target[key]
    if data.draw(st.integers(0, 9)) == 0:
        del target[key]
    else:
        target[key] = data.draw(PARTS)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    load(folder, buffer.getvalue(), state)


@fuzzed
@given(data=st.data(), suffix=st.sampled_from([".npy", ".npz", "-ubyte"]), packed=st.booleans())
def test_any_damaged_array_is_read_or_explained(folder, data, suffix, packed):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, images)
    elif suffix == "-ubyte":
        idx = struct.pack(">4I", 0x803, *images.shape) + images.tobytes()
        buffer.write(gzip.compress(idx) if packed else idx)
    else:
        (np.savez_compressed if packed else np.savez)(buffer, images=images, labels=np.array([1, 2]))
    path = folder / f"fuzzed{suffix}"
    path.unlink(missing_ok=True)  # an old one may be mapped
    path.write_bytes(data.draw(damaged(buffer.getvalue())))
    with bounded():
        try:
            found = load_array(str(path))
        except DataError as error:
            assert error.exit_code == 3
        else:
            assert found.pixels.dtype == np.uint8
            assert found.pixels.ndim == 3


def test_a_checkpoint_that_names_what_allocates(folder):
    """bytearray(2**40) is among what torch would call."""
    pickled = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")
    (folder / "bomb.pt").write_bytes(buffer.getvalue())
    with bounded(), pytest.raises(VaecliError, match="holds more than tensors"):
        load_checkpoint(folder / "bomb.pt")


def test_a_checkpoint_of_packed_zeros_is_not_unpacked(folder):
    with zipfile.ZipFile(folder / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
    with bounded(), pytest.raises(VaecliError, match="it has compressed parts"):
        load_checkpoint(folder / "packed.pt")


@pytest.mark.parametrize("name", ["archive/DATA.PKL", "archive/data.pkl", "another/data.pkl", "archive/code/x.py"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_checkpoint_with_a_second_table_of_contents(folder, good, name):
    """Which of the two is read must not depend on who reads."""
    pickled = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R."  # bytearray(2**33)
    path = folder / "second.pt"
    path.write_bytes(good[0])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, pickled)
    with bounded(), pytest.raises(VaecliError, match="it has parts that no checkpoint has, or some twice"):
        load_checkpoint(path)


def test_a_checkpoint_of_lists_that_contain_each_other_twice(folder, good):
    """40 of them have 2⁴⁰ items when they are written out, as a message would."""
    nested = [1]
    for _ in range(40):
        nested = [nested, nested]
    content = torch.load(io.BytesIO(good[0]), weights_only=True)
    content["config"]["seed"] = nested
    torch.save(content, folder / "nested.pt")
    with bounded(), pytest.raises(VaecliError, match="a part is there twice"):
        load_checkpoint(folder / "nested.pt")
