from __future__ import annotations

import re

import pytest
import torch
from scipy.linalg import subspace_angles

import pyro_vae as pv
from pyro_vae import evaluate, report, schedules, train
from pyro_vae.data import Data, Split
from pyro_vae.models.autoencoder import Autoencoder
from pyro_vae.models.linear import LinearVAE
from pyro_vae.report import pictures


def data(num: int = 128, dim: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([3.0, 2.0, 0.7, 0.5, 0.4, 0.3])[:dim]
    mix = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    return (torch.randn(num, dim, generator=generator) * spread) @ mix + 1


@pytest.mark.parametrize("name", ["trace", "mean-field"])
def test_its_distortion_is_the_squared_error(name):
    torch.manual_seed(0)
    autoencoder, x = Autoencoder((1, 2, 3), 2, (5,)), torch.randn(4, 1, 2, 3)
    terms = pv.elbo(name).terms(autoencoder.model, autoencoder.guide, x)
    error = (autoencoder.decoder(autoencoder.encoder(x)) - x).square().sum().detach()
    torch.testing.assert_close(terms.distortion, error)
    torch.testing.assert_close(terms.loss.detach(), error)
    assert float(terms.rate) == 0
    torch.testing.assert_close(autoencoder.squared_error(x).sum(), error)


def test_a_linear_one_spans_the_subspace_of_pca():
    x, torch_seed = data(), 3
    pca = LinearVAE((6,), 2)
    pca.maximize_likelihood(x)
    torch.manual_seed(torch_seed)
    autoencoder = Autoencoder((6,), 2, ())
    autoencoder.center_output(x.mean(0))
    pv.fit(
        autoencoder, x, epochs=1000, batch_size=128, lr=0.05, lr_schedule="cosine", compile=False, progress=False
    )  # all data a step: nothing is random
    axes = autoencoder.decoder.head.weight.detach()
    assert float(subspace_angles(axes, pca.weight.detach()).max()) < 1e-2
    centred = (x - x.mean(0)).double()
    least = torch.linalg.svdvals(centred)[2:].square().sum() / len(x)
    torch.testing.assert_close(autoencoder.squared_error(x).double().mean(), least, rtol=1e-3, atol=0)
    cosine = torch.nn.functional.cosine_similarity(axes[:, 0], axes[:, 1], 0)
    assert abs(float(cosine)) > 0.01  # PCA's axes are orthogonal to rounding, these only by chance
    assert abs(float((pca.weight[:, 0] @ pca.weight[:, 1]).detach())) < 1e-5


@pytest.mark.parametrize(("size", "error"), [(1, (1.0, 20.0)), (9, (0.0, 0.01))])
def test_any_code_size(size, error):
    x = data()
    torch.manual_seed(0)
    autoencoder = Autoencoder((6,), size, ())
    pv.fit(autoencoder, x, epochs=500, batch_size=128, lr=0.05, lr_schedule="cosine", compile=False, progress=False)
    assert autoencoder.encode(x).mean.shape == (128, size)
    assert error[0] <= float(autoencoder.squared_error(x).mean()) < error[1]


def test_its_output_may_be_bounded():
    torch.manual_seed(0)
    autoencoder = Autoencoder((2, 3), 2, (5,), likelihood="bernoulli")
    mean = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.7, 0.3]])
    autoencoder.center_output(mean)
    with torch.no_grad():
        autoencoder.decoder.head.weight.zero_()
    torch.testing.assert_close(autoencoder.reconstruct(torch.rand(1, 2, 3))[0], mean)
    with pytest.raises(ValueError, match=r"mean: expected shape \(2, 3\)"):
        autoencoder.center_output(torch.zeros(6))


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_it_has_no_log_px():
    autoencoder = Autoencoder((6,), 2)
    assert not autoencoder.has_bound
    assert not hasattr(autoencoder, "log_px")
    with pytest.raises(ValueError, match="got a Delta, whose weights do not estimate log p"):
        pv.evidence.importance_sampling(autoencoder.model, autoencoder.guide, data())
    for estimator in (pv.evidence.annealed_importance_sampling, pv.evidence.bidirectional):
        with pytest.raises(TypeError, match="no prior to draw from and no log p"):
            estimator(autoencoder.model, autoencoder.guide, data())
    with pytest.raises(TypeError, match="no prior to draw from and no log p"):
        pv.evidence.prior_sampling(autoencoder.model, data())
    bounds = [pv.elbo(name).bound for name in ("trace", "mean-field", "enum", "graph")]
    for estimate in (pv.log_weights, *bounds):
        with pytest.raises(ValueError, match="guide site 'z': a Delta with an improper prior, .* has no bound"):
            estimate(autoencoder.model, autoencoder.guide, data())


@pytest.mark.parametrize(
    ("beta", "got"),
    [
        (4.0, "4.0"),
        (schedules.linear(0.0, 1.0, steps=10), "a schedule"),
        (schedules.Constant(0.5), "a schedule"),
        ({"z": 0.5}, "a dict of sites"),
    ],
)
def test_it_has_no_kl_to_weight(beta, got):
    said = f"beta: Autoencoder has no KL to weight, but beta is {got}; remove beta."
    with pytest.raises(ValueError, match=re.escape(said)):
        pv.fit(Autoencoder((6,), 2), data(), beta=beta, epochs=1, progress=False)
    pv.fit(Autoencoder((6,), 2), data(), beta=schedules.Constant(1.0), epochs=1, progress=False)


