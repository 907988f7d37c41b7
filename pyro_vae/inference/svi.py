"""``pyro.infer.SVI`` with one fused optimizer, global gradient clipping, and a stop at the first non-finite loss."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.inference.layout import plates_of, sample_sites
from pyro_vae.inference.objectives import Terms
from pyro_vae.randomness import own_randomness
from pyro_vae.registration import Recorder

FUSIBLE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


class NonFiniteLossError(ArithmeticError):
    """The loss is not finite, and the step was not taken.

    Attributes:
        step: Which step, counted from 0.
        site: Name of the first site whose log-probability is not finite, or None.
    """

    def __init__(self, loss: Any, step: int, site: str | None) -> None:
        self.step, self.site = step, site
        where = f"site {site!r} has a log-probability that is not finite" if site else "no single site is to blame"
        super().__init__(
            f"step {step}: expected a finite loss, got {loss}: {where}; the step was not taken. Try a smaller learning rate "
            "or clip_norm."
        )


class FusedOptim:
    """One fused torch optimizer over all parameters, in place of a ``PyroOptim``'s one for each.

    The ``PyroOptim`` stays in charge: its per-parameter optimizers hold the very state that the fused one updates, so
    its ``get_state``, ``set_state``, ``save`` and ``load`` act as ever, and so does a learning rate changed there. Other
    hyperparameters are read when a parameter is first seen.

    Args:
        source: A ``pyro.optim.Adam``, ``AdamW`` or ``SGD`` with dict arguments.
    """

    def __init__(self, source: PyroOptim) -> None:
        self.source = source
        self._fused: torch.optim.Optimizer | None = None
        self._rates: list[Any] = []

    @staticmethod
    def accepts(source: PyroOptim) -> bool:
        """Whether this ``PyroOptim`` can be fused without changing what it does."""
        options = source.pt_optim_args
        plain = isinstance(options, dict) and not {"foreach", "fused", "capturable", "differentiable"} & set(options)
        # A PyroLRScheduler is a PyroOptim too, with an optimizer class of its own for each parameter.
        return (
            type(source) is PyroOptim and source.pt_optim_constructor in FUSIBLE and plain and not source.pt_clip_args
        )

    def __call__(self, params: Iterable[Tensor]) -> None:
        """Step all ``params`` that have a gradient; those not seen before are added."""
        for p in params:
            if p not in self.source.optim_objs:
                waiting = self.source._state_waiting_to_be_consumed
                self.add(p, waiting.pop(pyro.get_param_store().param_name(p), None))
        rates = [single.param_groups[0]["lr"] for single in self.source.optim_objs.values()]
        if rates != self._rates:
            self._fuse()
            self._rates = rates
        if self._fused is not None:
            self._fused.step()

    def add(self, p: Tensor, state: dict[str, Any] | None = None) -> None:
        """Take in a parameter, with the state that its optimizer had before, if any."""
        source = self.source
        single = source.pt_optim_constructor([p], **{"fused": True, **source.pt_optim_args})
        if state is not None:
            single.load_state_dict(state)
        source.optim_objs[p] = single
        self._rates = []

    def _fuse(self) -> None:
        """One optimizer for all, a group for each learning rate, holding the very state of the single ones."""
        singles = self.source.optim_objs
        groups: dict[Any, list[Tensor]] = {}
        for p, single in singles.items():
            groups.setdefault(float(single.param_groups[0]["lr"]), []).append(p)
        self._fused = self.source.pt_optim_constructor(
            [{**singles[members[0]].param_groups[0], "params": members} for members in groups.values()]
        )
        for p, single in singles.items():
            self._fused.state[p] = single.state[p]

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every parameter seen so far, and of those to come."""
        self.source.pt_optim_args = {**self.source.pt_optim_args, "lr": lr}
        for single in self.source.optim_objs.values():
            single.param_groups[0]["lr"] = lr


