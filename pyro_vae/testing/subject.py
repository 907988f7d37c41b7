"""The subject of the checks: a model and guide, evaluated and simulated."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import Site, is_auxiliary_loss, sample_sites, site_log_prob
from pyro_vae.inference.program.traces import Args, Kwargs, Program

Values = dict[str, Tensor]


def is_factor(site: Mapping[str, object]) -> bool:
    """Return True for a ``pyro.factor``."""
    return type(site["fn"]).__name__ == "Unit"


class Fixed(Messenger):
    """Handler that gives sample sites chosen values.

    With ``unobserved``, observed sites are treated like latent sites: drawn, or given values.
    Unlike ``poutine.replay`` and ``poutine.uncondition``, this handler does not change the user's ``infer`` dictionaries.
    """

    def __init__(self, values: Mapping[str, Tensor], unobserved: bool = False) -> None:
        super().__init__()
        self.values, self.unobserved = values, unobserved

    def _pyro_sample(self, msg: MutableMapping[str, Any]) -> None:
        if msg["infer"].get("_deterministic") or msg["infer"].get("auxiliary_loss") or is_factor(msg):
            return
        if msg["is_observed"] and self.unobserved:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class Call(NamedTuple):
    """Arguments of model and guide."""

    args: Args
    kwargs: Kwargs

    def tensors(self) -> dict[int | str, Tensor]:
        """Return the tensor arguments, by position or name."""
        found: dict[int | str, object] = dict(enumerate(self.args))
        found.update(self.kwargs)
        return {key: value for key, value in found.items() if isinstance(value, Tensor)}

    def put(self, new: Mapping[int | str, Tensor]) -> Call:
        """Return the call with some arguments replaced."""
        args = tuple(new.get(i, value) for i, value in enumerate(self.args))
        return Call(args, {key: new.get(key, value) for key, value in self.kwargs.items()})


class Slot(NamedTuple):
    """Place of an observed value in an argument.

    The value is entries ``start`` to ``start + width`` of each row of argument ``key``.
    """

    key: int | str
    start: int
    width: int


class Scores(NamedTuple):
    """Log-probabilities of one draw, nats, without scales; each of shape ``(B,)``.

    Attributes:
        model: Log-probabilities of the model's sites, latent and observed, by name.
        guide: Log-probabilities of the guide's sites, by name.
        observed: Values of the observed sites, by name.
    """

    model: dict[str, Tensor]
    guide: dict[str, Tensor]
    observed: Values

    @property
    def log_w(self) -> Tensor:
        """Log importance weights, shape ``(B,)``."""
        return sum(self.model.values()) - sum(self.guide.values())  # type: ignore[return-value]

    def parts(self) -> dict[str, Tensor]:
        """Return every log-probability, by a description of the site."""
        ours = {f"site {name!r} of the model": term for name, term in self.model.items()}
        return ours | {f"site {name!r} of the guide": term for name, term in self.guide.items()}


@dataclass(frozen=True)
class Subject:
    """The model and guide under test, with their sites and data.

    Attributes:
        model: The model.
        guide: The guide.
        call: The arguments of model and guide.
        data_plate: The plate of the data.
        index: Fixed row indices of the plates that subsample, by plate.
        model_trace: A first trace of the model.
        guide_trace: A first trace of the guide.
        rows: Arguments with a row for each datum.
        data: Arguments in ``rows`` that observed sites read.
        slots: Place of each observed value in an argument, by site.
    """

    model: Program
    guide: Program
    call: Call
    data_plate: DataPlate
    index: Values
    model_trace: Trace
    guide_trace: Trace
    rows: tuple[int | str, ...] = ()
    data: tuple[int | str, ...] = ()
    slots: dict[str, Slot] = field(default_factory=dict)

    @property
    def picked(self) -> Tensor | None:
        """Rows of an argument that form the batch; None for all rows."""
        index = self.index.get(self.data_plate.plate)
        return None if index is None or not self.subsamples else index

    @property
    def subsamples(self) -> bool:
        """True if the program itself subsamples rows of its arguments."""
        frames = [f for _, s in sample_sites(self.model_trace) for f in s["cond_indep_stack"]]
        full = next(f.full_size for f in frames if f.name == self.data_plate.plate)
        return full > self.data_plate.size and any(len(self.call.tensors()[key]) == full for key in self.rows)

    def draw(self, call: Call | None = None) -> tuple[Values, Scores]:
        """Draw from the guide; return the latent values and their log-probabilities."""
        call = call or self.call
        guide_trace = self.traced(self.guide, call, self.index)
        values = latent_values(guide_trace)
        return values, self.score(self.traced(self.model, call, self.index | values), guide_trace)

    def evaluate(self, values: Values, call: Call | None = None, index: Values | None = None) -> Scores:
        """Return the log-probabilities at given latent values, without random draws."""
        call, known = call or self.call, (self.index if index is None else index) | values
        return self.score(self.traced(self.model, call, known), self.traced(self.guide, call, known))

    def traced(self, fn: Program, call: Call, values: Mapping[str, Tensor], unobserved: bool = False) -> Trace:
        """Return a trace with sites fixed to these values."""
        with Fixed(values, unobserved):
            return poutine.trace(fn).get_trace(*call.args, **call.kwargs)

    def score(self, model_trace: Trace, guide_trace: Trace) -> Scores:
        """Return the log-probabilities of two traces for each datum."""
        data_plate = self.data_plate.at(model_trace)
        terms: list[dict[str, Tensor]] = []
        for trace in (model_trace, guide_trace):
            sites = [(n, s) for n, s in sample_sites(prune_subsample_sites(trace)) if not is_auxiliary_loss(s)]
            terms.append({name: data_plate.per_datum(site_log_prob(site))[0] for name, site in sites})
        observed = {n: s["value"] for n, s in observed_sites(model_trace)}
        return Scores(terms[0], terms[1], observed)

    def simulate(self) -> tuple[Call, Values, Values]:
        """Draw (z, x) from the model.

        Returns:
            The call with x in place of the data; the values of z; the values of x, both by site.
        """
        trace = self.traced(self.model, self.call, self.index, unobserved=True)
        names = {n for n, _ in observed_sites(self.model_trace)}
        values = {n: s["value"].detach() for n, s in sample_sites(trace) if not s["is_observed"]}
        x = {n: values.pop(n) for n in names}
        new: dict[int | str, Tensor] = {}
        for site, (key, start, width) in self.slots.items():
            old = new.get(key, self.call.tensors()[key])
            flat = old.reshape(len(old), -1).clone()
            rows = slice(None) if self.picked is None else self.picked
            flat[rows, start : start + width] = x[site].to(old.dtype).reshape(-1, width)
            new[key] = flat.reshape(old.shape)
        return self.call.put(new), values, x

    def reordered(self, order: Tensor, keys: tuple[int | str, ...] | None = None) -> Call:
        """Return the call with reordered batch rows; rows may repeat."""
        new = {}
        for key in self.rows if keys is None else keys:
            old = self.call.tensors()[key]
            new[key] = old[order] if self.picked is None else old.index_put((self.picked,), old[self.picked][order])
        return self.call.put(new)

    def take(self, values: Values, order: Tensor) -> Values:
        """Return the latent values with the data in this order."""
        sites = dict(sample_sites(self.guide_trace)) | dict(sample_sites(self.model_trace))
        taken = {}
        for name, value in values.items():
            axis = value.dim() - sites[name]["fn"].event_dim + self.data_plate.dim
            taken[name] = value.index_select(axis, order.to(value.device))
        return taken

    def rows_of(self, name: str, marked: Tensor) -> Tensor:
        """Return which data have a marked entry at a site, bool, ``(B,)``."""
        event_dim = dict(sample_sites(self.model_trace))[name]["fn"].event_dim
        inner = marked.double().flatten(marked.dim() - event_dim).sum(-1) if event_dim else marked.double()
        return self.data_plate.per_datum(inner)[0] > 0


def observed_sites(trace: Trace) -> list[tuple[str, Site]]:
    """Return the observed sites, except factors and auxiliary losses."""
    sites = [(n, s) for n, s in sample_sites(trace) if s["is_observed"]]
    return [(n, s) for n, s in sites if not is_auxiliary_loss(s) and not is_factor(s)]


def latent_sites(trace: Trace) -> dict[str, Site]:
    """Return the latent sites, by name."""
    return {n: s for n, s in sample_sites(trace) if not s["is_observed"] and not is_auxiliary_loss(s)}


def latent_values(trace: Trace) -> Values:
    """Return the values of the latent sites, by name."""
    return {n: s["value"] for n, s in latent_sites(trace).items()}


def same(one: Tensor, other: Tensor) -> bool:
    """Return True if two values are equal; NaN equals NaN."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def tolerance(*values: Tensor) -> float:
    """Return the rounding error allowed in log-probabilities: relative 1e-5, nats."""
    return 1e-5 * (1 + max(float(v.detach().abs().max()) if v.numel() else 0.0 for v in values))


def outer_scale(site: Site) -> float:
    """Return a site's mean scale, without the N/B of plates."""
    scale = float(torch.as_tensor(site["scale"], dtype=torch.float64).mean())
    for frame in site["cond_indep_stack"]:
        scale *= frame.size / frame.full_size
    return scale


def parameters(*traces: Trace) -> dict[str, Tensor]:
    """Return the unconstrained parameters in the traces, by name."""
    found = {}
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "param":
                value = site["value"]
                found[name] = value.unconstrained() if hasattr(value, "unconstrained") else value
    return found
