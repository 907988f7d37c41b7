"""Faulty user classes: a sentence names the class and the place, before anything is written."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import report, train
from pyro_vae.data import Data, Split
from pyro_vae.inference import History
from pyro_vae.models import MODELS
from pyro_vae.report import draw_pictures

SMALL = (
    "--latent-dim 2 --num-samples 5 --batch-size 200 --epochs 1 --threads 1 --device cpu --quiet --run-dir run".split()
)

OWN = """
import pyro, torch
import pyro.distributions as dist
from torch import nn
from pyro_vae import VAE


class Own(VAE):
    def __init__(self, data_shape, latent_dim=2, **options):
        super().__init__(data_shape, latent_dim, (8,), **options)


class Encoding(Own):
    def encode(self, x):
        return torch.zeros(len(x), 2)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.posterior(self.encoder(x)))


class Decoding(Own):
    def decode(self, z):
        return z

    def model(self, x):
        self._register("decoder")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def sample(self, num_samples):
        return torch.zeros(num_samples, 1, 8, 8)

    def reconstruct(self, x):
        return x


class Other(Decoding):
    decode = VAE.decode

    def decode(self, z):
        raise KeyError("none such")


class Noting(Own):
    def after_epoch(self, x):
        raise KeyError("no note")


class Prior(Decoding):
    decode = VAE.decode
    number = 3

    def prior(self):
        return dist.Normal(0.0, 1.0)

    def model(self, x):
        self._register("decoder")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)


class Alone(Own):
    def model(self, x):
        pyro.param("tone", torch.tensor(1.0))
        return super().model(x)


class Nowhere(Own):
    def log_px(self, x):
        return x.flatten(1).sum(1) * float("nan")


class Later(Own):
    def log_px(self, x):
        return x.flatten(1).sum(1) / torch.full((len(x),), float(len(x) == 2))


class Unregistered(Own):
    def _register(self, *parts):
        return None


class Nan(Own):
    def encode(self, x):
        loc = self.encoder(x).chunk(2, -1)[0]
        return dist.Normal(loc * float("nan"), 1.0).to_event(1)


class Plateless(Own):
    def model(self, x):
        self._register("decoder")
        z = pyro.sample("z", self.prior())
        pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)


class Plateless2(Plateless):
    def guide(self, x):
        self._register("encoder")
        pyro.sample("z", self.encode(x))


class Wishing(Own):
    defaults = [1]


class Counting(Own):
    num_classes = "ten"


class Narrow(nn.Module):
    def __init__(self, size):
        super().__init__()


