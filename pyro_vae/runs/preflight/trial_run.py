"""A trial: one small step of training and evaluation before a run."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae import schedules
from pyro_vae.data import Data, Split, binarize
from pyro_vae.inference.kl.betas import Betas
from pyro_vae.inference.objectives.bound import DRAWN_INSTEAD
from pyro_vae.inference.training.unregistered import check_reached
from pyro_vae.inference.training.validation import first_draw
from pyro_vae.models.checks import unregistered_message, unsaved_message
from pyro_vae.models.protocol import training_inputs
from pyro_vae.runs.build import make_objective
from pyro_vae.runs.config import Config
from pyro_vae.runs.preflight.compatibility import nothing_to_sum
from pyro_vae.runs.preflight.methods import try_methods
from pyro_vae.runs.preflight.user_errors import program
from pyro_vae.system.randomness import own_randomness


@torch.no_grad()
def try_out(config: Config, vae: Any, data: Data) -> None:
    """Run on two data what a run will run, so that what fails or is refused is said before anything is written.

    Raises:
        ValueError: If the objective refuses the model, the program fails, or a method gives another shape than it should.
    """
    t = config.train
    x, *others = training_inputs(vae, data.train)[_two(data.train)]
    batch = (binarize(x, "threshold") if data.redraw else x, *others)
    pair = Betas(schedules.parse_all(t.anneal, t.beta)).apply(vae.model, vae.guide)
    was_training, name = vae.training, config.model.model
    with own_randomness(t.seed), pyro.get_param_store().scope(), warnings.catch_warnings(), program(name, vae):
        warnings.filterwarnings("ignore", message=DRAWN_INSTEAD)
        warnings.filterwarnings("error", message="TraceEnum_ELBO found no sample sites")
        warnings.filterwarnings(
            "ignore", message="Found (vars in model|non-auxiliary vars|plate statements)"
        )  # errors, below
        _check_registered(name, vae, batch)
        try:
            make_objective(config).terms(*pair, *batch)
        except UserWarning as warning:
            if "found no sample sites" not in str(warning):
                raise
            raise ValueError(nothing_to_sum(vae, batch)) from None
        vae.eval()
        try:
            first_draw(vae.model, vae.guide, batch)
            _check_registered(name, vae, batch)
            try_methods(name, vae, batch)
        finally:
            vae.train(was_training)
        check_reached(name, vae, make_objective(config), pair, batch)


def _check_registered(name: str, vae: Any, batch: tuple[Tensor, ...]) -> None:
    """Refuse a model whose parameters never come to Pyro's notice, and one with parameters that no module holds."""
    met = (poutine.trace(part, param_only=True).get_trace(*batch).nodes for part in (vae.guide, vae.model))
    if any(p.requires_grad for p in vae.parameters()) and not any(met):
        raise ValueError(unregistered_message(name))
    own = {id(p) for p in vae.parameters()}
    for parameter, value in pyro.get_param_store().named_parameters():
        if id(value) not in own:
            raise ValueError(f"model {name}, {unsaved_message(parameter)}")


def _two(split: Split) -> Tensor:
    """Two data, one with a label and one without where there are both."""
    if split.y is None or split.y.dim() > 1:
        return torch.arange(min(2, len(split.x)))
    return torch.stack([split.y.argmin(), split.y.argmax()]).cpu()