def as_pyro_optim(optim: Any) -> PyroOptim:
    """A ``PyroOptim``, from one or from ``functools.partial(torch.optim.Adam, lr=...)``.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(optim, functools.partial) and isinstance(optim.func, type) and not optim.args:
        return PyroOptim(optim.func, dict(optim.keywords))
    if not isinstance(optim, PyroOptim):
        raise TypeError(
            "optim: expected a pyro.optim optimizer or functools.partial(torch.optim.Adam, lr=...), got "
            f"{type(optim).__name__}; wrap the class, not an instance."
        )
    return optim


class SVI(pyro.infer.SVI):
    """Stochastic variational inference: ``pyro.infer.SVI``, faster, for any Pyro program.

    ``pyro.optim.Adam``, ``AdamW`` or ``SGD`` with dict arguments become one fused torch optimizer over all parameters;
    any other keeps Pyro's one optimizer for each parameter, with a warning.

    Args:
        model: A Pyro model.
        guide: Its guide.
        optim: A ``pyro.optim`` optimizer, or ``functools.partial(torch.optim.Adam, lr=...)``.
        loss: A ``pyro.infer.ELBO`` (ours or Pyro's), or a function ``loss(model, guide, *args)``.
        loss_and_grads: As in Pyro, for a loss that is a function.
        clip_norm: Largest Euclidean norm of the whole gradient of the loss **per datum** (of the summed loss where the
            program has no data plate); larger gradients are scaled down to it. None: no clipping.
        **kwargs: What ``pyro.infer.SVI`` takes besides.

    Raises:
        TypeError: If ``optim`` is no such thing.
        ValueError: If ``clip_norm`` is not positive.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Any,
        loss: Any,
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        clip_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        source = as_pyro_optim(optim)
        super().__init__(model, guide, source, loss, loss_and_grads, num_samples, num_steps, **kwargs)
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm: expected a positive number, got {clip_norm}; leave it out for no clipping.")
        self.objective = loss
        self.clip_norm = clip_norm
        self.steps_taken = 0
        self._modules = Recorder()
        self._capture = _Capture if clip_norm is None else _CaptureData
        self._stepper: Callable[[Iterable[Tensor]], None] = source
        if FusedOptim.accepts(source):
            self._stepper = FusedOptim(source)
        else:
            warnings.warn(
                "SVI: this optimizer is not fused and keeps one torch optimizer for each parameter; for speed use "
                "pyro.optim.Adam, AdamW or SGD with dict arguments and no clip_args.",
                stacklevel=2,
            )

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One gradient step.

        Args:
            *args: What model and guide take.
            **kwargs: Likewise.

        Returns:
            The loss summed over the batch, nats, as ``pyro.infer.SVI.step`` does.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; no step is taken.
        """
        return self._step(args, kwargs, self._loss_and_grads)[0]

    def step_terms(self, *args: Any, **kwargs: Any) -> Terms:
        """One gradient step, giving the detached :class:`Terms` of the package's own objectives.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; no step is taken.
        """
        return self._step(args, kwargs, self._terms_and_grads)[1]

    def check_finite(self, *args: Any, **kwargs: Any) -> None:
        """Evaluate the loss once, taking no step and no random numbers, to see whether training could go on.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite.
        """
        random_state = torch.get_rng_state()
        with own_randomness(), poutine.block():
            self._refuse_non_finite(self.evaluate_loss(*args, **kwargs), args, kwargs, random_state)

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return self.loss_and_grads(self.model, self.guide, *args, **kwargs), None

    def _terms_and_grads(self, *args: Any, **kwargs: Any) -> tuple[float, Terms]:
        if not hasattr(self.objective, "terms"):
            raise TypeError(
                f"objective: expected one of pyro_vae.elbo, got {type(self.objective).__name__}, whose rate and "
                "distortion are not known; use pyro_vae.elbo('trace'), or SVI.step in a loop of your own."
            )
        terms = self.objective.terms(self.model, self.guide, *args, **kwargs)
        if terms.loss.requires_grad:
            terms.loss.backward()
        return terms.loss.item(), Terms(terms.loss.detach(), terms.distortion, terms.rate)

    def _step(self, args: Any, kwargs: Any, evaluate: Callable[..., tuple[Any, Any]]) -> tuple[Any, Any]:
        random_state = torch.get_rng_state()
        # Pyro's own objectives look for param sites before they go backward; ours do not need them.
        listening: AbstractContextManager[Any] = (
            self._modules.recording() if hasattr(self.objective, "terms") else nullcontext()
        )
        used: dict[int, Tensor] = self._modules.begin()
        with listening, self._capture(used) as capture:
            loss, terms = self._evaluated(evaluate, args, kwargs, random_state)
        params = list(used.values())
        value = type(loss)(map(_item, loss)) if isinstance(loss, tuple) else _item(loss)
        try:
            self._refuse_non_finite(value, args, kwargs, random_state)
        except NonFiniteLossError:
            _clear(params)
            raise
        if self.clip_norm is not None:
            bound = self.clip_norm * capture.num_data
            norm = torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], bound)
            if not math.isfinite(norm.item()):
                _clear(params)
                raise NonFiniteLossError(f"a gradient of norm {norm.item()}", self.steps_taken, None)
        self._stepper(params)
        _clear(params)
        self.steps_taken += 1
        return value, terms

    def _evaluated(self, evaluate: Callable[..., Any], args: Any, kwargs: Any, random_state: Tensor) -> tuple[Any, Any]:
        """Evaluate; where validation by Pyro or torch refuses a number that is not finite, say which step and site."""
        try:
            return evaluate(*args, **kwargs)
        except ValueError as error:
            torch.set_rng_state(random_state)
            site = self._culprit(args, kwargs)
            if site is None:
                raise
            raise NonFiniteLossError(math.nan, self.steps_taken, site) from error

    def _refuse_non_finite(self, value: Any, args: Any, kwargs: Any, random_state: Tensor) -> None:
        if not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
            torch.set_rng_state(random_state)
            raise NonFiniteLossError(value, self.steps_taken, self._culprit(args, kwargs))

    def _culprit(self, args: Any, kwargs: Any) -> str | None:
        """Name of the first site, guide first, whose log-probability is not finite.

        Sites are drawn in the order in which the objectives draw, so the same generator state gives the same values.
        """
        with torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
            guide_trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(*args, **kwargs)
            for trace in (guide_trace, model_trace):
                for name, site in sample_sites(trace):
                    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
                    if not bool(torch.isfinite(log_prob).all()):
                        return name
        return None


class _Capture(Messenger):
    """Sees which parameters one evaluation of the loss used, and adds them to ``params``, by id."""

    num_data = 1

    def __init__(self, params: dict[int, Tensor]) -> None:
        super().__init__()
        self.params = params

    def _pyro_post_param(self, msg: Any) -> None:
        p = msg["value"].unconstrained()
        self.params[id(p)] = p


class _CaptureData(_Capture):
    """Sees, besides, for how many data the loss stands."""

    def __init__(self, params: dict[int, Tensor]) -> None:
        super().__init__(params)
        self._plates: dict[str, Any] | None = None

    def _pyro_post_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ != "_Subsample" and not msg["infer"].get("_deterministic", False):
            plates = plates_of(msg)
            kept = plates if self._plates is None else {k: v for k, v in self._plates.items() if k in plates}
            self._plates = kept

    @property
    def num_data(self) -> int:  # type: ignore[override]
        """Full size of the one plate around all sites, 1 where there is none or several."""
        plates = list((self._plates or {}).values())
        return plates[0].full_size if len(plates) == 1 else 1


def _item(loss: Any) -> Any:
    return loss.item() if isinstance(loss, Tensor) else loss


def _clear(params: Iterable[Tensor]) -> None:
    for p in params:
        p.grad = None
