"""Self-supervised pretraining of vision encoders with matrix losses, and their evaluation up to COCO detection.

The losses need torch alone; everything else needs `pip install 'mce-llm[vision]'`.
"""
