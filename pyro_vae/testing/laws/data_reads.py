"""The law ``likelihood``: each datum is scored once, by its observed value."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.inference.program.sites import is_auxiliary_loss, sample_sites
from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.numerics.normalization import elementary
from pyro_vae.testing.subject import Call, Scores, Subject, latent_sites, observed_sites, tolerance

LAW = "likelihood"
#: A likelihood that reads its data is summed over all values of a datum, if there are at most this many.
MOST_VALUES = 256
#: To find two sites that score the same entry of a datum, at most this many entries are changed, one by one.
MOST_ENTRIES = 64


def check_reading(
    subject: Subject, feeds: dict[int | str, set[str]], conditional: Collection[str], ledger: Ledger
) -> bool:
    """Check that only observed values depend on data; return True if so.

    A distribution of the model must not depend on the data. Two exceptions are no error, but return False: the site is
    declared ``conditional``, or an earlier site of the model observes the same argument (teacher forcing).

    Args:
        subject: The program.
        feeds: For each data argument, the observed sites that read the argument.
        conditional: Sites that may depend on the data.
        ledger: Collects the findings.
    """
    if not subject.data or subject.data_plate.size < 2:
        ledger.skips(LAW, "the data", "no data argument with two rows was found; name the argument by data=")
        return False
    try:
        trace = subject.traced(subject.model, subject.call, subject.index, unobserved=True)
    except (RuntimeError, ValueError) as error:
        ledger.skips(LAW, "the data", f"drawing data from the model fails ({type(error).__name__}: {error})")
        return False
    values = {n: s["value"] for n, s in sample_sites(trace) if not s["is_observed"]}
    order, places = torch.arange(subject.data_plate.size).roll(1), [n for n, _ in sample_sites(subject.model_trace)]
    clean = True
    for key in subject.data:
        call = subject.reordered(order, (key,))
        after = subject.traced(subject.model, call, subject.index | values, unobserved=True)
        for name in _moved(trace, after):
            clean = False
            earlier = [s for s in feeds[key] if places.index(s) < places.index(name)]
            if name not in conditional and not earlier:
                _report_reading(subject, name, ledger)
    if clean:
        ledger.holds(LAW, "the data", "the model reads them only through observed values")
    return clean


def _moved(before: Trace, after: Trace) -> list[str]:
    terms = []
    for trace in (before, after):
        sites = [(n, s) for n, s in sample_sites(trace) if not is_auxiliary_loss(s)]
        terms.append({n: s["fn"].log_prob(s["value"]) for n, s in sites})
    return [n for n, t in terms[0].items() if not float((terms[1][n] - t).abs().max()) <= tolerance(t)]


def _report_reading(subject: Subject, name: str, ledger: Ledger) -> None:
    where = f"site {name!r} of the model"
    if name in latent_sites(subject.model_trace):
        figures = "its prior changes with the data it explains"
        causes = (
            "an encoder's output used in the model; p(z) may depend on covariates, but on x only if the site is declared "
            "conditional=[...]"
        )
    else:
        mass = _mass_over_data(subject, name)
        if mass is not None and float((mass - 1).abs().max()) < 0.01:
            ledger.holds(LAW, where, "it reads its data, but sums to 1 over all values, as an autoregressive site does")
            return
        shown = "" if mass is None else f", and sums to {float(mass.flatten()[0]):.4g} over all values"
        figures = f"its parameters change with the value it scores{shown}"
        causes = "a skip connection from the data, or a scale fitted to them; declare an autoregressive site conditional=[...]"
    ledger.breaks(LAW, where, figures, causes)


def _mass_over_data(subject: Subject, name: str) -> Tensor | None:
    """Return the sum of p(x|z) over all values of a discrete x.

    Returns:
        The sum at site ``name``, shape ``(B,)``; None if the values are continuous or too many.
    """
    site, slot = dict(observed_sites(subject.model_trace))[name], subject.slots.get(name)
    base = elementary(site["fn"])
    if slot is None or subject.picked is not None or not getattr(base, "has_enumerate_support", False):
        return None
    key, _, bits = slot
    old = subject.call.tensors()[key]
    if bits < old[0].numel():
        return None
    choices = base.enumerate_support(expand=False).flatten()
    if len(choices) ** bits > MOST_VALUES:
        return None
    values, _ = subject.draw()
    total: Tensor | float = 0.0
    for row in torch.cartesian_prod(*[choices] * bits).reshape(-1, *old[0].shape):
        call = subject.call.put({key: row.to(old.dtype).expand(old.shape).clone()})
        total = total + subject.evaluate(values, call).model[name].double().exp()
    return torch.as_tensor(total)


def check_once(
    subject: Subject, feeds: dict[int | str, set[str]], conditional: Collection[str], ledger: Ledger
) -> None:
    """Check that no entry of the data is observed at two sites."""
    values, before = subject.draw()
    for key, sites in feeds.items():
        names = sorted(sites - set(conditional))
        if len(names) < 2:
            continue
        for call in _one_entry_rolled(subject, key):
            found = _scored(subject, names, before, subject.evaluate(values, call))
            if len(found) > 1:
                figures = f"an entry of argument {key!r} is also observed at site {found[0]!r}"
                causes = (
                    "the same data in obs= of two sites; remove one site, or declare a deliberate one conditional=[...]"
                )
                ledger.breaks(LAW, f"site {found[1]!r}", figures, causes)
                return
    ledger.holds(LAW, "the observed values", "no entry of the data is observed at two sites")


def _one_entry_rolled(subject: Subject, key: int | str) -> Iterator[Call]:
    """Yield calls in which one entry of argument ``key`` is changed.

    In the changed call each datum has its neighbour's value of that entry.
    """
    order = torch.arange(subject.data_plate.size).roll(1)
    old, rolled = (c.tensors()[key] for c in (subject.call, subject.reordered(order, (key,))))
    entries = old[0].numel()
    for j in torch.linspace(0, entries - 1, min(entries, MOST_ENTRIES)).round().long().tolist():
        new = old.reshape(len(old), -1).clone()
        new[:, j] = rolled.reshape(len(old), -1)[:, j]
        yield subject.call.put({key: new.reshape(old.shape)})


def _scored(subject: Subject, names: list[str], before: Scores, after: Scores) -> list[str]:
    """Return the sites that score the same changed entry of the data.

    The first site in the list is the first that scores the entry. Each further site scores it again for the same datum.
    """
    found: list[str] = []
    rows = torch.zeros(subject.data_plate.size, dtype=torch.bool)
    for name in names:
        moved = (before.model[name] - after.model[name]).abs() > tolerance(before.model[name])
        moved = moved.cpu() & subject.rows_of(name, before.observed[name] != after.observed[name]).cpu()
        if bool(moved.any()) and (not found or bool((rows & moved).any())):
            found.append(name)
            rows |= moved
    return found
