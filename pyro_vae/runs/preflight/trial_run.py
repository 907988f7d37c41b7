"""A trial run: one training step and one evaluation on two data."""

from __future__ import annotations

import copy
import warnings

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.data import Split, binarize
from pyro_vae.inference.kl.betas import Betas
from pyro_vae.inference.objectives.bound import DRAWN_INSTEAD
from pyro_vae.inference.program.sites import drawn_sites
from pyro_vae.inference.training.unregistered import check_reached
from pyro_vae.inference.training.validation import first_draw
from pyro_vae.models.checks import unregistered_message, unsaved_message
from pyro_vae.models.protocol import PyroModel, training_inputs
from pyro_vae.runs.build import Plan
from pyro_vae.runs.preflight.methods import check_methods
from pyro_vae.runs.preflight.user_errors import program_errors
from pyro_vae.system.randomness import own_randomness


@torch.no_grad()
def run_trial(plan: Plan) -> None:
    """Try the objective, the validation and the model's methods on two data.

    Raises:
        ValueError: If the objective refuses the model, the program fails, or a method returns a wrong value.
    """
    vae, name = plan.vae, plan.config.model.model
    batch = _two_data(plan)
    pair = Betas(plan.beta).apply(vae.model, vae.guide)
    # Evaluate a copy: KL controls count their steps, and Pyro's objectives store the plate depth that they find.
    objective = copy.deepcopy(plan.objective)
    was_training = vae.training
    with own_randomness(plan.config.train.seed), pyro.get_param_store().scope(), warnings.catch_warnings():
        _filter_warnings()
        with program_errors(name, vae):
            _check_registered(name, vae, batch)
            try:
                objective.terms(*pair, *batch)
            except UserWarning as warning:
                if "found no sample sites" not in str(warning):
                    raise
                raise ValueError(_no_site_to_enumerate(vae, batch)) from None
            vae.eval()
            try:
                first_draw(vae.model, vae.guide, batch)
                _check_registered(name, vae, batch)
                check_methods(name, vae, batch)
            finally:
                vae.train(was_training)
            check_reached(name, vae, objective, pair, batch)


def _two_data(plan: Plan) -> tuple[Tensor, ...]:
    """Choose two training data, if possible one labelled and one unlabelled."""
    x, *others = training_inputs(plan.vae, plan.data.train)[_two_rows(plan.data.train)]
    return (binarize(x, "threshold") if plan.data.redraw else x, *others)


def _two_rows(split: Split) -> Tensor:
    if split.y is None or split.y.dim() > 1:
        return torch.arange(min(2, len(split.x)))
    return torch.stack([split.y.argmin(), split.y.argmax()]).cpu()


def _filter_warnings() -> None:
    """Silence Pyro's warnings about faults that this module reports as errors."""
    warnings.filterwarnings("ignore", message=DRAWN_INSTEAD)
    warnings.filterwarnings("error", message="TraceEnum_ELBO found no sample sites")
    warnings.filterwarnings("ignore", message="Found (vars in model|non-auxiliary vars|plate statements)")


def _check_registered(name: str, vae: PyroModel, batch: tuple[Tensor, ...]) -> None:
    """Refuse a model whose parameters are unregistered or outside its modules."""
    traces = (poutine.trace(part, param_only=True).get_trace(*batch).nodes for part in (vae.guide, vae.model))
    if any(p.requires_grad for p in vae.parameters()) and not any(traces):
        raise ValueError(unregistered_message(name))
    own = {id(p) for p in vae.parameters()}
    for parameter, value in pyro.get_param_store().named_parameters():
        if id(value) not in own:
            raise ValueError(f"model {name}, {unsaved_message(parameter)}")


def _no_site_to_enumerate(vae: PyroModel, batch: tuple[Tensor, ...]) -> str:
    """Return the error text if ``enum`` finds no site to enumerate."""
    trace = poutine.trace(vae.guide).get_trace(*batch)
    names = ", ".join(repr(name) for name, _ in drawn_sites(trace))
    return (
        f"elbo enum: expected a discrete latent site marked infer={{'enumerate': 'parallel'}}, got a guide that draws {names}; "
        "pass --elbo trace or mean-field."
    )
