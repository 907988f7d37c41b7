"""This package: ``pv.SVI`` with the ELBO, eager or captured."""

from __future__ import annotations

import inspect
import warnings
from itertools import islice
from typing import Any

import pyro
import pyro.optim
import torch

import pyro_vae as pv
from benchmarks.throughput.images import batches
from benchmarks.throughput.networks import OneLayer
from benchmarks.throughput.programs import program
from benchmarks.throughput.rivals import LR, Case, Run, UnavailableError


def ours(case: Case, **keywords: Any) -> Run:
    """Data in memory, validation off as in ``pv.fit``, no waiting for the loss; ``keywords`` go to ``pv.SVI``.

    Networks of one layer are trained as a ``pv.VAE``, that of two as the very Pyro program that stock Pyro trains.
    """
    if missing := keywords.keys() - inspect.signature(pv.SVI).parameters.keys():
        raise UnavailableError(f"this version's SVI takes no {', '.join(sorted(missing))}")
    net = case.build()
    if isinstance(net, OneLayer):
        vae = pv.VAE(net.data_shape, net.latent_dim, encoder=net.encoder, decoder=net.decoder).to(case.x.device)
        model: Any = vae.model
        guide: Any = vae.guide
    else:
        model, guide = program(net)
    elbo = pv.elbo("iwae", num_particles=case.particles) if case.particles > 1 else pv.elbo("trace")
    svi = pv.SVI(model, guide, pyro.optim.Adam({"lr": LR}), elbo, **keywords)
    stream = batches(case.x, case.batch_size, net.data_shape)

    def run(steps: int) -> float:
        total = torch.zeros((), device=case.x.device)
        with pyro.validation_enabled(False), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for x in islice(stream, steps):
                total += svi.step_terms(x).loss
            if hasattr(svi, "synchronize"):
                svi.synchronize()
        if keywords.get("compile") and not svi.compiled:
            raise UnavailableError("; ".join(str(w.message) for w in said) or "the step runs eagerly")
        return total.item() / (steps * case.batch_size)

    return run
