"""`beta` and `tcvae`: names for settings of training, around the same VAE."""

from __future__ import annotations

import pytest
import torch

from pyro_vae import testing
from pyro_vae.config import TrainConfig
from pyro_vae.models.disentangled import TCVAE, BetaVAE


@pytest.mark.parametrize("kind", [BetaVAE, TCVAE])
def test_the_model_keeps_every_law(kind):
    torch.manual_seed(0)
    vae = kind((5,), 2, (4,)).double()
    x = torch.bernoulli(torch.full((6, 5), 0.5, dtype=torch.float64))
    testing.check_elbo_bounds(vae.model, vae.guide, x)


@pytest.mark.parametrize("kind", [BetaVAE, TCVAE])
def test_what_it_wants_are_settings_of_training_that_are_others_else(kind):
    plain = TrainConfig()
    for name, value in kind.defaults.items():
        assert getattr(plain, name) != value
    assert TCVAE.objective == "mean-field"
