"""The checkpoint of train.py in a fresh process: it describes its own components, and is loaded safely."""

import torch

from vocseg import SegmentationTask

task = SegmentationTask.load_from_checkpoint("mine.ckpt").eval()
with torch.no_grad():
    print(task(torch.rand(1, 3, 33, 47)).shape)  # torch.Size([1, 3, 33, 47])
