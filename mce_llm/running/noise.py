"""Lines of other libraries that are known, harmless, and bury what matters: each silenced by name, and no other.

What stands here asks nothing of the user and changes nothing in the run. Everything else is shown, warnings of the
same libraries included.
"""

from __future__ import annotations

import logging
import warnings

# Logger → how its message begins.
_MESSAGES = {
    # Said on every machine without a GPU as soon as something asks whether DeepSpeed is in use.
    "DeepSpeed": "Setting accelerator to CPU.",
    # A kernel for 4-bit products on CPUs, from the hub; the one that bitsandbytes brings is used in its place.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # It is given ids and says itself where answers end.
    "vllm.renderers.base": "Using None for EOS token id",
}
# Names that transformers is about to change, in code of transformers, accelerate and peft that we call by stable names.
_RENAMED = (
    r"`(is_)?gradient_checkpointing` is deprecated",
    r"`gradient_checkpointing_(en|dis)able` is deprecated",
    r"`gradient_checkpointing_kwargs` is deprecated",
)


class _Known(logging.Filter):
    """Drops the records of one logger whose message begins with a text."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginning)


def silence_known_noise() -> None:
    """Silence the lines above for the rest of this process; before or after their libraries are imported."""
    for name, beginning in _MESSAGES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Known) for known in logger.filters):
            logger.addFilter(_Known(beginning))
    for message in _RENAMED:
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)
