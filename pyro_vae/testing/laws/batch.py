"""The laws ``independence`` and ``invariance``: other data change no datum's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.inference.program.sites import plates_of
from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.subject import Call, Scores, Subject, Values, latent_sites, observed_sites, outer_scale, tolerance

BATCH_CAUSES = (
    "batch statistics (call .eval(), or normalize within a datum), a reshape, roll or mean over the batch dimension, or a "
    "sum over the batch inside a datum's likelihood"
)


def check_independence(subject: Subject, ledger: Ledger) -> None:
    """Check that changing one datum changes no other datum's log-probabilities.

    The same is required if the latent value of one datum is changed.
    """
    law, size = "independence", subject.data_plate.size
    if size < 2:
        ledger.skips(law, "the batch", "it has a single datum; pass at least two, better five or more")
        return
    if not subject.data:
        ledger.skips(law, "the data", "no argument changes an observed value; name the data argument by data=")
    values, _ = subject.draw()
    before = subject.evaluate(values)
    for i in sorted({0, size // 2, size - 1}):
        order = torch.arange(size)
        order[i] = (i + 1) % size
        changes = {"the latent value": subject.evaluate(subject.take(values, order))}
        if subject.data:
            changes["the datum"] = subject.evaluate(values, subject.reordered(order, subject.data))
        for what, after in changes.items():
            if _report_others(before, after, i, what, ledger):
                return
    changed = "x and z" if subject.data else "z"
    ledger.holds(law, "the batch", f"changing {changed} of one datum moves no other datum's terms")


def _report_others(before: Scores, after: Scores, i: int, what: str, ledger: Ledger) -> bool:
    """Return True if the log-probability of a datum other than i changed.

    ``what`` names the change that was made to datum i. The first changed log-probability is recorded as a broken law.
    """
    for name, term in before.parts().items():
        change = (after.parts()[name] - term).abs()
        change[i] = 0
        if float(change.max()) > tolerance(term) or bool(change.isnan().any()):
            j = int(change.nan_to_num(nan=torch.inf).argmax())
            figures = f"changing {what} of row {i} moves the term of row {j} by {float(change[j]):.3g} nats"
            ledger.breaks("independence", name, figures, BATCH_CAUSES)
            return True
    return False


def check_invariance(subject: Subject, ledger: Ledger) -> None:
    """Check that a datum's loss is the same in other batches.

    The other batches have the rows in reverse order, half of the rows, or another subsample of the data.
    """
    law = "invariance"
    _check_plate_scales(subject, ledger)
    if subject.data_plate.size < 2:
        ledger.skips(law, "the batch", "it has a single datum; pass at least two, better five or more")
        return
    if not subject.rows:
        ledger.skips(
            law,
            "the data",
            "no argument has a row for each datum; pass the data as an argument, or name the argument by data=",
        )
        return
    values, _ = subject.draw()
    before = subject.evaluate(values)
    own = _check_order(subject, values, before, ledger)
    if own:
        ledger.skips(
            law, "the split", f"parameter {own!r} has a row for each datum, so half of the rows cannot stand alone"
        )
    elif subject.subsamples:
        _check_subsample(subject, values, before, ledger)
    else:
        _check_split(subject, values, before, ledger)


def _check_plate_scales(subject: Subject, ledger: Ledger) -> None:
    """Check that the data plate has the same factor N/B everywhere.

    N is the number of data, B the batch size. The factor must be the same at every site.
    """
    plate = subject.data_plate.plate
    sites = [(f"site {n!r} of the model", s) for n, s in latent_sites(subject.model_trace).items()]
    sites += [(f"site {n!r} of the model", s) for n, s in observed_sites(subject.model_trace)]
    sites += [(f"site {n!r} of the guide", s) for n, s in latent_sites(subject.guide_trace).items()]
    factors = {where: plates_of(s)[plate].full_size / plates_of(s)[plate].size for where, s in sites}
    most = max(factors.values())
    for where, factor in factors.items():
        if factor != most:
            figures = f"its plate {plate!r} has N/B = {factor:g}, but {most:g} at other sites"
            causes = (
                f"pyro.plate({plate!r}, N, subsample_size=B) in one program, and pyro.plate({plate!r}, B) in the other"
            )
            ledger.breaks("invariance", where, figures, causes)
            return
    ledger.holds("invariance", "the plate", f"N/B = {most:g} at every site")


def _differs(before: Scores, after: Scores, rows: Tensor) -> tuple[str, float] | None:
    """Return the first log-probability that differs between two batches.

    Args:
        before: Log-probabilities of the first batch.
        after: Log-probabilities of the second batch, which has the rows ``rows`` of the first.
        rows: Row indices.

    Returns:
        A description of the site, and the largest difference in nats; None if all agree.
    """
    for name, term in before.parts().items():
        change = float((after.parts()[name] - term[rows]).abs().max())
        if not change <= tolerance(term):
            return name, change
    return None


def _check_order(subject: Subject, values: Values, before: Scores, ledger: Ledger) -> str | None:
    """Check that reversing the rows reverses the log-probabilities.

    Returns:
        Name of a guide parameter with a row for each datum, if reversing its rows too removes the difference; else None.
    """
    order = torch.arange(subject.data_plate.size).flip(0)
    arguments = (subject.take(values, order), subject.reordered(order))
    found = _differs(before, subject.evaluate(*arguments), order)
    if found is None:
        ledger.holds("invariance", "the order of rows", "reversing the rows reverses the terms")
        return None
    for name, leaf in row_parameters(subject):
        old = leaf.detach().clone()
        picked = subject.picked if subject.picked is not None else torch.arange(len(old))
        try:
            with torch.no_grad():
                leaf[picked] = old[picked][order]
            explained = _differs(before, subject.evaluate(*arguments), order) is None
        finally:
            with torch.no_grad():
                leaf.copy_(old)
        if explained:
            return name
    figures = f"reversing the rows of the batch changes a datum's term by {found[1]:.3g} nats"
    causes = f"a term that reads the position in the batch (arange, or x[:n] instead of x[index]); {BATCH_CAUSES}"
    ledger.breaks("invariance", found[0], figures, causes)
    return None


def row_parameters(subject: Subject) -> list[tuple[str, Tensor]]:
    """Return the guide's unconstrained parameters with as many rows as data."""
    sites = plates_of(next(iter(latent_sites(subject.guide_trace).values())))
    full = sites[subject.data_plate.plate].full_size
    found = []
    for name, site in subject.guide_trace.nodes.items():
        if site["type"] == "param" and "$$$" not in name:
            leaf = site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
            if leaf.dim() and len(leaf) == full:
                found.append((name, leaf))
    return found


