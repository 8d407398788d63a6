"""Self-supervised pretraining of vision encoders with matrix losses, and their evaluation up to COCO detection.

The losses import torch alone; everything else needs the packages of the extra `vision`.
"""
