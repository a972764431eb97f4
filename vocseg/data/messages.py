"""Lines for the user, from one process and once.

Neither torch nor Lightning is imported here: an exported network needs none of them.
"""

import sys


def say_once(said: set[str], message: str, topic: str = "") -> None:
    """Logs a line, unless ``said`` has its topic. Loader workers repeat no line of one another.

    Args:
        said: the topics that were reported; the new one is added.
        message: the line.
        topic: what the line is about.
    """
    loading = sys.modules.get("torch.utils.data")  # without it there are no workers
    worker = None if loading is None else loading.get_worker_info()
    if topic in said or (worker is not None and worker.id > 0):
        return
    said.add(topic)
    say(message)


def say(message: str) -> None:
    """Logs a line; of several processes of a run only the first one does."""
    if "lightning" in sys.modules:
        from lightning.pytorch.utilities.rank_zero import rank_zero_info

        rank_zero_info(message)
    else:
        sys.stderr.write(f"{message}\n")
