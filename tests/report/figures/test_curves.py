"""Learning curves show the columns of the history, under names that fit."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae.inference import History
from pyro_vae.inference.training.epoch_line import table_header
from pyro_vae.models.inpainting import InpaintingVAE
from pyro_vae.models.protocol import loss_name, trained_on
from pyro_vae.report.figures.curves import curves
from tests.report.examples import HISTORY, SHAPE, make_history, pair_of_models


def panels(history: History) -> dict[str, Axes]:
    figure: Figure = curves(history)
    return dict(zip(("elbo", "rate", "distortion", "beta"), figure.axes, strict=True))


def test_curves_show_the_columns_of_the_history() -> None:
    axes = panels(HISTORY)
    shown = {k: [list(map(float, line.get_ydata())) for line in a.lines[:-1]] for k, a in axes.items()}
    assert shown == {
        "elbo": [HISTORY["train_elbo"], HISTORY["validation_elbo"]],
        "rate": [HISTORY["train_rate"], HISTORY["validation_rate"]],
        "distortion": [HISTORY["train_distortion"], HISTORY["validation_distortion"]],
        "beta": [HISTORY["beta"]],
    }
    assert axes["elbo"].lines[-1].get_xdata()[0] == HISTORY.best_epoch
    band = axes["elbo"].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (-31.5, -25.5)
    assert axes["elbo"].get_ylabel() == axes["rate"].get_ylabel() == axes["distortion"].get_ylabel() == "nats per datum"


def test_the_annealed_objective_is_drawn_only_where_it_is_another_curve() -> None:
    without, annealed = (make_history([-3.0, -2.0], beta, validation=False) for beta in (1.0, 0.5))
    assert len(panels(without)["elbo"].lines) == 1
    assert list(panels(annealed)["elbo"].lines[1].get_ydata()) == annealed["objective"]


def test_bad_first_epochs_do_not_set_the_scale_and_are_named() -> None:
    axes = panels(make_history([-500.0, -30.0, *np.linspace(-25, -24, 28).tolist()]))["elbo"]
    bottom, top = axes.get_ylim()
    assert -28 < bottom < -26
    assert -24 < top < -23
    assert axes.get_title(loc="right") == "cut off in epochs 1 to 2: lowest −501"


@pytest.mark.parametrize("elbo", [[-500.0, -30.0], [-25.0] * 30, np.linspace(-30, -24, 30).tolist()])
def test_otherwise_every_epoch_is_within_the_axes(elbo: list[float]) -> None:
    for axes in panels(make_history(elbo)).values():
        bottom, top = axes.get_ylim()
        for line in axes.lines[:-1]:
            assert bottom <= min(line.get_ydata()) <= max(line.get_ydata()) <= top
        assert axes.get_title(loc="right") == ""


def test_a_model_without_a_bound_has_one_curve():
    """Its rate of 0, and a beta that weights nothing, are not drawn, nor are its units called nats."""
    rows = [
        {"epoch": k, "train_rate": 0.0, "train_distortion": 3.0 / k, "beta": 1.0, "objective": -3.0 / k}
        | {"validation_distortion": 4.0 / k, "validation_objective": -4.0 / k, "validation_objective_std_error": 0.1}
        for k in (1, 2, 3)
    ]
    (axes,) = curves(History(rows), loss=loss_name(pair_of_models()["autoencoder"])).axes
    assert axes.get_title(loc="left") == "Squared error of a datum"
    assert "nats" not in axes.get_ylabel()
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[3.0, 1.5, 1.0], [4.0, 2.0, 4.0 / 3]]


def objective_of(*rows: tuple[float, float, float, float]) -> str:
    """The label of the objective's curve, of a history of objectives, ELBOs, rates and betas."""
    names = ("objective", "train_elbo", "train_rate", "beta")
    history = History([dict(zip(names, row, strict=True)) | {"epoch": k} for k, row in enumerate(rows, 1)])
    for row in history.rows:
        row["train_distortion"] = -row["train_elbo"] - row["train_rate"]
    return curves(history).axes[0].lines[1].get_label()


@pytest.mark.parametrize(
    ("rows", "label"),
    [
        ([(-19.0, -10.0, 3.0, 4.0), (-18.0, -9.0, 3.0, 4.0)], "training objective (rate times β)"),
        ([(-19.0, -10.0, 3.0, 4.0)], "training objective (rate times β)"),
        # A warm-up: of 0 to 0.5, of 0.5 to 1, of 1; and one that is over with the first epoch.
        (
            [(-7.5, -10.0, 3.0, 0.5), (-8.2, -9.0, 3.0, 1.0), (-8.0, -8.0, 3.0, 1.0)],
            "training objective (rate times β)",
        ),
        ([(-9.0, -10.0, 3.0, 1.0), (-8.0, -8.0, 3.0, 1.0)], "training objective (rate times β)"),
        (
            [(-17.5, -10.0, 3.0, 3.0), (-13.5, -9.0, 3.0, 2.0), (-9.5, -8.0, 3.0, 1.0)],
            "training objective (rate times β)",
        ),
        ([(-10.5, -10.0, 3.0, 1.0), (-9.1, -9.0, 3.0, 1.0)], "with its penalties and auxiliary terms"),
        ([(-19.5, -10.0, 3.0, 4.0), (-18.1, -9.0, 3.0, 4.0)], "with its penalties and auxiliary terms"),
        # Above the ELBO by nothing that beta does: a bound of several draws.
        ([(-9.5, -10.0, 3.0, 1.0), (-8.9, -9.0, 3.0, 1.0)], "training objective"),
    ],
)
def test_the_objective_is_called_what_its_values_are(rows, label):
    assert objective_of(*rows).endswith(label)


def test_a_model_may_say_what_part_of_the_data_it_is_trained_on():
    """The second is a user's own, which knows nothing of the first."""

    class Mine(pv.VAE):
        trained_on = "every second pixel"

    history = History([{"epoch": 1, "objective": -5.0, "train_elbo": -5.0, "train_rate": 1.0, "beta": 1.0}])
    history.rows[0]["train_distortion"] = 4.0
    plain = table_header(pv.VAE(SHAPE, 2, (4,)))
    for kind, words in ((InpaintingVAE, "what was visible"), (Mine, "every second pixel"), (pv.VAE, "")):
        vae = kind(SHAPE, 2, (4,))
        assert table_header(vae).removeprefix(plain).strip() == (words and f"train ELBO: of {words}")
        for axes in curves(history, trained_on(vae)).axes[:3]:
            assert (
                axes.lines[0].get_label().removeprefix("training")
                == f"{words and ', of '}{words} (mean over the epoch)"
            )
