"""Find the arguments of model and guide that hold the data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from pyro_vae.lookup import unknown
from pyro_vae.testing.subject import Slot, Subject, observed_sites, same


def find_data(subject: Subject, declared: Collection[int | str]) -> tuple[Subject, dict[int | str, set[str]]]:
    """Find the arguments of model and guide that hold the data.

    An argument holds data if it has a row for each datum and rolling its rows changes an observed value. To simulate data,
    the entries of the argument that *equal* the observed value are replaced. The observed value may be the argument itself,
    a view, a cast, the rows picked by the plate, or some entries of each row (``x[:, t]``).

    Args:
        subject: The program.
        declared: Names or positions of data arguments, given by the caller. They count as data even
            if rolling their rows changes nothing.

    Returns:
        The subject with ``rows``, ``data`` and ``slots`` filled in; and a dictionary from each data argument to the names of
        the observed sites that read the argument.

    Raises:
        ValueError: If a declared argument is missing or is not a tensor.
    """
    tensors = subject.call.tensors()
    for key in declared:
        if key not in tensors:
            raise unknown("data argument", key, map(str, tensors))
    subject = replace(subject, rows=tuple(dict.fromkeys([*subject.rows, *declared])))
    feeds: dict[int | str, set[str]] = {}
    values, before = subject.draw()
    again = subject.evaluate(values).observed
    noisy = {n for n, v in before.observed.items() if not same(v, again[n])}
    order = torch.arange(subject.data_plate.size).roll(1)
    for key in subject.rows if subject.data_plate.size > 1 else ():
        after = subject.evaluate(values, subject.reordered(order, (key,))).observed
        moved = {n for n, v in before.observed.items() if not same(v, after[n])} - noisy
        if moved or key in declared:
            feeds[key] = moved
    if subject.data_plate.size == 1:
        feeds = {key: set() for key in subject.rows}
    slots: dict[str, Slot] = {}
    for site, found in observed_sites(subject.model_trace):
        for key in feeds:
            part = subject.data_plate.size == 1 or site in feeds[key]
            slot = None if site in slots else _slot(subject, key, found["value"], part, slots)
            if slot is not None:
                slots[site] = slot
                feeds[key].add(site)
    return replace(subject, data=tuple(feeds), slots=slots), feeds


def _slot(subject: Subject, key: int | str, value: Tensor, part: bool, taken: dict[str, Slot]) -> Slot | None:
    """Locate an observed value in an argument.

    Args:
        subject: The program.
        key: Name or position of the argument.
        value: The observed value.
        part: Accept a value that is only some consecutive entries of each row.
        taken: Places of the other observed values; a free place is preferred.

    Returns:
        The place of the value; None if the argument does not contain it.
    """
    argument = subject.call.tensors()[key]
    rows = argument if subject.picked is None else argument[subject.picked]
    size = len(rows)
    if value.numel() % size or value.numel() > rows.numel() or value.numel() == 0:
        return None
    flat, wanted = (t.detach().double().reshape(size, -1) for t in (rows, value))
    width = wanted.shape[1]
    if width == flat.shape[1]:
        return Slot(key, 0, width) if same(flat, wanted) else None
    if not part or value.dim() == 0 or len(value) != size:
        return None
    windows = flat.unfold(1, width, 1)
    equal = (windows == wanted[:, None]) | (windows.isnan() & wanted.isnan()[:, None])
    starts = equal.all(-1).all(0).nonzero()[:, 0].tolist()
    used = {slot.start for slot in taken.values() if slot.key == key}
    free = [start for start in starts if start not in used] or starts
    return Slot(key, free[0], width) if free else None