def test_leading_dimensions_fold():
    autoencoder, x = Autoencoder((2, 3), 4, (5,)), torch.randn(7, 5, 2, 3)
    assert autoencoder.encode(x).mean.shape == (7, 5, 4)
    torch.testing.assert_close(autoencoder.reconstruct(x)[1], autoencoder.reconstruct(x[1]))
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 2, 3\), got \(4, 6\)"):
        autoencoder.encode(torch.zeros(4, 6))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"latent_dim": 0}, "latent_dim: expected at least 1, got 0"),
        ({"likelihood": "squared"}, "unknown likelihood 'squared'"),
        ({"hidden": (0,)}, "hidden: expected widths of at least 1"),
    ],
)
def test_bad_arguments_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Autoencoder(**{"data_shape": (6,), "latent_dim": 2, **options})


def test_the_commands_say_that_it_has_no_log_px(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    run = tmp_path / "run"
    train.main(["--model", "autoencoder", "--hidden", "4", "--latent-dim", "2", "--epochs", "1", "--run-dir", str(run)])
    assert "squared error of the reconstruction" in capsys.readouterr().out
    assert evaluate.main([str(run)]) == 2
    assert "expected a model with a log p(x) to evaluate, got autoencoder, which has none" in capsys.readouterr().err


def test_it_draws_from_a_normal_of_the_codes():
    """Of a linear decoder the draws are normal, with the mean and the covariance that its reconstructions have."""
    torch.manual_seed(0)
    x, autoencoder = data(400), Autoencoder((6,), 9, ())  # more numbers than a datum has: the covariance is singular
    pv.fit(autoencoder, x, epochs=3, batch_size=50, compile=False, progress=False)
    made, found = autoencoder.reconstruct(x).double(), autoencoder.sample(40_000).double()
    assert found.shape == (40_000, 6)
    centred = made - made.mean(0)
    covariance = centred.T @ centred / len(made)
    error = (covariance.diagonal() / len(found)).sqrt()
    assert bool(((found.mean(0) - made.mean(0)).abs() < 5 * error).all())
    variances = covariance.diagonal()
    spread = ((variances[:, None] * variances + covariance.square()) / len(found)).sqrt()  # of a normal's covariance
    assert bool(((found.T.cov() - covariance).abs() < 5 * spread).all())
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        autoencoder.sample(0)


def test_its_draws_are_those_of_the_best_epoch():
    """Training goes on past the epoch that is best for these other validation data, whose parameters are kept."""
    x = data(60)
    split = Data("toy", Split(x[:40]), validation=Split(torch.zeros(20, 6)))
    torch.manual_seed(0)
    autoencoder = Autoencoder((6,), 2, (20,))
    seen = []
    history = pv.fit(
        autoencoder,
        split,
        epochs=5,
        lr=0.05,
        batch_size=10,
        compile=False,
        progress=False,
        callbacks=[lambda training: seen.append(training.model.code_mean.clone())],
    )
    assert history.best_epoch < 5
    codes = autoencoder.encode(x[:40]).mean.double()
    torch.testing.assert_close(autoencoder.code_mean, codes.mean(0).float())
    root = autoencoder.code_scale.double()
    torch.testing.assert_close((root @ root.T).float(), codes.T.cov(correction=0).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(autoencoder.code_mean, seen[history.best_epoch - 1], rtol=0, atol=0)
    assert not torch.equal(seen[-1], seen[history.best_epoch - 1])


def test_its_pictures_speak_of_codes_and_of_no_distribution(tmp_path, monkeypatch):
    """It has neither q(z|x) nor p(x|z); and its samples say what they are, of a distribution that is saved with it."""
    titles = {}

    def write(path, figure):
        titles[path.stem] = " ".join([figure.get_suptitle(), *(axes.get_title() for axes in figure.get_axes())])
        return path

    monkeypatch.setattr(pictures, "write_figure", write)
    words = ["--model", "autoencoder", "--hidden", "4", "--latent-dim", "2", "--epochs", "1", "--quiet"]
    assert train.main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    assert set(titles) == {"reconstructions", "samples", "interpolations", "curves", "latents", "tsne"}
    assert [name for name, text in titles.items() if re.search(r"[pq]\([xz]|means? of|posterior|latent", text)] == []
    assert titles["samples"].endswith(
        "Samples: decoded draws of a normal distribution fitted to the codes; the model has no prior"
    )
    assert "decoder's output at" in titles["interpolations"]
    assert "Codes of 180 test data" in titles["latents"]
    assert "codes, Z = 2" in titles["tsne"]
    run = pv.load(tmp_path / "run")
    codes = run.vae.encode(run.data().train.x).mean.mean(0)
    torch.testing.assert_close(run.vae.code_mean, codes, rtol=1e-4, atol=1e-4)
