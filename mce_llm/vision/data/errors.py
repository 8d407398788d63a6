"""What can be wrong with image data. Settings that are wrong raise `ConfigurationError`, as everywhere."""

from mce_llm.errors import MceLlmError


class ImageDataError(MceLlmError, ValueError):
    """A source of images cannot be found, read or used; the message says where it looked and what to change."""


class NoSuchSplitError(ImageDataError):
    """A source has no images that are set apart for what they are wanted for; the message lists its splits."""


class CorruptImageError(ImageDataError):
    """An image that cannot be decoded; the message names its file."""
