"""pythae's own trainer, an epoch of it at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.throughput.networks import OneLayer
from benchmarks.throughput.rivals import LR, Case, Run, UnavailableError


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its progress bar and log on the console."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
            yield
    finally:
        logging.disable(before)


def model_of(net: OneLayer) -> Any:
    """Its VAE around our encoder and decoder, which it wants in classes of its own."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = net.encoder

        def forward(self, x: Tensor) -> Any:
            loc, log_scale = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = net.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.net(z)))

    config = VAEConfig(input_dim=net.data_shape, latent_dim=net.latent_dim, reconstruction_loss="bce")
    return VAE(config, Encoder(), Decoder())


def trainer(case: Case) -> Run:
    """``BaseTrainer.train_step``, an epoch over so many images as there are in the steps asked for."""
    try:
        with _quiet():
            from pythae.data.datasets import BaseDataset
            from pythae.trainers import BaseTrainer, BaseTrainerConfig
    except ImportError as error:
        raise UnavailableError(f"not installed: pip install pyro_vae[bench] ({error})") from error
    net = case.build()
    if not isinstance(net, OneLayer):
        raise UnavailableError("pythae has no such model")
    x = case.x.view(-1, *net.data_shape).cpu()
    folder = tempfile.TemporaryDirectory(prefix="pythae-")
    config = BaseTrainerConfig(
        output_dir=folder.name,
        per_device_train_batch_size=case.batch_size,
        learning_rate=LR,
        no_cuda=case.x.device.type == "cpu",
    )
    with _quiet():
        training = BaseTrainer(model_of(net), BaseDataset(x, torch.zeros(len(x))), training_config=config)
        training.prepare_training()
    training.folder = folder  # gone when the trainer is
    first = 0

    def run(steps: int) -> float:
        nonlocal first
        count = steps * case.batch_size
        first = first if first + count <= len(x) else 0
        part = x[first : first + count]
        first += count
        training.train_loader = training.get_train_dataloader(BaseDataset(part, torch.zeros(len(part))))
        with _quiet():
            loss = training.train_step(1)
            training.callback_handler.on_epoch_end(training_config=config)
        return loss

    return run
