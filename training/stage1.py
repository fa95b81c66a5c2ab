"""Stage 1: one autoregressive model for text, image and video to video (the paper's unified history injection).

Rectified flow at one resolution: x_t = (1 - t) x + t eps, target eps - x, t logit-normal, mean squared error. What a
chunk follows from comes from :class:`training.data.Clips`. The result is Helios-Base.
"""

from __future__ import annotations

from torch import Tensor

from helios_core.networks.transformer import HeliosTransformer

from .data import Clips, Drops
from .flow import per_sample
from .model import velocity
from .trainer import StepRandom, Task

TIMESTEPS = 1000


class Stage1(Task):
    """Velocity regression at full resolution."""

    def __init__(
        self,
        model: HeliosTransformer,
        clips: Clips,
        batch: int = 8,
        drops: Drops | None = None,
        checkpointed: bool = False,
    ):
        super().__init__(model)
        self.model, self.clips, self.batch, self.drops = model, clips, batch, drops or Drops()
        self.checkpointed = checkpointed

    def loss(self, step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        batch = self.clips.batch(random, self.batch, self.drops)
        noise = random.normal(batch.clean.shape)
        t = random.normal((self.batch,)).sigmoid()
        noisy = (1 - per_sample(t)) * batch.clean + per_sample(t) * noise
        texts = self.clips.embeddings[batch.captions]
        predicted = velocity(self.model, noisy, TIMESTEPS * t, texts, batch, self.checkpointed)
        return (predicted - (noise - batch.clean)).square().mean(), {}
