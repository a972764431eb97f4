"""How loader workers and torch's compute threads divide the CPU cores.

More threads than cores slow each other down: on a machine of two busy cores, two compute threads made an epoch ten
times slower than one.
"""

import math
import os
from pathlib import Path

import torch

MOST_WORKERS = 8
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says how much of the processors a container may use."""


def available_cores() -> int:
    """The CPU cores that this process may use, at least 1: those of its affinity, within the limit of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        if (CGROUP / "cpu.max").is_file():
            quota, period = (CGROUP / "cpu.max").read_text().split()  # "max 100000" if there is no limit
        else:  # version 1; -1 if there is no limit
            quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return allowed
    return min(allowed, limit) if limit > 0 else allowed


def default_workers(processes: int = 1) -> int:
    """The number of loader workers of each process.

    On CPUs the network takes most of the time: a quarter of the cores, at least one of two or more. With a GPU, all
    cores. At most ``MOST_WORKERS``.

    Args:
        processes: the training processes on this machine, which share the cores.
    """
    cores = max(available_cores() // processes, 1)
    if torch.cuda.is_available():
        return min(cores, MOST_WORKERS)
    return 0 if cores == 1 else min(max(cores // 4, 1), MOST_WORKERS)


def limit_threads(workers: int, processes: int = 1, on_cpu: bool = True) -> str:
    """Leaves the cores of the loader workers to them: lowers the number of torch's compute threads if need be.

    At least half of the cores compute. The number stays as it is if ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` is set,
    if ``torch.set_num_threads`` chose a lower one, or if a GPU computes.

    Args:
        workers: the loader workers of each process.
        processes: the training processes on this machine, which share the cores.
        on_cpu: whether the network is on the CPU.

    Returns:
        What is used, for the user, for example ``2 cores: 1 loader worker, 1 compute thread``.
    """
    cores = available_cores()
    own = max(cores // processes, 1)
    is_set = any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    threads = max(own - workers, own // 2, 1)
    if on_cpu and not is_set and torch.get_num_threads() > threads:
        torch.set_num_threads(threads)
    parts = [_counted(workers, "loader worker")]
    if on_cpu:
        parts.append(_counted(torch.get_num_threads(), "compute thread"))
    each = "" if processes == 1 else f" in each of {processes} processes"
    return f"{_counted(cores, 'core')}: {', '.join(parts)}{each}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
