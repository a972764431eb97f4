"""SegmentationTask in a project of your own: your backbone, your DataLoader, Lightning's Trainer."""

from functools import partial

import lightning as L
import torch
from my_backbone import MyBackbone
from torch.utils.data import DataLoader, TensorDataset

from vocseg import Schedule, SegmentationTask, SkipDecoder

# any DataLoader of such pairs works: float32 images [B, 3, H, W], int64 masks [B, H, W] with 255 for pixels to ignore
images, masks = torch.rand(8, 3, 64, 80), torch.randint(0, 3, (8, 64, 80))
loader = DataLoader(TensorDataset(images, masks), batch_size=4)

task = SegmentationTask(
    backbone=MyBackbone(),
    decoder=partial(SkipDecoder, width=32),
    class_names=["background", "cat", "dog"],
    optimizer=partial(torch.optim.AdamW, lr=1e-3),
    schedule=Schedule("poly", warmup=1),
)
trainer = L.Trainer(max_epochs=1, logger=False)
trainer.fit(task, loader, loader)
trainer.save_checkpoint("mine.ckpt")
