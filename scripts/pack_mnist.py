"""Pack the canonical MNIST files into the package.

    python scripts/pack_mnist.py DIRECTORY

DIRECTORY holds the four IDX files of MNIST, gzipped (`train-images-idx3-ubyte.gz` and so on). Each is checked
against the SHA-256 that `vaecli.data.dataset` verifies on load, and written as `src/vaecli/data/mnist/*.xz`.
"""

import gzip
import hashlib
import lzma
import sys
from pathlib import Path

from vaecli.data.sources import MNIST_SHA256

TARGET = Path(__file__).parents[1] / "src" / "vaecli" / "data" / "mnist"
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def main(directory: Path) -> None:
    """Compress every file of MNIST from `directory` into the package."""
    for name, expected in MNIST_SHA256.items():
        content = gzip.decompress((directory / f"{name}.gz").read_bytes())
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            sys.exit(f"{name}.gz: SHA-256 of its content is {found}, expected {expected}")
        packed = lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=FILTERS)
        (TARGET / f"{name}.xz").write_bytes(packed)
        print(f"{name}.xz: {len(content):,} -> {len(packed):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
