"""Neural networks: functions of tensors, without Pyro."""

from pyro_vae.networks.base import Network
from pyro_vae.networks.mlp import ACTIVATIONS, MLP
from pyro_vae.networks.registry import NETWORKS

__all__ = ["ACTIVATIONS", "MLP", "NETWORKS", "Network"]
