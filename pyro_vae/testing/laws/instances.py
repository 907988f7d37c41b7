"""The law ``instances``: a second instance has its own parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from pyro_vae.inference.program.traces import Program
from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.laws.parameters import leaves_of
from pyro_vae.testing.subject import Subject, latent_sites, parameters

LAW = "instances"
Factory = Callable[[], tuple[Program, Program]]


def check_instances(subject: Subject, factory: Factory | None, ledger: Ledger) -> None:
    """Check that a second model and guide have parameters of their own.

    The parameters of the first and the second instance must be different tensors in Pyro's parameter store.

    Args:
        subject: The first instance of model and guide.
        factory: Function that returns a second model and guide; None: copy the object that has both as methods.
        ledger: Collects the findings.
    """
    pair = factory() if factory is not None else _copy(subject)
    if isinstance(pair, str):
        ledger.skips(LAW, "a second instance", pair)
        return
    causes = (
        "both instances use one name in pyro.module, pyro.param or PyroParam; give each instance its own names (for a "
        "PyroModule: pyro.settings.set(module_local_params=True)), or call pyro.clear_param_store() between two fits"
    )
    try:
        second = replace(subject, model=pair[0], guide=pair[1])
        guide_trace = second.traced(second.guide, second.call, second.index)
        values = {n: s["value"] for n, s in latent_sites(guide_trace).items()}
        model_trace = second.traced(second.model, second.call, second.index | values)
        loss = second.score(model_trace, guide_trace).log_w.sum()
    except (RuntimeError, ValueError) as error:
        ledger.breaks(LAW, "a second instance", f"it raises {type(error).__name__}: {error}", causes)
        return
    first = {id(p) for p in parameters(subject.guide_trace, subject.model_trace).values()}
    used = {id(leaf) for leaf in leaves_of(loss)}
    own = parameters(guide_trace, model_trace)
    for name, leaf in own.items():
        if id(leaf) in first:
            figures = "the store returns the first instance's tensor"
            if id(leaf) not in used:
                figures += ", which the second loss does not use: the second parameter never trains"
            ledger.breaks(LAW, f"parameter {name!r} of a second instance", figures, causes)
            return
    if not own:
        ledger.skips(LAW, "a second instance", "the instance has no parameters in the store")
    else:
        ledger.holds(LAW, "a second instance", f"it shares none of its {len(own)} parameters with the first")


def _copy(subject: Subject) -> tuple[Program, Program] | str:
    """Copy the object that has model and guide as methods.

    Returns:
        The model and guide of the copy; if there is no copy, the reason.
    """
    owner = getattr(subject.model, "__self__", None)
    if owner is None or getattr(subject.guide, "__self__", None) is not owner:
        return "model and guide are not methods of one object; pass factory=, a function that returns a second pair"
    try:
        with torch.no_grad():
            second = copy.deepcopy(owner)
    except (RuntimeError, TypeError) as error:
        return (
            f"the object with model and guide cannot be copied ({error}); pass factory=, a function that returns a second "
            "pair"
        )
    return getattr(second, subject.model.__name__), getattr(second, subject.guide.__name__)
