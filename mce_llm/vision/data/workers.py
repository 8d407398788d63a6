"""How many processes prepare batches of images, where the settings do not say."""

from __future__ import annotations

import os

_MOST_WORKERS = 16


def default_workers() -> int:
    """As many as there are cores that this process may use, shared with the launch's other processes on this machine."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MOST_WORKERS, usable_cores() // local))


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or "max"
        return cores
