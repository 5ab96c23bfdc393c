"""How much memory this process may use. Needs no torch."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MEMBERSHIP, CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Where Linux says which control groups a process is in, and what their limits are."""


def process_memory() -> int | None:
    """Return the bytes that this process may use in all: the machine's, or a limit set below; None if not known."""
    limits = [*_control_group_limits()]
    with suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(ImportError):
        import resource  # noqa: PLC0415 (not on Windows)

        soft = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
        limits += [limit for limit in soft if limit != resource.RLIM_INFINITY]
    return min(limits, default=None)


def _control_group_limits() -> Iterator[int]:
    """Yield the limits of the control groups that hold this process, as containers and clusters set them on Linux."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (
            (CONTROL_GROUPS / "memory", "memory.limit_in_bytes") if controllers else (CONTROL_GROUPS, "memory.max")
        )
        group = root / place.lstrip("/")
        for above in (group, *group.parents):
            with suppress(OSError, ValueError):  # not there, or `max`
                yield int((above / name).read_text())
