"""The commands train, resume, load, evaluate and draw every model by name, and a user's classes by path."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae import evaluate, report, train
from pyro_vae.inference.training.validation import evaluate_terms
from pyro_vae.models import MODELS
from pyro_vae.models.protocol import evaluation_inputs, has_bound, training_inputs
from pyro_vae.runs.build import make_objective
from pyro_vae.runs.directory import EVERY_FILE

SMALL = "--latent-dim 2 --hidden 8 --num-samples 5 --batch-size 200 --threads 1 --device cpu --quiet".split()
LESS = [*SMALL[:2], *SMALL[4:]]  # a model without hidden layers takes no widths

OWN = '''
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Own(nn.Module):
    """A linear VAE with two latent sites, and all that pictures ask for."""

    defaults = {"binarize": "threshold", "lr": 0.01}

    def __init__(self, data_shape, latent_dim, scale=1.0):
        super().__init__()
        self.data_shape, self.latent_dim, self.scale = data_shape, latent_dim, scale
        self.up, self.down = nn.Linear(64, 2 * latent_dim), nn.Linear(latent_dim + 1, 64)

    def model(self, x):
        pyro.module("own", self)
        with pyro.plate("data", len(x), dim=-1):
            z, tone = pyro.sample("z", self.prior()), pyro.sample("tone", dist.Normal(torch.zeros(len(x)), 1.0))
            logits = self.down(torch.cat([z, (tone + 0 * z[..., 0])[..., None]], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.flatten(1))

    def guide(self, x):
        pyro.module("own", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))
            pyro.sample("tone", dist.Normal(torch.zeros(len(x)), 1.0))

    def prior(self):
        return dist.Normal(torch.zeros(self.latent_dim), self.scale).to_event(1)

    def encode(self, x):
        loc, log_scale = self.up(x.flatten(1)).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def decode(self, z):
        logits = self.down(torch.cat([z, 0 * z[..., :1]], -1))
        return dist.Bernoulli(logits=logits.reshape(*z.shape[:-1], *self.data_shape)).to_event(3)

    def sample(self, num_samples):
        return self.decode(self.prior().sample((num_samples,))).sample()

    def reconstruct(self, x):
        return self.decode(self.encode(x).mean).base_dist.mean


class Encoder(nn.Module):
    def __init__(self, in_shape, out_shape, hidden, activation):
        super().__init__()
        self.head, self.sizes = nn.Linear(64, out_shape[0]), (in_shape, out_shape, hidden, activation)

    def forward(self, x):
        return self.head(x.flatten(-3))
'''


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """The command runs in a user's folder with a module."""
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "parts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])


def run(*words: str) -> Path:
    assert train.main([*(LESS if "linear" in words else SMALL), "--run-dir", "run", *words]) == 0
    return Path("run")


def resume(*words: str) -> None:
    assert train.main(["--resume", "run", "--threads", "1", "--device", "cpu", "--quiet", *words]) == 0


def summary() -> dict:
    return json.loads(Path("run/summary.json").read_text())


