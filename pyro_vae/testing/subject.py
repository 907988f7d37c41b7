"""The subject of the checks: a model and guide with their arguments."""

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
    """Return True if the site is a ``pyro.factor``."""
    return type(site["fn"]).__name__ == "Unit"


class Fixed(Messenger):
    """Handler that sets sample sites to given values; other sites are drawn.

    With ``unobserved``, observed sites too are set or drawn, as if they were latent. Unlike ``poutine.replay`` and
    ``poutine.uncondition``, this handler does not change the user's ``infer`` dictionaries.
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
    """The arguments of one call of model and guide."""

    args: Args
    kwargs: Kwargs

    def tensors(self) -> dict[int | str, Tensor]:
        """Return the arguments that are tensors, by position or name."""
        found: dict[int | str, object] = dict(enumerate(self.args))
        found.update(self.kwargs)
        return {key: value for key, value in found.items() if isinstance(value, Tensor)}

    def put(self, new: Mapping[int | str, Tensor]) -> Call:
        """Return a copy in which the arguments in ``new`` are replaced."""
        args = tuple(new.get(i, value) for i, value in enumerate(self.args))
        return Call(args, {key: new.get(key, value) for key, value in self.kwargs.items()})


class Slot(NamedTuple):
    """Place of an observed value in an argument of the call.

    With its rows flattened, the value is ``argument[:, start : start + width]`` for the argument at ``key``.
    """

    key: int | str
    start: int
    width: int


class Scores(NamedTuple):
    """Log-probabilities of all sites for one draw of the latent values.

    Each has shape ``(B,)``, in nats. Plate scales and ``poutine.scale`` are left out.

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
        """Return all log-probabilities, by a description of the site."""
        ours = {f"site {name!r} of the model": term for name, term in self.model.items()}
        return ours | {f"site {name!r} of the guide": term for name, term in self.guide.items()}


@dataclass(frozen=True)
class Subject:
    """The model and guide under test, with their sites and data.

    Attributes:
        model: The model.
        guide: The guide.
        call: The arguments of model and guide.
        data_plate: The plate that encloses the data.
        index: Row indices that subsampling plates drew in the first run, by name of the plate. All later runs use them.
        model_trace: Trace of the first run of the model.
        guide_trace: Trace of the first run of the guide.
        rows: Positions or names of the arguments with a row for each datum.
        data: Positions or names of the arguments in ``rows`` that observed sites read.
        slots: Place of each observed value in an argument, by name of the site.
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
        """Indices of the rows in the batch; None for all rows."""
        index = self.index.get(self.data_plate.plate)
        return None if index is None or not self.subsamples else index

    @property
    def subsamples(self) -> bool:
        """True if the model picks a batch from its arguments' rows."""
        frames = [f for _, s in sample_sites(self.model_trace) for f in s["cond_indep_stack"]]
        full = next(f.full_size for f in frames if f.name == self.data_plate.plate)
        return full > self.data_plate.size and any(len(self.call.tensors()[key]) == full for key in self.rows)

    def draw(self, call: Call | None = None) -> tuple[Values, Scores]:
        """Draw from the guide; return the latent values and all log-probabilities."""
        call = call or self.call
        guide_trace = self.traced(self.guide, call, self.index)
        values = latent_values(guide_trace)
        return values, self.score(self.traced(self.model, call, self.index | values), guide_trace)

    def evaluate(self, values: Values, call: Call | None = None, index: Values | None = None) -> Scores:
        """Return all log-probabilities at given latent values."""
        call, known = call or self.call, (self.index if index is None else index) | values
        return self.score(self.traced(self.model, call, known), self.traced(self.guide, call, known))

    def traced(self, fn: Program, call: Call, values: Mapping[str, Tensor], unobserved: bool = False) -> Trace:
        """Return a trace of ``fn`` whose sites are fixed to ``values``.

        With ``unobserved``, sites without a value are drawn even if observed.
        """
        with Fixed(values, unobserved):
            return poutine.trace(fn).get_trace(*call.args, **call.kwargs)

    def score(self, model_trace: Trace, guide_trace: Trace) -> Scores:
        """Return the log-probabilities of a model trace and a guide trace."""
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
            The call in which x replaces the data; the values of z, by name of the site; and the values of x, by name of the
            site.
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
        """Return the call whose batch has the rows ``order`` of this batch.

        Only the arguments in ``keys`` are changed; None: all in ``rows``. A row may occur several times.
        """
        new = {}
        for key in self.rows if keys is None else keys:
            old = self.call.tensors()[key]
            new[key] = old[order] if self.picked is None else old.index_put((self.picked,), old[self.picked][order])
        return self.call.put(new)

    def take(self, values: Values, order: Tensor) -> Values:
        """Return the latent values of the data with indices ``order``."""
        sites = dict(sample_sites(self.guide_trace)) | dict(sample_sites(self.model_trace))
        taken = {}
        for name, value in values.items():
            axis = value.dim() - sites[name]["fn"].event_dim + self.data_plate.dim
            taken[name] = value.index_select(axis, order.to(value.device))
        return taken

    def rows_of(self, name: str, marked: Tensor) -> Tensor:
        """Return True for each datum with a marked entry in an observation.

        Args:
            name: Name of the site.
            marked: True for each marked entry of the site's value.

        Returns:
            Shape ``(B,)``, bool.
        """
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
    """Return True if two tensors are equal, with NaN equal to NaN."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def tolerance(*values: Tensor) -> float:
    """Return the rounding error allowed in log-probabilities, in nats.

    It is 1e-5 * (1 + the largest absolute value).
    """
    return 1e-5 * (1 + max(float(v.detach().abs().max()) if v.numel() else 0.0 for v in values))


def outer_scale(site: Site) -> float:
    """Return a site's mean scale, without the factor N/B of its plates."""
    scale = float(torch.as_tensor(site["scale"], dtype=torch.float64).mean())
    for frame in site["cond_indep_stack"]:
        scale *= frame.size / frame.full_size
    return scale


def parameters(*traces: Trace) -> dict[str, Tensor]:
    """Return the unconstrained parameters that occur in the traces, by name."""
    found = {}
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "param":
                value = site["value"]
                found[name] = value.unconstrained() if hasattr(value, "unconstrained") else value
    return found
