"""Options without effect are refused, and user classes that exit Python or train only half of their parameters."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pyro
import pytest
import torch

import pyro_vae as pv
from pyro_vae import elbo, report, train
from pyro_vae.cli.train_arguments import parse
from pyro_vae.inference import OBJECTIVES
from pyro_vae.models import MODELS
from pyro_vae.runs import pipeline
from pyro_vae.runs.description import describe

SMALL = (
    "--latent-dim 2 --num-samples 5 --batch-size 200 --epochs 1 --threads 1 --device cpu --quiet --run-dir run".split()
)

OWN = """
import math, pyro, torch
from torch import nn
from pyro_vae import VAE


class Flat(nn.Module):
    def __init__(self, in_shape, out_shape, hidden, activation):
        super().__init__()
        self.out_shape, self.head = out_shape, nn.Linear(math.prod(in_shape), math.prod(out_shape))

    def forward(self, x):
        return self.head(x.flatten(1)).reshape(len(x), *self.out_shape)


class Own(VAE):
    def __init__(self, data_shape, latent_dim=2):
        super().__init__(data_shape, latent_dim, (8,))
        self.for_pictures = nn.Linear(2, 2)


class ModelAlone(Own):
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))


class GuideAlone(Own):
    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.decode(pyro.sample("z", self.prior())), obs=x)
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


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])


def refused(capsys, *words: str) -> str:
    """The error of the command, which refuses these words and writes nothing."""
    capsys.readouterr()
    assert train.main([*SMALL, *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert not Path("run").exists()
    return error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model linear --hidden 32", "hidden: 32 changes nothing in the networks of --model linear"),
        (
            "--model linear --hidden",
            "hidden: no layers changes nothing in the networks of --model linear",
        ),
        ("--model linear --activation relu", "activation: relu changes nothing in the networks of"),
        ("--hidden --activation relu", "activation: relu changes nothing in the networks of --model vae"),
        ("--model linear --decoder faulty:Flat", "decoder: a linear model takes no decoder"),
        (
            "--model m1m2 --encoder faulty:Flat --model-options below=below",
            "encoder: faulty:Flat changes nothing",
        ),
        ("--model faulty:Own --hidden 32", "hidden: --model faulty:Own has no argument hidden"),
    ],
)
def test_a_network_option_without_effect_is_refused(capsys, no_pictures, words, said):
    if "below" in words:
        assert train.main([*SMALL[:-1], "below", "--hidden", "8"]) == 0
        words += " --labels 40"
    assert said in refused(capsys, *words.split())


@pytest.mark.thin(2, by="name")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("words", ["--hidden 8 16", "--activation relu"])
def test_each_model_reads_the_options_of_its_networks_and_says_so(name, words):
    more = ["--model-options", "posterior=normal"] if name == "linear" else []  # else it has no encoder
    prepared = pipeline.prepare(parse(["--model", name, *more, *words.split()])[0], torch.device("cpu"))
    assert ("hidden 8-16," if "--hidden" in words else "hidden 256-256,") in describe(prepared, "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model linear", "LinearVAE: latent_dim 16, normal likelihood,"),
        ("--hidden", "VAE: latent_dim 16, no hidden layer, bernoulli likelihood,"),
        ("--model m1m2 --latent-dim 2 --hidden 32 --model-options below=below", "M1M2: latent_dim 2, hidden 8-4, "),
    ],
)
def test_the_description_names_the_hidden_layers(no_pictures, words, said):
    if "below" in words:
        assert train.main([*SMALL[:-1], "below", "--hidden", "8", "4"]) == 0
    prepared = pipeline.prepare(parse(words.split())[0], torch.device("cpu"))
    assert said in describe(prepared, "cpu")


@pytest.mark.parametrize("flag", ["--model", "--encoder"])
@pytest.mark.parametrize("leaving", ["import sys; sys.exit()", "sys.exit('usage')", "raise SystemExit(3)", "exit(0)"])
def test_a_module_that_leaves_python_when_it_is_imported_is_refused(capsys, flag, leaving):
    Path("leaving.py").write_text(f"import sys\n{leaving}\n")
    error = refused(capsys, flag, "leaving:Own")
    assert "leaving:Own: importing leaving ends Python (sys.exit)" in error
    assert "__main__" in error


def ten(labels: list[int] | None = None) -> tuple[torch.Tensor, ...]:
    x = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    return (x,) if labels is None else (x, torch.tensor(labels))


@pytest.mark.parametrize(
    ("batch_size", "said"),
    [
        (1, r"expected batches of at least 2 data .* got 1, which leaves 1 of 10 data alone in a batch; use 2\."),
        (3, r"got 3, which leaves 1 of 10 data alone in a batch; use 4\."),
        (9, r"got 9, which leaves 1 of 10 data alone in a batch; use 10\."),
        (4, None),
        (10, None),
    ],
)
def test_a_total_correlation_is_given_no_datum_alone(batch_size, said):
    vae = MODELS["tcvae"]((1, 8, 8), 2, (8,))
    with contextlib.nullcontext() if said is None else pytest.raises(ValueError, match=said):
        pv.fit(vae, *ten(), batch_size=batch_size, epochs=1, compile=False, progress=False)


