"""Which arguments of a program are its data: found by changing them, and by their values."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from pyro_vae.lookup import unknown
from pyro_vae.testing.program import Subject, observed_sites, same


def find_data(subject: Subject, declared: Collection[int | str]) -> tuple[Subject, dict[int | str, set[str]]]:
    """Find the data among the arguments.

    An argument with a row for each datum is data if rolling its rows moves an observed value. The argument that *is*
    an observed value (the same tensor, a view, a cast, or the rows that the plate picked) is where simulated
    data go.

    Args:
        subject: The program.
        declared: Names or positions that the caller gives; empty: all arguments with as many rows as the plate.

    Returns:
        The subject with ``rows``, ``data`` and ``slots``; and which observed sites each data argument feeds.

    Raises:
        ValueError: If a declared argument is not there or is no tensor.
    """
    tensors = subject.call.tensors()
    for key in declared:
        if key not in tensors:
            raise unknown("data argument", key, map(str, tensors))
    subject = subject.found(rows=tuple(dict.fromkeys([*subject.rows, *declared])))
    feeds: dict[int | str, set[str]] = {}
    values, before = subject.draw()
    again = subject.evaluate(values).observed
    noisy = {n for n, v in before.observed.items() if not same(v, again[n])}
    order = torch.arange(subject.layout.size).roll(1)
    for key in subject.rows if subject.layout.size > 1 else ():
        after = subject.evaluate(values, subject.reordered(order, (key,))).observed
        moved = {n for n, v in before.observed.items() if not same(v, after[n])} - noisy
        if moved or key in declared:
            feeds[key] = moved
    if subject.layout.size == 1:
        feeds = {key: set() for key in subject.rows}
    slots: dict[str, int | str] = {}
    for site, found in observed_sites(subject.model_trace):
        for key in feeds:
            if site not in slots and _holds(subject, tensors[key], found["value"]):
                slots[site] = key
                feeds[key].add(site)
    return subject.found(data=tuple(feeds), slots=slots), feeds


def _holds(subject: Subject, argument: Tensor, value: Tensor) -> bool:
    rows = argument if subject.picked is None else argument[subject.picked]
    if rows is value:
        return True
    return rows.numel() == value.numel() and same(rows.double().flatten(), value.double().flatten())
