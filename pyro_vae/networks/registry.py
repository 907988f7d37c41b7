"""Networks by name, ``--network NAME``."""

from __future__ import annotations

from pyro_vae.networks.base import Network
from pyro_vae.networks.mlp import MLP

NETWORKS: dict[str, type[Network]] = {"mlp": MLP}
