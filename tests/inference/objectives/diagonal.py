"""A guide of independent normals for the linear-Gaussian oracle: its KL and distortion in closed form."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch

from tests.oracles import LinearGaussian

ORACLE = LinearGaussian()
LOC, SCALE = torch.tensor([0.3, -0.5], dtype=torch.float64), torch.tensor([0.4, 0.7], dtype=torch.float64)


def diagonal_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(LOC, SCALE).to_event(1))


def diagonal_rate(x):
    return (0.5 * (LOC.square() + SCALE.square() - 1) - SCALE.log()).sum().expand(len(x))


def diagonal_distortion(x):
    residual = x - ORACLE.bias - ORACLE.weight @ LOC
    spread = (ORACLE.weight * SCALE).square().sum()
    constant = ORACLE.data_dim * math.log(2 * math.pi * ORACLE.scale**2)
    return 0.5 * ((residual.square().sum(-1) + spread) / ORACLE.scale**2 + constant)