def _check_split(subject: Subject, values: Values, before: Scores, ledger: Ledger) -> None:
    """Check that half of the rows alone have the same log-probabilities.

    The scales of the sites must be the same too.
    """
    size = subject.data_plate.size
    rows = torch.arange(max(1, size // 2))
    call, part = subject.reordered(rows), subject.take(values, rows)
    index = {name: value for name, value in subject.index.items() if name != subject.data_plate.plate}
    try:
        found = _differs(before, subject.evaluate(part, call, index), rows)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        ledger.skips("invariance", "the split", f"the program does not run on half of the batch ({error})")
        return
    whole = _outer_scales(subject, subject.call, subject.index | values)
    half = _outer_scales(subject, call, index | part)
    if found is not None:
        figures = f"the term of a row differs between batches of {len(rows)} and {size} rows, by {found[1]:.3g} nats"
        ledger.breaks("invariance", found[0], figures, BATCH_CAUSES)
    elif (name := next((n for n in whole if abs(whole[n] - half[n]) > 1e-5 * abs(whole[n])), None)) is not None:
        figures = f"its scale is {whole[name]:.4g} in a batch of {size} and {half[name]:.4g} in a batch of {len(rows)}"
        causes = "a loss divided by the batch size (divide the learning rate instead), or N/B multiplied by hand"
        ledger.breaks("invariance", f"site {name!r}", figures, causes)
    else:
        ledger.holds("invariance", "the split", f"{len(rows)} rows have the same terms alone as among {size}")


def _outer_scales(subject: Subject, call: Call, values: Values) -> dict[str, float]:
    """Return each model site's mean scale, without the plates' factor N/B."""
    trace = subject.traced(subject.model, call, values)
    return {n: outer_scale(s) for n, s in [*latent_sites(trace).items(), *observed_sites(trace)]}


def _check_subsample(subject: Subject, values: Values, before: Scores, ledger: Ledger) -> None:
    """Check that rows have the same log-probabilities in another subsample."""
    plate, size = subject.data_plate.plate, subject.data_plate.size
    full = plates_of(observed_sites(subject.model_trace)[0][1])[plate].full_size
    old = subject.index[plate]
    others = torch.tensor([i for i in range(full) if i not in set(old.tolist())], dtype=old.dtype)
    kept = torch.arange(max(1, size - len(others)) if len(others) < size - size // 2 else size // 2)
    new = torch.cat([old[kept], others[: size - len(kept)]])
    after = subject.evaluate(values, index=subject.index | {plate: new})
    model, guide = ({n: t[kept] for n, t in terms.items()} for terms in (after.model, after.guide))
    cut = Scores(model, guide, after.observed)
    if (found := _differs(before, cut, kept)) is not None:
        figures = f"the term of a row differs between two subsamples, by {found[1]:.3g} nats"
        causes = (
            f"rows not picked by the plate's index (write `with pyro.plate(...) as index: x[index]`); {BATCH_CAUSES}"
        )
        ledger.breaks("invariance", found[0], figures, causes)
    else:
        ledger.holds(
            "invariance", "the subsample", f"{len(kept)} rows have the same terms in another subsample of {full}"
        )
