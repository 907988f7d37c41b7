from __future__ import annotations

import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import Split
from pyro_vae.evidence.inpainting import inpaint
from pyro_vae.inference import History
from pyro_vae.inference.training.history import table_header
from pyro_vae.models.autoencoder import Autoencoder
from pyro_vae.models.denoising import DenoisingVAE
from pyro_vae.models.inpainting import InpaintingVAE
from pyro_vae.models.protocol import loss_name, trained_on
from pyro_vae.models.registry import MODELS
from pyro_vae.report.figures.autoencoders import codes, planes
from pyro_vae.report.figures.curves import curves
from pyro_vae.report.figures.encoded import encode
from pyro_vae.report.figures.inpainting import denoisings, fillings
from pyro_vae.report.figures.units import units

SHAPE = (1, 6, 5)


def images(num: int = 40) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.bernoulli(torch.full((num, *SHAPE), 0.4))


def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(1)
    return {"autoencoder": Autoencoder(SHAPE, 2, (4,)).eval(), "VAE": pv.VAE(SHAPE, 2, (4,)).eval()}


@pytest.mark.parametrize("labels", [True, False])
def test_planes_have_a_column_for_each_model(labels):
    x = images()
    figure = planes(models(), Split(x, torch.arange(40) % 3 if labels else None), "test")
    assert len(figure.axes) == 4 * 2
    assert [axes.get_title() for axes in figure.axes[::4]] == ["autoencoder", "VAE"]
    points = figure.axes[0].collections
    assert sum(len(part.get_offsets()) for part in points) == 40
    assert len(points) == (3 if labels else 1)
    words = [figure.axes[k].get_xlabel() for k in (2, 6, 3, 7)]
    assert words[:2] == ["decoded z ~ N(0, I), no prior", "samples, z ~ p(z) = N(0, I)"]
    assert words[2] == words[3] == "decoded z ~ normal fitted to the codes"
    assert figure.axes[2].images[0].get_array().shape == (6 * 6, 6 * 5)


def test_planes_decode_the_same_draws_and_those_of_the_codes():
    """Of a decoder that gives its code back as two pixels, the images are the draws."""
    pair, split = {}, Split(torch.rand(400, 1, 1, 2), None)
    for k in range(2):
        model = Autoencoder((1, 1, 2), 2, ())
        for network in (model.encoder, model.decoder):
            torch.nn.init.eye_(network.head.weight)
            torch.nn.init.zeros_(network.head.bias)
        with torch.no_grad():
            model.encoder.head.weight.mul_(0.01)
            model.encoder.head.bias.fill_(0.5)  # codes near the middle of the pixels' range
        pair[str(k)] = model
    torch.manual_seed(0)
    figure = planes(pair, split, "test")
    standard, fitted = (
        [torch.tensor(figure.axes[k].images[0].get_array()).reshape(6, 6, 2) for k in rows] for rows in ((2, 6), (3, 7))
    )
    torch.testing.assert_close(standard[0], standard[1])
    clipped = (standard[0] == 0) | (standard[0] == 1)
    assert bool(clipped.any())  # N(0, I) lies far outside of the codes
    assert not bool(clipped.all())
    codes = pair["0"].encode(split.x).mean.detach().double()
    spread = codes.std(0)
    assert bool(((fitted[0].flatten(0, 1) - codes.mean(0)).abs() < 5 * spread).all())
    assert bool(((fitted[0].flatten(0, 1).std(0) / spread - 1).abs() < 5 / (2 * 36) ** 0.5).all())


def test_a_walk_begins_and_ends_at_the_codes_of_images():
    model = models()["autoencoder"]
    figure = planes({"one": model}, Split(images(), None), "test")
    known = model.encode(images()).mean.detach()
    for line in figure.axes[0].lines:
        for point in torch.tensor(line.get_xydata(), dtype=torch.float32):
            assert float((known - point).norm(dim=1).min()) < 1e-5


def test_planes_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match="models: expected codes of two numbers, got 3 in 'VAE'"):
        planes({"VAE": pv.VAE(SHAPE, 3, (4,))}, Split(images(), None), "test")
    with pytest.raises(ValueError, match="models: expected at least one, got none"):
        planes({}, Split(images(), None), "test")


def test_codes_are_drawn_as_bars():
    model = pv.VAE(SHAPE, 4, (4,)).eval()
    x = images(3)
    figure = codes(model, x, "Faces")
    z = model.encode(x).mean.detach()
    heights = [[bar.get_height() for bar in figure.axes[3 + k].patches] for k in range(3)]
    torch.testing.assert_close(torch.tensor(heights), z.double())
    assert figure.axes[0].images[0].get_array().shape == SHAPE[1:]


def test_fillings_show_original_seen_fillings_mean_and_spread():
    vae, x = models()["VAE"], images(3)
    visible = torch.ones(SHAPE, dtype=torch.bool)
    visible[:, 3:] = False
    found = inpaint(vae, x, visible, num_fillings=4, num_samples=30, num_steps=3, seed=0)
    figure = fillings(x, visible, found, columns=2)
    shown = [torch.tensor(image.get_array()) for image in figure.axes[0].images]
    assert len(shown) == 3 * 6
    torch.testing.assert_close(shown[0].float(), x[0, 0])
    assert bool((shown[1][3:] == 0.5).all())
    torch.testing.assert_close(shown[2].float(), found.images[0, 0, 0])
    torch.testing.assert_close(shown[5].float(), 2 * found.spread[0, 0])


def test_denoisings_say_the_squared_error():
    torch.manual_seed(0)
    vae, x = DenoisingVAE(SHAPE, 2, (4,), noise="masking:0.5").eval(), images(4)
    noisy = vae.corrupt(x)
    figure = denoisings({"denoising": vae}, x, noisy, "masking")
    error = float((noisy - x).square().sum()) / 4
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["clean", f"noisy\nsquared error {error:.1f}"]
    assert labels[2].startswith("denoising\nsquared error")
    assert len(figure.axes[0].images) == 3 * 4


@pytest.mark.parametrize(
    ("name", "formula", "rate"),
    [
        ("vae", "KL(q(z_j|x) ", True),
        ("conditional", "KL(q(z_j|x, y) ", True),
        ("m2", "their sum is", False),
        ("auxiliary", "their sum is", False),
        ("m1m2", "their sum is", False),
    ],
)
def test_the_sum_over_units_is_the_rate_where_they_are_all_latents(name, formula, rate):
    y = torch.arange(10)
    kind = MODELS[name]
    given = {} if name == "vae" else {"num_classes": 10}
    vae, split = kind((1, 8, 8), 3, (8,), "tanh", **given), Split(torch.rand(10, 1, 8, 8).round(), y)
    with torch.no_grad():
        encoded = encode(vae, split)
        title = units(encoded, encoded.unit_kl, "test").axes[0].get_title().replace("$", "")
    assert formula in title
    assert ("the rate" in title) == rate


def test_a_model_without_a_bound_has_one_curve():
    """Its rate of 0, and a beta that weights nothing, are not drawn, nor are its units called nats."""
    rows = [
        {"epoch": k, "train_rate": 0.0, "train_distortion": 3.0 / k, "beta": 1.0, "objective": -3.0 / k}
        | {"validation_distortion": 4.0 / k, "validation_objective": -4.0 / k, "validation_objective_std_error": 0.1}
        for k in (1, 2, 3)
    ]
    (axes,) = curves(History(rows), loss=loss_name(models()["autoencoder"])).axes
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