def labels(name: str) -> list[str]:
    return ["--labels", "40"] if "y" in MODELS[name].takes and "classify" in dir(MODELS[name]) else []


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_trained_resumed_and_loaded_by_its_name(name, no_pictures):
    run("--model", name, *labels(name), "--epochs", "1")
    first = pv.load("run")
    resume("--epochs", "2")
    last = pv.load("run")
    assert type(last.vae) is MODELS[name]
    assert (len(first.history), len(last.history)) == (1, 2)
    assert last.history.rows[0] == first.history.rows[0]
    pairs = zip(first.vae.state_dict().values(), last.vae.state_dict().values(), strict=True)
    assert any(not torch.equal(*pair) for pair in pairs)
    # The figure of the best epoch is that of the model that is loaded.
    data = last.data()
    parts = evaluate_terms(last.vae, evaluation_inputs(last.vae, data.validation), 0)
    column = "validation_elbo" if has_bound(last.vae) else "validation_objective"
    kept = last.history[column][last.history.best_epoch - 1]
    assert float(sum(parts).mean()) == pytest.approx(kept, abs=1e-4)
    test = summary()["test"]
    assert ("accuracy" in test) == hasattr(last.vae, "classify")
    assert ("exact_log_px" in test) == hasattr(last.vae, "log_px")
    assert ("log_px" in test) == has_bound(last.vae) != ("squared_error" in test)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_drawn_and_evaluated(name, capsys):
    files = {path.name for path in run("--model", name, *labels(name), "--epochs", "1").iterdir()}
    assert {"reconstructions.png", "curves.png", "latents.png", "tsne.png"} <= files <= {*EVERY_FILE}
    assert "samples.png" in files
    assert ("log-px.png" in files) == has_bound(MODELS[name])
    assert ("analogies.png" in files) == hasattr(MODELS[name], "analogies")
    before = summary()["test"]
    code = evaluate.main(["run", "--num-samples", "20", "--device", "cpu", "--threads", "1"])
    out, error = capsys.readouterr()
    if not has_bound(MODELS[name]):
        assert code == 2
        assert "expected a model with a log p(x) to evaluate, got autoencoder" in error
        return
    assert code == 0
    assert "20 importance samples each" in out
    after = summary()["test"]
    spread = 6 * before["elbo"]["mc_error"] + 0.05
    assert after["elbo"]["value"] == pytest.approx(before["elbo"]["value"], abs=spread)
    assert after.get("accuracy") == before.get("accuracy")


def test_a_users_class_is_trained_resumed_loaded_and_evaluated(no_pictures, capsys):
    path = "own_package.parts:Own"
    words = ["--model", path, "--model-options", "scale=2.0", "--epochs", "2"]
    assert train.main([*LESS, "--run-dir", "run", *words]) == 0
    config = pv.load("run").config
    assert (config.data.binarize, config.train.lr, config.model.model) == ("threshold", 0.01, path)
    resume("--epochs", "3")
    loaded = pv.load("run")
    assert type(loaded.vae).__name__ == "Own"
    assert loaded.vae.scale == 2.0
    assert len(loaded.history) == 3
    words = ["--num-samples", "200", "--num-data", "30", "--device", "cpu", "--threads", "1"]
    assert evaluate.main(["run", *words]) == 0
    assert "log p(x)" in capsys.readouterr().out
    found = summary()["evidence"]["importance-30"]
    x = loaded.data().test.x[:30]
    other = pv.evidence.importance_sampling(loaded.vae.model, loaded.vae.guide, x, num_samples=2000, seed=1).summary()
    assert found["log_px"]["value"] == pytest.approx(other.log_px, abs=0.3)


@pytest.mark.slow
def test_a_users_class_is_drawn():
    assert train.main([*LESS, "--run-dir", "run", "--model", "own_package.parts:Own", "--epochs", "1"]) == 0
    files = {file.name for file in Path("run").iterdir()}
    assert {"reconstructions.png", "samples.png", "interpolations.png", "curves.png", "grid.png", "log-px.png"} <= files


def test_two_runs_of_a_class_under_one_name_keep_their_own_parameters(no_pictures, capsys):
    """A user's class may register all its instances under one name."""
    words = [*LESS, "--model", "own_package.parts:Own", "--epochs", "1"]
    for seed in ("0", "1"):
        assert train.main([*words, "--run-dir", f"run{seed}", "--seed", seed]) == 0
    together = [json.loads(Path(f"run{seed}/summary.json").read_text())["test"]["elbo"]["value"] for seed in "01"]
    assert evaluate.main(["run0", "run1", "--num-samples", "5", "--quiet", "--device", "cpu", "--threads", "1"]) == 0
    again = [json.loads(Path(f"run{seed}/summary.json").read_text())["test"]["elbo"]["value"] for seed in "01"]
    assert again == pytest.approx(together, abs=1e-4)
    assert again[0] != again[1]


