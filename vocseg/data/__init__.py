"""Data: VOC on disk -> batches."""
