"""The line printed for each epoch, and the header above these lines."""

from __future__ import annotations

import math

from pyro_vae.inference.training.history import Row
from pyro_vae.models.protocol import PyroModel, has_bound, loss_name, trained_on

_HEADER = (
    "       epoch   train ELBO   validation ELBO        rate   distortion     beta   images/s\n"
    "                     nats              nats        nats         nats"
)


_HEADER_WITHOUT_BOUND = "       epoch   train loss   validation loss   images/s"


def table_header(model: PyroModel) -> str:
    """Return the header above the lines of :func:`epoch_line`."""
    if has_bound(model):
        return _HEADER + (f"\n             train ELBO: of {part}" if (part := trained_on(model)) else "")
    return f"{_HEADER_WITHOUT_BOUND}\n             {loss_name(model)} per datum, not a bound on log p(x)"


def epoch_line(row: Row, epochs: int) -> str:
    """Return the line of one epoch out of ``epochs``."""
    epoch, speed = f"{row['epoch']:6.0f}/{epochs:<5d}", f"{row['images_per_second']:10,.0f}"
    if "train_elbo" not in row:
        return f"{epoch} {-row['objective']:12.2f} {_validation(row, 'objective', -1):>17} {speed}"
    prefix = "validation" if "validation_elbo" in row else "train"
    return (
        f"{epoch} {row['train_elbo']:12.2f} {_validation(row, 'elbo'):>17} {row[prefix + '_rate'] + 0.0:11.2f} "
        f"{row[prefix + '_distortion']:12.2f} {row['beta']:8.3f} {speed}"
    )


def mean_text(model: PyroModel, objective: float) -> str:
    """Return the text of the progress bar, which shows the mean objective.

    Args:
        model: The model, which decides how the objective is shown.
        objective: Mean of the objective over the data seen in the current epoch, nats per datum.
    """
    return f"ELBO {objective:.2f}" if has_bound(model) else f"loss {-objective:.2f}"


def _validation(row: Row, name: str, sign: int = 1) -> str:
    if f"validation_{name}_std_error" not in row:
        return "-"
    value, error = sign * row[f"validation_{name}"], row[f"validation_{name}_std_error"]
    return f"{value:.2f}" + (f" ± {error:.2f}" if math.isfinite(error) else "")
