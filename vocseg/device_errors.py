"""What torch's errors of a device mean, in the words of vocseg's options."""

import re

_FULL = ("out of memory", "can't allocate memory", "not enough memory")
_SMALLER = " A smaller --data.batch_size takes less"
_LESS = {
    "fit": f"{_SMALLER}: with --trainer.accumulate_grad_batches the gradients of several batches are summed. So do "
    "smaller images, and --trainer.precision bf16-mixed.",
    **dict.fromkeys(
        ("validate", "test", "predict"),
        f"{_SMALLER}. --inference.window 512 passes a large image through the network in parts.",
    ),
}
_NOT_DETERMINISTIC = " does not have a deterministic implementation"


def explain_device_error(error: BaseException, command: str) -> str | None:
    """Explains that memory was full, or that an operation has no deterministic kernel.

    Args:
        error: the error that ended the command.
        command: the command, for example ``fit``.

    Returns:
        What happened and which options help, in one line; None for every other error.
    """
    text = str(error)
    if _NOT_DETERMINISTIC in text:
        operation = text.partition(_NOT_DETERMINISTIC)[0].split()[-1]
        return (
            f"{operation} has no deterministic implementation on this device. --trainer.deterministic warn uses it "
            "all the same, and says so; another decoder or loss may not need it."
        )
    if not isinstance(error, MemoryError) and not any(words in text.lower() for words in _FULL):
        return None
    device = "GPU" if "CUDA" in text or "HIP" in text else "MPS device" if "MPS" in text else "machine"
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)|Unable to allocate ([\d.]+ \w+)", text)
    more = (asked[1] or asked[2]) if asked else ""
    if more.endswith(" bytes"):
        more = f"{int(more.split()[0]) / 2**30:,.1f} GiB"
    much = f" when {more} more were needed" if more else ""
    return f"the memory of this {device} was full{much}.{_LESS.get(command, '')}"
