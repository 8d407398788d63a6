"""How good an encoder is: nearest neighbours, linear classifiers, and fine-tuning on few labels.

The scripts are vision/knn.py, vision/linear_probe.py and vision/semi_supervised.py; what is here can also be called while
an encoder is pretrained.
"""

from mce_llm.vision.probing.accuracy import accuracy_report, rank_of_label
from mce_llm.vision.probing.encoders import Encoder, EncoderSettings, open_encoder, prepared_as
from mce_llm.vision.probing.features import FeatureError, Features, extract_features
from mce_llm.vision.probing.fine_tuning import FineTuningSettings
from mce_llm.vision.probing.fitting import ProbeError
from mce_llm.vision.probing.images import encode_images, open_labelled
from mce_llm.vision.probing.linear import LinearProbe
from mce_llm.vision.probing.neighbours import NeighbourError, knn_accuracy, knn_ranks, nearest_neighbours
from mce_llm.vision.probing.protocol import ProbeSettings
from mce_llm.vision.probing.subsets import SubsetError, balanced_subset, read_subset, write_subset

__all__ = [
    "Encoder",
    "EncoderSettings",
    "FeatureError",
    "Features",
    "FineTuningSettings",
    "LinearProbe",
    "NeighbourError",
    "ProbeError",
    "ProbeSettings",
    "SubsetError",
    "accuracy_report",
    "balanced_subset",
    "encode_images",
    "extract_features",
    "knn_accuracy",
    "knn_ranks",
    "nearest_neighbours",
    "open_encoder",
    "open_labelled",
    "prepared_as",
    "rank_of_label",
    "read_subset",
    "write_subset",
]
