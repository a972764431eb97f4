"""Data: image files of a VOC tree, their samples, and the batches that networks take."""
