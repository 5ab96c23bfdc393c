"""How large an array may become when it is unpacked, which is known before any memory is taken."""

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaecli.errors import DataError, UsageError
from vaecli.memory import process_memory

RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1100}
"""How many times larger than packed an array can be at most, by the ways of packing that NumPy has."""
MAX_UNPACKED = "VAECLI_MAX_UNPACKED_GIB"
"""The environment variable that says how large an array may be once it is unpacked."""
FREELY_UNPACKED, USUAL_RATIO = 2**29, 100
"""Bytes that any array may be unpacked to, and how many times larger than packed one may be beyond that."""


def read_member(archive: Any, key: str, path: Path) -> NDArray[Any]:
    """Read an array of an .npz, once its header agrees with the bytes that are there: it says how much to allocate.

    Raises DataError where it would be too large, or is packed in another way than NumPy's; ValueError otherwise.
    """
    entry = archive.zip.getinfo(key if key in archive.zip.namelist() else f"{key}.npy")
    if entry.compress_type not in RATIOS:
        raise DataError(f"{path}: {key} is packed in a way that NumPy has not; pack it with numpy.savez_compressed")
    packed = min(entry.compress_size, path.stat().st_size)
    if entry.file_size > packed * RATIOS[entry.compress_type]:
        raise ValueError(f"{key} is not as large as its header says")
    check_unpacked(path, entry.file_size, packed)
    with archive.zip.open(entry) as member:
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = headers[np.lib.format.read_magic(member)](member)
        length = member.tell() + math.prod(shape) * dtype.itemsize
    if length != entry.file_size:
        raise ValueError(f"{key} is not as large as its header says")
    array: NDArray[Any] = archive[key]
    return array


def check_unpacked(path: Path, size: int, packed: int) -> None:
    """Refuse an array that would be so large when it is unpacked that it may be meant to do harm. Raises DataError.

    By default it may take half a GiB or, beyond that, a hundred times what is packed and half of this process's memory.
    """
    given = os.environ.get(MAX_UNPACKED)
    try:
        most = min(max(FREELY_UNPACKED, USUAL_RATIO * packed), (process_memory() or 2**63) // 2)
        most = int(float(given) * 2**30) if given else most
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{MAX_UNPACKED}={given}: must be a number of GiB") from error
    if size > most:
        raise DataError(
            f"{path}: holds an array of {size / 2**30:,.1f} GiB in {packed / 2**20:,.1f} MiB, and {most / 2**30:,.1f} "
            f"GiB is the most that it may take; save it as .npy, which stays on the disk, or set {MAX_UNPACKED}="
            f"{math.ceil(size / 2**30)} if the file can be trusted"
        )
