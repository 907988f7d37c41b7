"""Networks: tensors to tensors, with nothing of Pyro in them."""

from pyro_vae.networks.mlp import ACTIVATIONS, MLP

__all__ = ["ACTIVATIONS", "MLP"]
