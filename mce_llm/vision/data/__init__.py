"""Images for self-supervised learning and for what comes after: sources, views, and loaders that can be repeated.

Every sample's randomness depends on (seed, epoch, index) alone. Models and training live elsewhere.
"""

from mce_llm.vision.data.augmentations import ViewTransform, classify_view, eval_view, train_views
from mce_llm.vision.data.class_names import class_count, why_not_classified, with_classes_of
from mce_llm.vision.data.errors import CorruptImageError, ImageDataError, NoSuchSplitError
from mce_llm.vision.data.loading import ViewBatch, ViewLoader, view_loader
from mce_llm.vision.data.opening import open_images
from mce_llm.vision.data.sampling import EpochSampler, OrderedSampler, sample_seed
from mce_llm.vision.data.settings import AugmentationSettings, DataSettings
from mce_llm.vision.data.sources import UNLABELED, ImageSource, balanced_indices

__all__ = [
    "UNLABELED",
    "AugmentationSettings",
    "CorruptImageError",
    "DataSettings",
    "EpochSampler",
    "ImageDataError",
    "ImageSource",
    "NoSuchSplitError",
    "OrderedSampler",
    "ViewBatch",
    "ViewLoader",
    "ViewTransform",
    "balanced_indices",
    "class_count",
    "classify_view",
    "eval_view",
    "open_images",
    "sample_seed",
    "train_views",
    "view_loader",
    "why_not_classified",
    "with_classes_of",
]