class Analogies(Own):
    num_classes = 10

    def analogies(self, x, y):
        return x
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """The command runs in a user's folder with a module."""
    (tmp_path / "faulty.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    sys.modules.pop("faulty", None)


def refused(capsys, *words: str) -> str:
    """The error of the command, which refuses these words and writes nothing."""
    assert train.main([*SMALL, *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert not Path("run").exists()
    return error


@pytest.mark.parametrize(
    ("name", "said", "line"),
    [
        ("Encoding", "Encoding.encode: expected a distribution, got Tensor (", "def encode"),
        (
            "Decoding",
            "Decoding.decode: expected a distribution, got Tensor (",
            "def decode(self, z):\n        return z",
        ),
        (
            "Other",
            "Other.decode: expected a method that runs on these data, got KeyError: 'none such' (",
            "raise KeyError",
        ),
        (
            "Noting",
            "Noting.after_epoch: expected a method that runs on these data, got KeyError: 'no note' (",
            'raise KeyError("no note',
        ),
        (
            "Nowhere",
            "Nowhere.log_px: expected finite numbers, got nan (",
            "def log_px(self, x):\n        return x.flatten(1).sum(1) *",
        ),
        ("Prior", "Prior.prior: expected a distribution whose draws have shape (2, any) for two draws, got (2,)", None),
        ("Analogies", "Analogies.analogies: expected shape (2, 10, 1, 8, 8) for 2 data, got (2, 1, 8, 8)", None),
    ],
)
def test_a_method_that_gives_something_else_is_refused(capsys, name, said, line):
    error = refused(capsys, "--model", f"faulty:{name}")
    assert f"model faulty:{said}" in error
    if line is not None:
        assert f"faulty.py, line {OWN[: OWN.index(line)].count(chr(10)) + 1})" in error


def test_a_picture_at_which_a_model_fails_leaves_the_others(tmp_path):
    from faulty import Own

    class Late(Own):
        def decode(self, z):
            if not self.training and len(z) > 2:
                raise IndexError("too late")
            return super().decode(z)

    Late.__module__ = "faulty"
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    vae = Late((1, 8, 8))
    with pytest.warns(UserWarning, match="IndexError: too late") as said:
        files = draw_pictures(vae, Data("random", Split(x)), History(), tmp_path)
    drawn = {file.name for file in files}
    assert {"latents.png", "units.png", "tsne.png"} <= drawn
    failed = {"reconstructions", "samples", "interpolations", "traversals", "grid"}
    assert {str(w.message).split(":")[0] for w in said} == {f"picture {name}" for name in failed}
    assert not drawn & {f"{name}.png" for name in failed}
    assert "the model's class failed with IndexError: too late" in str(said[0].message)
    assert all(file.is_file() for file in files)


def test_a_model_that_registers_no_parameters_is_refused_where_it_would_train_nothing(capsys):
    error = refused(capsys, "--model", "faulty:Unregistered")
    assert "model faulty:Unregistered: expected parameters registered with Pyro" in error
    assert "pyro.module" in error
    from faulty import Own, Unregistered

    x = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    with pytest.raises(ValueError, match=r"model Unregistered: expected parameters registered with Pyro.*pyro\.module"):
        pv.fit(Unregistered((1, 8, 8)), x, epochs=1, progress=False)
    frozen = Unregistered((1, 8, 8)).requires_grad_(False)  # nothing is there to be trained
    for vae in (Own((1, 8, 8)), frozen):
        assert len(pv.fit(vae, x, epochs=1, progress=False)) == 1


@pytest.mark.parametrize(
    ("words", "said", "how"),
    [
        ("--model faulty:Nan", "model faulty:Nan: expected distributions whose parameters are", "Normal with loc nan"),
        (
            "--model faulty:Plateless",
            "model faulty:Plateless: expected the same shape of site 'z' in both programs, got (2) in the model and (2, 2)",
            "plate",
        ),
        ("--model faulty:Plateless2", "plate", "'z'"),
        (
            "--model faulty:Alone",
            "model faulty:Alone, parameter 'tone': expected a parameter of the model's",
            "nn.Parameter",
        ),
        (
            "--model faulty:Own --model-options prior=3",
            "prior: expected a name or a module, got 3",
            "give a name or a module.",
        ),
        ("--model vae --model-options posterior=3.5", "posterior: expected a name or a module, got 3.5", "give a name"),
        (
            "--model denoising --model-options noise=3",
            "noise: expected a name or a module, got 3",
            "give a name or a module.",
        ),
        ("--model m2 --labels 20 --model-options classifier=3", "network: expected a module, or a callable", "got 3;"),
        ("--model faulty:Wishing", "model faulty:Wishing: expected `defaults` as a dict", "got [1]"),
        ("--model faulty:Counting", "model faulty:Counting.num_classes: expected the number of labels", "got 'ten'"),
        (
            "--encoder faulty:Narrow",
            "network Narrow: expected the parameters (in_shape, out_shape, hidden,",
            "Narrow(size)",
        ),
    ],
)
def test_the_mistake_of_a_class_is_named(capsys, words, said, how):
    error = refused(capsys, *words.split())
    assert said in error
    assert how in error


def test_a_figure_that_is_not_finite_after_training_is_left_out_and_the_others_are_kept(capsys, monkeypatch):
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    words = [word for word in SMALL if word != "--quiet"]
    with pytest.warns(
        UserWarning, match="log_px: expected finite numbers from the trained model, got non-finite ones for 180 of"
    ):
        assert train.main([*words, "--model", "faulty:Later", "--no-compile"]) == 0
    assert "log p(x), exactly: unknown nats" in capsys.readouterr().out
    test = json.loads(Path("run/summary.json").read_text())["test"]
    assert test["exact_log_px"] == {"value": None, "std_error": None, "num_data": 180}
    assert test["log_px"]["value"] < 0


@pytest.mark.parametrize("elbo", ["trace", "graph", "mean-field"])
def test_a_label_that_is_drawn_as_asked_is_no_matter_for_a_warning(capfd, recwarn, monkeypatch, elbo):
    """Pyro's warning names its own classes; ``mean-field`` refuses such a site."""
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    code = train.main([*SMALL, "--model", "m2", "--labels", "20", "--elbo", elbo, "--no-compile", "--hidden", "4"])
    assert code == (2 if elbo == "mean-field" else 0)
    assert not [w for w in recwarn if "TraceEnum_ELBO" in str(w.message)]
    assert "TraceEnum_ELBO" not in capfd.readouterr().err


def test_an_encoder_that_takes_other_arguments_is_named_in_python_too():
    from faulty import Narrow

    with pytest.raises(
        ValueError, match=r"network Narrow: expected the parameters .*in_shape, out_shape, hidden, activation"
    ):
        pv.VAE((1, 8, 8), 2, encoder=Narrow)


@pytest.mark.parametrize(
    ("words", "said", "how"),
    [
        ("--model m2 --label-seed 3", "label_seed: 3 has no effect without --labels", "remove --label-seed"),
        ("--model m2 --labels 20 --label-seed -1", "label_seed: expected a whole number from 0", "got -1"),
        (
            "--model tcvae --batch-size 1",
            "total_correlation: the total correlation needs batches of at least 2",
            "--batch-size is 1",
        ),
        (
            "--total-correlation 2 --batch-size 1",
            "total_correlation: the total correlation needs batches of at least 2",
            "--batch-size is 1",
        ),
        ("--total-correlation -1", "total_correlation: expected a finite number of at least 0", "got -1"),
    ],
)
def test_arguments_that_do_nothing_or_are_wrong_are_refused(capsys, words, said, how):
    error = refused(capsys, *words.split())
    assert said in error
    assert how in error


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([-1] * 6, r"labels: the classifier of M2 needs labels, but every label is -1 \(unknown\)"),
        ([0, 1, -1, -1, 1, 0], "labels: M2 has 3 classes, but the training data have labels of only 2"),
        ([0, 1, -1, -1, 2, 0], None),
    ],
)
def test_too_few_labels_of_a_classifier_warn(labels, said):
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    vae = MODELS["m2"]((1, 8, 8), 2, (8,), num_classes=3)
    with contextlib.nullcontext() if said is None else pytest.warns(UserWarning, match=said):
        pv.fit(vae, (x, torch.tensor(labels)), epochs=1, compile=False, progress=False)