def test_networks_of_ones_own_by_path_and_by_object(no_pictures):
    run("--encoder", "own_package.parts:Encoder", "--epochs", "1")
    by_path = pv.load("run")
    from own_package.parts import Encoder

    assert by_path.vae.encoder.sizes == ((1, 8, 8), (4,), (8,), "tanh")
    torch.manual_seed(0)  # as the command makes it
    trained = []
    for encoder in (Encoder, Encoder((1, 8, 8), (4,), (8,), "tanh")):
        torch.manual_seed(0)
        vae = pv.VAE((1, 8, 8), 2, (8,), encoder=encoder)
        vae.encoder.load_state_dict(by_path.vae.encoder.state_dict())
        vae.decoder.load_state_dict(by_path.vae.decoder.state_dict())
        pv.fit(vae, by_path.data(), epochs=1, batch_size=200, compile=False, progress=False)
        trained.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    torch.testing.assert_close(trained[0], trained[1], rtol=0, atol=0)


def test_the_options_of_a_model_decide_its_objective(no_pictures):
    run("--model", "m2", "--model-options", "temperature=0.7", "--labels", "40", "--epochs", "1")
    assert pv.load("run").config.train.elbo == "trace"
    assert pv.load("run").config.model.num_classes == 10
    resume("--epochs", "2")


def test_plates_within_a_datum_do_not_collide_with_what_is_summed_over(no_pictures):
    """A user's program may nest plates to any depth."""
    x = """logits = (logits.squeeze(-3) if logits.dim() > 2 else logits).transpose(-1, -2)
            k = pyro.sample("k", dist.Bernoulli(torch.full((len(x),), 0.5)))
            with pyro.plate("pixels", 64, dim=-2):
                pyro.sample("x", dist.Bernoulli(logits=logits + k), obs=x.flatten(1).T)
"""
    k = """pyro.sample("z", self.encode(x))
            half = dist.Bernoulli(torch.full((len(x),), 0.5))
            pyro.sample("k", half, infer={"enumerate": "parallel"})
"""
    nested = OWN.replace('pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.flatten(1))\n', x)
    Path("own_package/nested.py").write_text(nested.replace('pyro.sample("z", self.encode(x))\n', k))
    words = [*LESS, "--model", "own_package.nested:Own", "--elbo", "enum", "--epochs", "1"]
    assert train.main([*words, "--run-dir", "run"]) == 0
    loaded = pv.load("run")
    batch = training_inputs(loaded.vae, loaded.data().train)[:20]
    losses = []
    for objective in (make_objective(loaded.config), pv.elbo("enum", max_plate_nesting=2)):
        objective.terms(loaded.vae.model, loaded.vae.guide, *batch)  # which may look how deep they are
        torch.manual_seed(0)
        losses.append(objective.terms(loaded.vae.model, loaded.vae.guide, *batch).loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("known", [pytest.param(True, marks=pytest.mark.slow), False])
def test_data_without_labels_in_every_split_are_evaluated_and_drawn(known, capsys):
    rng = np.random.default_rng(0)
    labels = {"train": [-1, 0, 1, 2] * 6, "test": [-1, 2, -1, -1, -1, 0, -1, -1] if known else [-1] * 8}
    arrays = {f"x_{split}": rng.integers(0, 2, (len(y), 4, 4)) * np.uint8(255) for split, y in labels.items()}
    np.savez("part.npz", **arrays, **{f"y_{split}": np.array(y) for split, y in labels.items()})
    files = {path.name for path in run("--model", "m2", "--dataset", "part.npz", "--epochs", "1").iterdir()}
    assert ("analogies.png" in files) == ("accuracy" in summary()["test"]) == known
    assert "latents.png" in files
    assert evaluate.main(["run", "--num-samples", "5", "--device", "cpu", "--threads", "1"]) == 0
    capsys.readouterr()
