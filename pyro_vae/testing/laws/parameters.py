"""The law ``gradients``: exactly the parameters in Pyro's store have a gradient."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pyro_vae.inference.program.traces import Program
from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.subject import Subject, latent_sites, parameters

LAW = "gradients"


def check_parameters(subject: Subject, without_gradient: tuple[str, ...], ledger: Ledger) -> None:
    """Check that exactly the parameters in Pyro's store have a gradient.

    ``without_gradient`` has substrings of the names of parameters that may have no gradient.
    """
    loss, known = _graph(subject)
    if loss.requires_grad:
        registered = {id(p) for p in known.values()}
        for leaf in leaves_of(loss):
            if id(leaf) not in registered and leaf.requires_grad:
                figures = f"the loss uses a parameter of shape {tuple(leaf.shape)} that is not in the parameter store"
                causes = "a network without pyro.module(name, network), or a module that is no PyroModule; SVI never trains it"
                ledger.breaks(LAW, f"parameter {_name_of(leaf, subject)!r}", figures, causes)
                return
    undeclared = {n: p for n, p in known.items() if p.requires_grad and not any(d in n for d in without_gradient)}
    if not undeclared:
        ledger.skips(LAW, "the parameters", "the program has no parameters in the parameter store")
        return
    for name in _without_gradient(subject, loss, undeclared):
        causes = (
            "a network that is registered but not used, or whose output is detached (.detach(), torch.no_grad()); declare a "
            "parameter that should stay fixed by without_gradient=[...]"
        )
        ledger.breaks(LAW, f"parameter {name!r}", "the loss has no gradient with respect to it", causes)
        return
    ledger.holds(LAW, "the parameters", f"all {len(undeclared)} have a gradient")


def _graph(subject: Subject) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a differentiable loss, and all parameters by name."""
    guide_trace = subject.traced(subject.guide, subject.call, subject.index)
    values = {n: s["value"] for n, s in latent_sites(guide_trace).items()}
    model_trace = subject.traced(subject.model, subject.call, subject.index | values)
    known = parameters(guide_trace, model_trace)
    scores = subject.score(model_trace, guide_trace)
    loss = -scores.log_w.sum()
    for name, site in latent_sites(guide_trace).items():
        if not site["fn"].has_rsample:
            loss = loss + (-scores.log_w.detach() * scores.guide[name]).sum()
    return loss, known


def _without_gradient(subject: Subject, loss: Tensor, params: dict[str, Tensor]) -> list[str]:
    """Return the names of parameters that the loss does not depend on.

    Their gradient is missing, or remains 0 after all parameters have been moved by random steps.
    """
    names, leaves = list(params), list(params.values())
    if not loss.requires_grad:
        return names
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    missing = [n for n, g in zip(names, found, strict=True) if g is None]
    zero = {n for n, g in zip(names, found, strict=True) if g is not None and not bool(g.any())}
    if missing or not zero:
        return missing
    before = [leaf.detach().clone() for leaf in leaves]
    try:
        for _ in range(3):  # a layer that starts at zero hides the gradients of layers below it
            with torch.no_grad():
                for leaf, old in zip(leaves, before, strict=True):
                    leaf.copy_(old + 0.1 * (1 + old.abs()) * torch.randn_like(old))
            moved, again = _graph(subject)
            grads = torch.autograd.grad(moved, [again[n] for n in zero], allow_unused=True)
            zero = {n for n, g in zip(list(zero), grads, strict=True) if g is None or not bool(g.any())}
            if not zero:
                break
    finally:
        with torch.no_grad():
            for leaf, old in zip(leaves, before, strict=True):
                leaf.copy_(old)
    return sorted(zero)


def leaves_of(loss: Tensor) -> Iterator[Tensor]:
    """Yield the leaf tensors in the graph of a loss."""
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(parent for parent, _ in node.next_functions)


def _name_of(leaf: Tensor, subject: Subject) -> str:
    """Return a parameter's name in the modules that model and guide use."""
    for fn in (subject.model, subject.guide):
        for name, module in modules_of(fn).items():
            for path, parameter in module.named_parameters():
                if parameter is leaf:
                    return f"{name}.{path}" if name else path
    return "(unknown)"


def modules_of(fn: Program) -> dict[str, nn.Module]:
    """Return the modules that a function uses, by name.

    They are the function itself, the object it is a method of, and the global and closure variables it reads.
    """
    found: dict[str, nn.Module] = {}
    if isinstance(fn, nn.Module):
        found[type(fn).__name__] = fn
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, nn.Module):
        found[type(owner).__name__] = owner
    function = inspect.unwrap(getattr(fn, "__func__", fn))
    if inspect.isfunction(function):
        names = inspect.getclosurevars(function)
        refers = {**names.globals, **names.nonlocals}
        found |= {n: v for n, v in refers.items() if isinstance(v, nn.Module)}
    return found
