"""What can go wrong with an export or an import. Settings that are wrong raise `ConfigurationError`, as everywhere."""

from mce_llm.errors import MceLlmError


class ExportError(MceLlmError, RuntimeError):
    """An export that cannot be written, or that does not compute what the encoder computes; nothing of it is left."""


class UnsupportedFormatError(MceLlmError, ValueError):
    """A format that has no place for something the encoder has; the message says for what, and what does have one."""


class ForeignWeightsError(MceLlmError, ValueError):
    """A file of someone else's weights that holds no encoder of the kind that was named; the message lists what it holds."""
