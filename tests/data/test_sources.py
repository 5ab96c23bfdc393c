import builtins
import gzip
import hashlib
import importlib
import lzma
import struct
import tracemalloc
import zipfile
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vaecli.config.likelihoods import Support
from vaecli.config.sections import DataConfig
from vaecli.data import sources, summaries
from vaecli.data.dataset import Dataset
from vaecli.data.sources import load_array, load_mnist, load_torchvision
from vaecli.errors import DataError, VaecliError


def write_idx(path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


@pytest.fixture
def files(tmp_path, images):
    """torchvision's layout of Fashion-MNIST and EMNIST's letters, with the test images in it."""
    labels = np.arange(60) % 5 + 1
    for folder, prefix in (("FashionMNIST", ""), ("KMNIST", ""), ("EMNIST", "emnist-letters-")):
        for part in ("train", "t10k") if not prefix else ("train", "test"):
            raw = tmp_path / folder / "raw" / f"{prefix}{part}-"
            write_idx(raw.with_name(raw.name + "images-idx3-ubyte"), images)
            write_idx(raw.with_name(raw.name + "labels-idx1-ubyte"), labels)
    return tmp_path


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_torchvision_files_that_are_there_are_used_without_the_network(files, images, name, part):
    found = load_torchvision(name, part, files)
    assert np.array_equal(found.pixels, images)
    assert found.labels[:3].tolist() == [1, 2, 3]


def test_emnist_is_shown_upright(files, images):
    assert np.array_equal(load_torchvision("emnist-letters", "train", files).pixels, images.transpose(0, 2, 1))


def test_a_torchvision_data_set_has_splits(files):
    own = Dataset(DataConfig(name="fashion-mnist"), Support.BINARY, files)
    assert (len(own.train), len(own.validation), len(own.test)) == (50, 10, 60)  # a sixth for validation


def gzipped(path, compresslevel=1) -> None:
    """Pack a file as another program than the data set's author would, whose checksum it then has not."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), compresslevel, mtime=0))
    path.unlink()


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist", "emnist-letters"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_torchvision_files_that_were_packed_again_are_used(files, images, monkeypatch, name, part):
    for path in list(files.glob("*/raw/*-ubyte")):
        gzipped(path)
    monkeypatch.setattr(sources.importlib, "import_module", None)  # neither torchvision nor the network is needed
    found = load_torchvision(name, part, files)
    assert np.array_equal(found.pixels, images.transpose(0, 2, 1) if "emnist" in name else images)
    assert found.labels[:6].tolist() == [1, 2, 3, 4, 5, 1]


@pytest.mark.parametrize(
    ("kind", "damage", "what"),
    [
        ("images-idx3", lambda content: content[:100], "is not as large as its header says: 60 x 6 x 5 bytes"),
        ("images-idx3", lambda content: content + b"x", "is not as large as its header says"),
        ("images-idx3", lambda content: content[:10], "is not an IDX file of unsigned bytes along 3 axes"),
        ("images-idx3", lambda content: b"<html>" + content, "is not an IDX file of unsigned bytes along 3 axes"),
        ("images-idx3", lambda content: b"\0\0\x0d\x03" + content[4:], "is not an IDX file of unsigned bytes"),
        ("images-idx3", lambda content: gzip.compress(content)[:-9], "not a readable IDX file"),
        ("images-idx3", lambda content: gzip.compress(content)[:-8] + bytes(8), "not a readable IDX file"),
        ("labels-idx1", lambda content: struct.pack(">II", 0x801, 59) + content[8:-1], "holds 59 labels; .* 60 images"),
    ],
)
def test_a_wrong_torchvision_file_is_named_and_not_replaced(files, kind, damage, what):
    path = files / "FashionMNIST" / "raw" / f"train-{kind}-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(
        DataError, match=rf"fashion-mnist: .*train-{kind}-ubyte: {what}.*; replace that file, or delete"
    ):
        load_torchvision("fashion-mnist", "train", files)
    assert path.read_bytes() == before


def test_test_images_of_another_size_are_told_with_both_sizes(files, images):
    raw = files / "FashionMNIST" / "raw"
    write_idx(raw / "t10k-images-idx3-ubyte", images[:, :4])
    with pytest.raises(DataError, match="fashion-mnist: its test images have 4 x 5 pixels, those for training 6 x 5"):
        _ = Dataset(DataConfig(name="fashion-mnist"), Support.BINARY, files).test


def test_downloaded_labels_are_counted(tmp_path, images, monkeypatch):
    found = SimpleNamespace(data=torch.from_numpy(images), targets=torch.zeros(59))
    datasets = importlib.import_module("torchvision.datasets")
    monkeypatch.setattr(datasets, "KMNIST", lambda **_: found)
    with pytest.raises(DataError, match="kmnist: holds 59 labels and 60 images"):
        load_torchvision("kmnist", "train", tmp_path)


def test_an_archive_of_many_arrays_is_told_by_some_of_their_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for i in range(5000):
            archive.writestr(f"{i}{'x' * 100}.npy", b"")
    with pytest.raises(DataError, match=r"a.npz: holds 0x+\.\.\., 1x+.* and 4,995 more; name the array") as told:
        load_array(str(tmp_path / "a.npz"))
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("labels", ["none", "plain", "packed"])
def test_idx_files_of_ones_own(tmp_path, images, packed, labels):
    path, beside = tmp_path / "my-images-idx3-ubyte", tmp_path / "my-labels-idx1-ubyte"
    write_idx(path, images)
    if packed:
        gzipped(path)
        path = path.with_name(f"{path.name}.gz")
    if labels != "none":
        write_idx(beside, np.arange(60) % 7)
    if labels == "packed":
        gzipped(beside)
    name = DataConfig(name=str(path)).name
    found = load_array(name)
    assert np.array_equal(found.pixels, images)
    assert (found.labels is None) == (labels == "none")
    assert found.labels is None or found.labels[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert summaries.fingerprint(name) == hashlib.sha256(path.read_bytes()).hexdigest()
    own = Dataset(DataConfig(name=name), Support.BINARY)
    assert (len(own.train), len(own.validation), len(own.test)) == (45, 9, 6)  # 6 = 60 // 10, 9 = 54 // 6


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_header_that_promises_more_than_there_is_takes_no_memory(tmp_path, packed):
    content = struct.pack(">4I", 0x803, 2**31, 2**31, 2**31) + bytes(1000)
    path = tmp_path / "a-ubyte"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match="is not as large as its header says"):
        load_array(str(path))


def test_packed_zeros_are_inflated_no_further_than_the_header_says(tmp_path):
    path = tmp_path / "a-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 1, 2, 2) + bytes(2**28)))
    tracemalloc.start()
    with pytest.raises(DataError, match="is not as large as its header says: 1 x 2 x 2 bytes"):
        load_array(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22  # of 256 MiB


def test_an_idx_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="a-ubyte: no such file"):
        load_array(str(tmp_path / "a-ubyte"))


def test_images_of_floats_are_refused_with_their_conversion(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), np.float32))
    with pytest.raises(DataError, match=r'\(255 \* x\)\.round\(\)\.astype\("uint8"\)'):
        load_array(str(tmp_path / "a.npy"))


def test_without_files_or_network_the_remedy_is_named(tmp_path, monkeypatch):
    datasets = importlib.import_module("torchvision.datasets")

    def refuse(self):
        raise OSError("no network")

    monkeypatch.setattr(datasets.FashionMNIST, "download", refuse)
    with pytest.raises(DataError, match=r"no network.*--data-dir or VAECLI_DATA_DIR"):
        load_torchvision("fashion-mnist", "train", tmp_path)


def test_a_broken_torchvision_breaks_only_what_needs_it(tmp_path, monkeypatch):
    def fail(name, *more):
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return builtins.__import__(name, *more)

    monkeypatch.setattr(sources.importlib, "import_module", fail)
    monkeypatch.setattr(sources, "version", {"torch": "2.13.1+cpu"}.__getitem__)
    with pytest.raises(DataError, match=r"nms does not exist.*pip install 'torchvision==0.28\.\*'"):
        load_torchvision("kmnist", "train", tmp_path)
    assert len(load_mnist("test").pixels) == 10_000


def test_a_damaged_embedded_file_is_not_used(tmp_path, monkeypatch):
    name = "t10k-images-idx3-ubyte"
    good = (sources._MNIST / f"{name}.xz").read_bytes()
    monkeypatch.setattr(sources, "_MNIST", tmp_path)
    for content in (None, good[: len(good) // 2], lzma.compress(b"something else"), gzip.compress(b"not xz")):
        if content is not None:
            (tmp_path / f"{name}.xz").write_bytes(content)
        with pytest.raises(DataError, match="install vaecli again"):
            load_mnist("test")


def test_arrays(tmp_path, images, faces):
    np.save(tmp_path / "plain.npy", images)
    assert np.array_equal(load_array(str(tmp_path / "plain.npy")).pixels, images)
    np.savez(tmp_path / "one.npz", anything=images)
    found = load_array(str(tmp_path / "one.npz"))
    assert np.array_equal(found.pixels, images)
    assert found.labels is None
    assert load_array(str(faces)).labels[:6].tolist() == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("name", "arrays", "what"),
    [
        ("a.npy", np.zeros((2, 3, 4)), r"holds float64.*convert them with \(255 \* x\)\.round\(\)\.astype"),
        ("a.npy", np.zeros((2, 3), np.uint8), r"shape \(2, 3\)"),
        ("a.npy", np.zeros((0, 3, 4), np.uint8), r"shape \(0, 3, 4\)"),
        ("a.npy", np.array([{}], dtype=object), "not a readable .npy"),
        ("a.npz", {"a": np.zeros(1), "b": np.zeros(1)}, "name the array `images`"),
        ("a.npz", {"images": np.zeros((2, 3, 4), np.uint8), "labels": np.zeros(3, int)}, "`labels` must be 2 integers"),
        ("a.npz", {"images": np.array([{}], dtype=object)}, "not a readable .npz"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, name, arrays, what):
    path = tmp_path / name
    np.savez(path, **arrays) if isinstance(arrays, dict) else np.save(path, arrays, allow_pickle=True)
    with pytest.raises(DataError, match=what):
        load_array(str(path))


def header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path):
    for shape in ("(1000000, 1000, 1000)", "(9, 4, 4)", "(7, 4, 4)"):
        content = header(shape) + bytes(8 * 4 * 4)
        (tmp_path / "a.npy").write_bytes(content)
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", content)
        with pytest.raises(DataError, match="images is not as large as its header says"):
            load_array(str(tmp_path / "a.npz"))
    (tmp_path / "a.npy").write_bytes(header("(1000000, 1000, 1000)") + bytes(128))
    with pytest.raises(DataError, match=r"not a readable .npy file"):
        load_array(str(tmp_path / "a.npy"))


def packed_zeros(path, shape: tuple[int, int, int], method: int) -> None:
    """Write an honest array of zeros, as an .npz that is packed by some method, or as a gzipped IDX file."""
    with zipfile.ZipFile(path, "w", method) if path.suffix == ".npz" else nullcontext() as archive:
        start = header(str(shape)) if archive else struct.pack(">4I", 0x803, *shape)
        with archive.open("images.npy", "w", force_zip64=True) if archive else gzip.open(path, "wb", 1) as file:
            file.write(start)
            for _ in range(shape[0]):
                file.write(bytes(shape[1] * shape[2]))


HALF = (513, 1024, 1024)
"""The shape of a little more than half a GiB."""


@pytest.mark.parametrize(
    ("name", "method", "what"),
    [
        ("a.npz", zipfile.ZIP_DEFLATED, r"holds an array of 0\.5 GiB in 0\.5 MiB, and 0\.5 GiB is the most.*GIB=1"),
        ("a-ubyte.gz", 0, r"holds an array of 0\.5 GiB in 2\.\d MiB, and 0\.5 GiB is the most.*GIB=1"),
        ("a.npz", zipfile.ZIP_BZIP2, "images is packed in a way that NumPy has not; pack it with numpy.savez_compress"),
        ("a.npz", zipfile.ZIP_LZMA, "images is packed in a way that NumPy has not; pack it with numpy.savez_compress"),
    ],
)
def test_an_honest_array_of_packed_zeros_is_not_unpacked(tmp_path, name, method, what):
    packed_zeros(tmp_path / name, HALF, method)
    tracemalloc.start()
    with pytest.raises(DataError, match=what):
        load_array(str(tmp_path / name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("name", ["a.npz", "a-ubyte.gz"])
def test_how_much_an_array_may_be_unpacked_to_can_be_said(tmp_path, monkeypatch, name):
    packed_zeros(tmp_path / name, (8, 1024, 1024), zipfile.ZIP_DEFLATED)
    for given, what in (("0.005", "0.0 GiB is the most"), ("much", "MAX_UNPACKED_GIB=much: must be a number of GiB")):
        monkeypatch.setenv("VAECLI_MAX_UNPACKED_GIB", given)
        with pytest.raises(VaecliError, match=what):
            load_array(str(tmp_path / name))
    monkeypatch.setenv("VAECLI_MAX_UNPACKED_GIB", "0.01")
    assert load_array(str(tmp_path / name)).pixels.shape == (8, 1024, 1024)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_that_are_missing_cut_short_or_something_else(tmp_path, images, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(DataError, match="no such file"):
        load_array(str(path))
    np.save(path, images) if suffix == ".npy" else np.savez(path, images=images)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"not a readable {suffix} file"):
            load_array(str(path))