def test_the_command_refuses_a_last_batch_of_one_datum(capsys):
    error = refused(capsys, "--model", "tcvae", "--batch-size", "1436")  # of 1,437
    assert "batch_size: expected batches of at least 2 data" in error
    assert "leaves 1 of 1,437 data alone in a batch; use 1437." in error


@pytest.mark.parametrize("name", [name for name, cls in MODELS.items() if hasattr(cls, "classify")])
def test_batches_of_one_are_refused_where_some_labels_are_hidden(name):
    """Only batches with a label would have the term of alpha, which would then count less than its weight."""
    vae = MODELS[name]((1, 8, 8), 2, (8,), num_classes=2)
    options = {"batch_size": 1, "epochs": 1, "compile": False, "progress": False}
    some = ten([0, 1, -1, 0, -1, -1, 1, -1, 0, 1])
    with pytest.raises(ValueError, match="batch_size: expected at least 2 with .* partly labelled data"):
        pv.fit(vae, some, **options)
    assert pv.fit(vae, ten([0, 1] * 5), **options).steps == 10


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_alpha_counts_alike_in_batches_of_any_size_where_all_labels_are_known(batch_size):
    r"""Its term is :math:`\alpha \sum_i \log q(y_i|x_i)` over an epoch: a loss of two weights differs by that."""
    columns, objective, losses = ten([0, 1] * 5), elbo("enum", max_plate_nesting=1), []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        vae = MODELS["m2"]((1, 8, 8), 2, (8,), num_classes=2, classifier_weight=weight)
        with torch.no_grad(), pyro.get_param_store().scope():
            batches = zip(*(column.split(batch_size) for column in columns), strict=True)
            torch.manual_seed(1)
            losses.append(sum(objective.loss(vae.model, vae.guide, *batch) for batch in batches))
    x, y = columns
    expected = -3.0 * vae.classify(x).log().gather(1, y[:, None]).sum().item()
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.thin(2, by="elbo")
@pytest.mark.parametrize("elbo", [name for name in OBJECTIVES if name != "enum"])  # for which they have no site
@pytest.mark.parametrize(("name", "part"), [("ModelAlone", "encoder"), ("GuideAlone", "decoder")])
def test_a_class_with_an_unregistered_part_is_refused(capsys, name, part, elbo):
    error = refused(capsys, "--model", f"faulty:{name}", "--elbo", elbo, "--binarize", "threshold")
    assert (
        f"model faulty:{name}: expected every part that the objective uses to be registered with Pyro, got {part} unregistered"
        in error
    )
    assert f'pyro.module("{part}", self.{part})' in error


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fit_refuses_unregistered_parts_and_takes_frozen_or_unused_ones(compiled):
    import faulty

    options = {"epochs": 2, "batch_size": 5, "compile": compiled, "progress": False}
    with pytest.raises(
        ValueError,
        match="model ModelAlone: expected every part .* got encoder unregistered; in model or guide call pyro.module",
    ):
        pv.fit(faulty.ModelAlone((1, 8, 8)), *ten(), **options)
    with pytest.raises(ValueError, match="model GuideAlone: expected every part .* got decoder unregistered"):
        pv.fit(faulty.GuideAlone((1, 8, 8)), *ten(), **options)
    frozen = faulty.ModelAlone((1, 8, 8))
    frozen.encoder.requires_grad_(False)
    for vae in (faulty.Own((1, 8, 8)), frozen):
        before = {key: value.clone() for key, value in vae.state_dict().items()}
        pv.fit(vae, *ten(), **options)
        after = vae.state_dict()
        moved = {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])}
        assert moved == {"decoder"} | ({"encoder"} if vae is not frozen else set())


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("words", [[], pytest.param(["--model", "m2"], marks=pytest.mark.slow)])
def test_an_older_run_with_an_idle_label_seed_goes_on(no_pictures, words, finished):
    """Its configuration has a label seed without a number of labels; without a checkpoint it starts again."""
    assert train.main([*SMALL, *words]) == 0
    file = Path("run/checkpoint.pt")
    checkpoint = torch.load(file, weights_only=True)
    for config in (checkpoint["config"], written := json.loads(Path("run/config.json").read_text())):
        del config["data"]["labels"]
        config["data"]["label_seed"] = 3
    Path("run/config.json").write_text(json.dumps(written))
    torch.save(checkpoint, file)
    if not finished:
        file.unlink()
    more = "--epochs 2 --threads 1 --device cpu --quiet".split()
    assert train.main(["--resume", "run", *more]) == 0
    assert len(pv.load("run").history) == 2


def test_an_older_run_with_idle_widths_goes_on(no_pictures):
    assert train.main([*SMALL, "--model", "linear"]) == 0
    checkpoint = torch.load("run/checkpoint.pt", weights_only=True)
    checkpoint["config"]["model"]["hidden"] = [32]
    torch.save(checkpoint, "run/checkpoint.pt")
    assert train.main("--resume run --epochs 2 --threads 1 --device cpu --quiet".split()) == 0
    assert len(pv.load("run").history) == 2
