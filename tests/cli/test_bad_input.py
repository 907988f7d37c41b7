"""What a user can get wrong: each has its own sentence, exit code 2, no traceback, and nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pyro_vae import evaluate, train
from pyro_vae.runs.config import Config
from tests.children import ROOT

SMALL = "--latent-dim 2 --hidden 8 --num-samples 5 --threads 1 --device cpu --quiet --batch-size 100 --epochs 2".split()


class Anything:
    """A Python object in a file."""


def images(folder: Path, count: int = 5, size: tuple[int, int] = (4, 4)) -> None:
    folder.mkdir(parents=True)
    for k in range(count):
        Image.fromarray(np.full(size, 20 * k, np.uint8)).save(folder / f"{k}.png")


def write_arrays(at: Path) -> None:
    grey = np.linspace(0, 1, 20 * 16).reshape(20, 4, 4)
    hole, far = grey.copy(), grey.copy()
    hole[7, 1, 1], far[3, 0, 0] = np.nan, -np.inf
    arrays = {
        "grey": grey, "hole": hole, "far": far, "complex": grey + 1j, "line": grey[:, 0, 0], "point": np.float64(3),
        "deep": grey[:, None, None], "below": grey - 0.5, "above": grey * 300, "slightly": grey * 1.5, "two": grey[:2],
        "none": grey[:0], "flat": grey[:, :0], "words": np.array([["a", "b"]] * 20), "days": grey.astype("M8[D]"),
        "table": grey.reshape(20, 16) * 9 - 4, "integers": (grey * 1000).astype(np.int64),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(at / f"{name}.npy", array)
    np.save(at / "objects.npy", np.array([Anything(), None], dtype=object), allow_pickle=True)
    np.savez(at / "objects.npz", a=np.array([Anything(), None], dtype=object))
    np.savez(at / "several.npz", one=grey, other=grey)
    np.savez(at / "labels.npz", images=grey, labels=np.arange(19))
    np.savez(at / "unlike.npz", train=grey, test=grey[:, :3])
    np.savez(at / "ranges.npz", train=grey, test=(grey * 255).round())
    np.savez(at / "nothing.npz")
    np.savez(at / "onehot.npz", images=grey, labels=np.eye(5)[np.arange(20) % 5])
    np.savez(at / "onelabel.npz", images=grey, labels=np.int64(3))
    np.savez(at / "nolabel.npz", images=grey, labels=np.where(np.arange(20) == 4, np.nan, 1.0))
    np.savez(at / "onlylabels.npz", y=np.arange(20))
    np.savez(at / "case.npz", x=grey, X=grey)
    np.save(at / "rgba.npy", np.zeros((20, 8, 8, 4)))
    np.save(at / "vast.npy", grey.reshape(20, 16) * 1e300)
    (at / "loop.npy").symlink_to(at / "loop.npy")


def write_broken(at: Path) -> None:
    for suffix in ("npy", "npz", "csv", "parquet"):
        (at / f"empty.{suffix}").write_bytes(b"")
        (at / f"binary.{suffix}").write_bytes(bytes(range(128, 256)) * 9)
    for suffix in ("npy", "npz", "parquet"):
        (at / f"text.{suffix}").write_text("1, 2, 3\n4, 5, 6\n")
    for name in ("grey.npy", "several.npz"):
        whole = (at / name).read_bytes()
        (at / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
        (at / f"head-{name}").write_bytes(whole[:40])
    pd.DataFrame({"a": range(20)}).to_parquet(at / "whole.parquet")
    (at / "cut.parquet").write_bytes((at / "whole.parquet").read_bytes()[:200])
    (at / "pickle.npy").write_bytes(pickle.dumps([1, 2]))
    (at / "notes.txt").write_text("notes")


def write_tables(at: Path) -> None:
    (at / "ragged.csv").write_text("1,2\n3,4,5\n" * 9)
    (at / "names.csv").write_text("a,name\n" + "1,ann\n2,bob\n" * 9)
    (at / "gap.csv").write_text("a,b\n" + "1,2\n3,\n" * 9)
    (at / "labels.csv").write_text("a,b,y,label\n" + "1,2,0,0\n" * 9)
    (at / "blank.csv").write_text("a,b,label\n" + "1,2,cat\n3,4, \n" * 9)
    (at / "unlabelled.csv").write_text("a,b,label\n" + "1,2,0\n3,4,\n" * 9)
    (at / "header.csv").write_text("a,b\n")
    (at / "comment.csv").write_text("# units: mV\n" + "1.5,2.5,30,4\n" * 9)
    (at / "onlylabel.csv").write_text("label\n" + "1\n" * 9)


def write_folders(at: Path) -> None:
    images(at / "good")
    images(at / "broken")
    (at / "broken" / "3.png").write_bytes((at / "broken" / "2.png").read_bytes()[:50])
    images(at / "sizes")
    images(at / "sizes" / "more", 1, (5, 4))
    (at / "no-image").mkdir()
    (at / "no-image" / "notes.txt").write_text("notes")
    (at / "nothing").mkdir()
    images(at / "two-images", 2)
    images(at / "deep-images")
    for k in range(5):
        Image.fromarray(np.full((4, 4), k / 5, np.float32)).save(at / "deep-images" / f"f{k}.tiff")


def write_models(at: Path) -> None:
    (at / "bad_models.py").write_text(MODELS)


MODELS = """
import pyro, torch
import pyro.distributions as dist
from torch import nn
from pyro_vae import VAE

class Guideless(nn.Module):
    def model(self, x): ...

class Shapeless(nn.Module):
    def __init__(self, size): ...
    def model(self, x): ...
    def guide(self, x): ...

class Sound(VAE):
    def __init__(self, data_shape, latent_dim=2, hidden=(8,)):
        super().__init__(data_shape, latent_dim, hidden)

class Unlike(Sound):
    def guide(self, y, x, z): ...

class Unlike2(Sound):
    def model(self): ...

class Column(Sound):
    takes = ("x", "w")

class Wishing(Sound):
    defaults = {"colour": "red"}

class Needing(Sound):
    def __init__(self, data_shape, depth, latent_dim, hidden):
        super().__init__(data_shape)

class Unmade(Sound):
    def __init__(self, data_shape, latent_dim, hidden):
        1 / 0

class Failing(Sound):
    defaults = {"binarize": "dynamic"}
    def guide(self, x):
        1 / 0

class Grey(nn.Module):
    def __init__(self, data_shape, latent_dim, hidden):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(64))
    def model(self, x):
        pyro.module("grey", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=self.bias).to_event(1), obs=x.flatten(1))
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

class Sites(Grey):
    defaults = {"binarize": "dynamic"}
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("w", dist.Normal(torch.zeros(len(x)), 1.0))

class Plateless(Grey):
    defaults = {"binarize": "dynamic"}
    def model(self, x):
        pyro.module("plateless", self)
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=self.bias.expand(len(x), 64)).to_event(2), obs=x.flatten(1))
    def guide(self, x):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))

class Classifying(Grey):
    defaults = {"binarize": "dynamic"}
    num_classes = 10
    def classify(self, x):
        return torch.zeros(len(x)).long()

class Wide(nn.Module):
    def __init__(self, in_shape, out_shape, hidden, activation):
        super().__init__()
        self.inner = nn.Linear(torch.Size(in_shape).numel(), 5)
    def forward(self, x):
        return self.inner(x.flatten(1))

class Large(nn.Module):
    def __init__(self, in_shape, out_shape, hidden, activation):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 4, 7), nn.Conv2d(4, 4, 7), nn.Flatten())
    def forward(self, x):
        return self.inner(x)
"""


def write_configurations(at: Path) -> None:
    whole = Config().to_dict()
    texts = {
        "key": {**whole, "train": {**whole["train"], "epoch": 3}},
        "section": {**whole, "trian": {}},
        "type": {**whole, "train": {**whole["train"], "epochs": "many"}},
        "value": {**whole, "train": {**whole["train"], "epochs": -3}},
        "list": [1],
    }
    for name, values in texts.items():
        (at / f"{name}.json").write_text(json.dumps(values))
    (at / "deep.json").write_text("[" * 100_000)
    (at / "cut.json").write_text(json.dumps(whole)[:50])


def write_runs(at: Path) -> None:
    for name, content in {"empty": b"", "text": b"text", "zip": (at / "several.npz").read_bytes()}.items():
        (at / f"run-{name}").mkdir()
        (at / f"run-{name}" / "checkpoint.pt").write_bytes(content)
    (at / "run-schema").mkdir()
    torch.save({"schema": 99, "pyro_vae": "9.9"}, at / "run-schema" / "checkpoint.pt")
    (at / "run-object").mkdir()
    torch.save(Anything(), at / "run-object" / "checkpoint.pt")


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Iterator[Path]:
    """A folder of everything that can be wrong."""
    at = tmp_path_factory.mktemp("bad")
    for write in (
        write_arrays,
        write_broken,
        write_tables,
        write_folders,
        write_configurations,
        write_runs,
        write_models,
    ):
        write(at)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(at)
        patch.setattr(sys, "dont_write_bytecode", True)
        yield at


#: Words (BAD stands for the folder of bad files), what the sentence says came, how it says to mend it.
BAD = [
    ("--elbo tarce", "objective 'tarce'", "did you mean 'trace'"),
    ("--dataset digit", "data set 'digit'", "did you mean 'digits'"),
    ("--activation rellu", "activation 'rellu'", "did you mean 'relu'"),
    ("--likelihood bernouli", "likelihood 'bernouli'", "did you mean 'bernoulli'"),
    ("--optimizer adamm", "optimizer 'adamm'", "did you mean 'adam"),
    ("--lr-schedule cosin", "learning-rate schedule 'cosin'", "did you mean 'cosine'"),
    ("--anneal liner:0:10", "schedule 'liner'", "did you mean 'linear'"),
    ("--anneal linear:0", "anneal", "linear:START:STEPS"),
    ("--anneal linear:-1:10", "start of a schedule", "got -1"),
    ("--anneal linear:nan:10", "start of a schedule", "got nan"),
    ("--anneal cyclical:0:3:4", "cycles", "got 4"),
    ("--binarize dynamics", "binarization 'dynamics'", "did you mean 'dynamic'"),
    ("--device tpu", "device", "'tpu'"),
    ("--device cuda:x", "device", "'cuda:x'"),
    ("--device cuda:99", "device", "this machine has no device 'cuda:99'"),
    ("--epochs 0", "epochs", "got 0"),
    ("--batch-size 0", "batch_size", "got 0"),
    ("--latent-dim 0", "latent_dim", "got 0"),
    ("--hidden 0", "hidden", "got [0]"),
    ("--hidden 8 -1", "hidden", "got [8, -1]"),
    ("--lr 0", "lr", "got 0"),
    ("--lr -1", "lr", "got -1"),
    ("--lr nan", "lr", "got nan"),
    ("--lr inf", "lr", "got inf"),
    ("--beta -1", "beta", "got -1"),
    ("--beta nan", "beta", "got nan"),
    ("--beta -1 --anneal linear:0:10", "end of a schedule", "got -1"),
    ("--val-size 1617", "val_size", "got 1617"),
    ("--val-size -1", "val_size", "got -1"),
    ("--num-samples 1", "num_samples", "got 1"),
    ("--num-samples 0", "num_samples", "got 0"),
    ("--clip-norm 0", "clip_norm", "got 0"),
    ("--clip-norm nan", "clip_norm", "got nan"),
    ("--patience 0", "patience", "got 0"),
    ("--patience 2 --val-size 0", "patience", "--val-size is 0"),
    ("--num-particles 0", "num_particles", "got 0"),
    ("--threads 0", "threads", "got 0"),
    ("--seed 99999999999999999999", "seed", "got 99999999999999999999"),
    ("--data-seed 99999999999999999999", "data_seed", "got 99999999999999999999"),
    ("--binarize none", "grey", "--binarize dynamic"),
    ("--dataset mnist --no-download --data-dir nowhere", "mnist", "--download"),
    ("--resume nowhere", "nowhere", "checkpoint.pt"),
    ("--run-dir taken", "taken", "--overwrite"),
    ("--run-dir taken/notes.txt", "notes.txt", "expected a folder"),
    # What an objective refuses.
    ("--elbo rws --beta 2", "KL weight", "elbo('trace')"),
    ("--elbo tvo --anneal linear:0:10", "KL weight", "elbo('trace')"),
    ("--elbo trace --alpha 0.5", "--alpha: needs", "--elbo renyi or dreg"),
    ("--elbo iwae --num-groups 2", "--num-groups: needs", "--elbo miwae or piwae"),
    ("--elbo vimco --num-particles 1", "got 1", "at least 2 for vimco"),
    ("--elbo renyi --alpha nan", "got nan", "0 the bound of iwae"),
    ("--elbo ciwae --elbo-weight 2", "got 2", "in [0, 1]"),
    ("--elbo miwae --num-groups 0", "got 0", "num_groups"),
    ("--elbo enum", "enum", "'z'"),
    ("--elbo iwae --free-bits 1", "got IWAE", "elbo('mean-field')"),
    ("--free-bits 0", "got 0", "positive number of nats"),
    ("--free-bits 1 --free-bits-per pixel", "got 'pixel'", "'unit' or 'site'"),
    ("--min-rate nan", "got nan", "positive number of nats"),
    ("--free-bits 1 --min-rate 2", "cannot be combined with", "remove one of the two"),
    ("--capacity much", "got 'much'", "NATS:STEPS"),
    ("--capacity 25:0", "got 0", "at least 1 step"),
    ("--capacity 25 --beta 2", "weights the KL itself", "remove beta"),
    ("--target-rate -1", "got -1", "positive number of nats"),
    ("--beta z=x", "got 'z=x'", "z1=0.5,z2=2"),
    ("--beta many", "got 'many'", "z1=0.5,z2=2"),
    ("--beta y=2", "'y'", "'z'"),
    ("--anneal cosine:0", "cosine:START:STEPS", "got 'cosine:0'"),
    # Labels.
    ("--model m2 --dataset BAD/grey.npy", "data set grey.npy has none", "choose data with labels"),
    ("--model conditional --dataset BAD/grey.npy", "data set grey.npy has none", "choose data with labels"),
    ("--model m2 --dataset BAD/grey.npy --num-classes 3", "the train data have none", "use data with labels (-1 where"),
    ("--model m2 --num-classes 3", "num_classes: expected at least 10", "got 3; remove --num-classes"),
    ("--model m2 --num-classes 1", "num_classes: expected at least 10", "got 1; remove --num-classes"),
    ("--model m2 --labels 5", "expected from 10 (one of each class)", "got 5"),
    ("--model m2 --labels 5000", "(all labels), got 5,000", "remove --labels"),
    ("--model m2 --labels -1", "got -1", "one of each class"),
    ("--labels 50", "--model vae takes no labels, got 50", "remove --labels"),
    ("--model conditional --labels 50", "--model conditional needs the label of each datum, got 50", "remove --labels"),
    ("--model m2 --labelled-per-batch 5", "only one kind", "hide labels (--labels)"),
    ("--model m2 --labels 50 --labelled-per-batch 100", "between 1 and 99", "got 100"),
    ("--num-classes 10", "--model vae has no argument num_classes, got 10", "remove --num-classes"),
    # Models and their options.
    ("--model vea", "model 'vea'", "did you mean 'vae'"),
    ("--model m2 --model-options temprature=0.7", "'temprature'", "did you mean 'temperature'"),
    ("--model m2 --model-options temperature", "got 'temperature'", "NAME=VALUE"),
    ("--model m2 --model-options temperature=warm", "temperature", "warm"),
    ("--model m2 --model-options temperature=-1", "got -1", "a number above 0"),
    ("--model m2 --model-options classifier_weight=-1", "got -1", "at least 0"),
    ("--model m2 --model-options temperature=0.7 --elbo enum", "enum", "--elbo trace"),
    ("--model denoising --model-options noise=fog:0.3", "'fog", "masking"),
    ("--model inpainting --model-options mask=fog", "fog", "expected"),
    ("--model conditional --elbo enum", "draws 'z'", "--elbo trace"),
    ("--model autoencoder --beta 4", "autoencoder", "remove --beta"),
    ("--model autoencoder --beta-sweep 1 2", "autoencoder", "choose a vae"),
    # A user's own.
    ("--model bad_models:", "got 'bad_models:'", "MODULE:CLASS"),
    ("--model nowhere.models:Mine", "no module called nowhere", "PYTHONPATH"),
    ("--model bad_models:Other", "got none", "torch.nn.Module in bad_models"),
    ("--model bad_models:Guideless", "has no guide", "write guide"),
    ("--model bad_models:Shapeless", "got Shapeless(size)", "add the parameter data_shape"),
    ("--model bad_models:Unlike", "got guide(y, x, z)", "change guide or `takes`"),
    ("--model bad_models:Unlike2", "got model()", "change model or `takes`"),
    ("--model bad_models:Column", "got ('x', 'w')", "correct the class"),
    ("--model bad_models:Wishing", "got 'colour'", "correct the class"),
    ("--model bad_models:Needing", "a value for depth", "--model-options depth=VALUE"),
    ("--model bad_models:Unmade", "ZeroDivisionError: division by zero", "bad_models.py, line"),
    ("--model bad_models:Failing", "ZeroDivisionError: division by zero", "bad_models.py, line"),
    ("--model bad_models:Grey", "pixels that are 0 or 1 at site 'x'", "--binarize dynamic"),
    ("--model bad_models:Sites", "latent site 'z'", "add the site to the guide"),
    ("--model bad_models:Classifying", "got (2,)", "correct or remove the method"),
    ("--model bad_models:Plateless", "no pyro.plate encloses", "with pyro.plate"),
    ("--encoder bad_models:Encoder", "got none", "a subclass of torch.nn.Module in bad_models"),
    ("--encoder nowhere:Encoder", "no module called nowhere", "PYTHONPATH"),
    ("--encoder bad_models:Guideless", "Guideless", "a constructor refused"),
    ("--encoder bad_models:Wide", "got (2, 5)", "let the last layer use out_shape"),
    ("--decoder bad_models:Wide", "got (2, 5)", "let the last layer use out_shape"),
    ("--encoder bad_models:Large", "inputs of shape (2, 1, 8, 8)", "use larger inputs"),
    ("--model m2 --encoder bad_models:Wide", "a constructor failed with", "bad_models.py, line"),
    ("--model linear --encoder bad_models:Wide", "got (2, 5)", "out_shape"),
    # A path that is no data.
    ("--dataset nowhere.npy", "nowhere.npy", "spelling"),
    ("--dataset ./digits", "digits", "spelling"),
    ("--dataset fashion", "data set 'fashion'", "did you mean 'fashion-mnist'? Or give the path"),
    ("--dataset BAD/notes.txt", "another kind of file", ".parquet"),
    ("--dataset BAD/empty.npy", "an empty file", "save the array again"),
    ("--dataset BAD/empty.npz", "an empty file", "save the array again"),
    ("--dataset BAD/empty.csv", "an empty file", "a table of numbers"),
    ("--dataset BAD/empty.parquet", "an empty file", "write the file again"),
    ("--dataset BAD/binary.npy", "no array", "save the array again"),
    ("--dataset BAD/binary.npz", "no array", "save the array again"),
    ("--dataset BAD/binary.csv", "decode", "UTF-8"),
    ("--dataset BAD/binary.parquet", "arquet", "write the file again"),
    ("--dataset BAD/text.npy", "text", "save the array again"),
    ("--dataset BAD/text.npz", "text", "save the array again"),
    ("--dataset BAD/text.parquet", "arquet", "write the file again"),
    ("--dataset BAD/cut-grey.npy", "a file that ends too early", "save the array again"),
    ("--dataset BAD/head-grey.npy", "a file that ends too early", "save the array again"),
    ("--dataset BAD/cut-several.npz", "a file that ends too early", "save the array again"),
    ("--dataset BAD/head-several.npz", "a file that ends too early", "save the array again"),
    ("--dataset BAD/cut.parquet", "arquet", "write the file again"),
    ("--dataset BAD/objects.npy", "Python objects", "save the array again"),
    ("--dataset BAD/objects.npz", "Python objects", "save the array again"),
    ("--dataset BAD/pickle.npy", "no array", "save the array again"),
    # An array that is no data.
    ("--dataset BAD/complex.npy", "complex numbers", "astype"),
    ("--dataset BAD/words.npy", "text", "astype"),
    ("--dataset BAD/days.npy", "datetime64", "astype"),
    ("--dataset BAD/hole.npy", "NaN or infinity in row 7", "remove such rows"),
    ("--dataset BAD/far.npy", "NaN or infinity in row 3", "remove such rows"),
    ("--dataset BAD/below.npy", "got -0.5 to 0.5", "rescale"),
    ("--dataset BAD/above.npy", "got 0 to 300", "rescale"),
    ("--dataset BAD/slightly.npy", "got 0 to 1.5", "rescale"),
    ("--dataset BAD/integers.npy", "got 0 to 1000", "rescale"),
    ("--dataset BAD/line.npy", "1 dimension (20,)", "reshape"),
    ("--dataset BAD/point.npy", "0 dimensions ()", "reshape"),
    ("--dataset BAD/deep.npy", "5 dimensions", "reshape"),
    ("--dataset BAD/two.npy", "got shape (2, 4, 4)", "at least 3 data"),
    ("--dataset BAD/none.npy", "got shape (0, 4, 4)", "at least 3 data"),
    ("--dataset BAD/flat.npy", "got shape (20, 0, 4)", "none of them empty"),
    ("--dataset BAD/table.npy", "-4 to 5", "--likelihood normal"),
    ("--dataset BAD/table.npy --likelihood continuous-bernoulli", "got -4 to", "--likelihood normal"),
    ("--dataset BAD/grey.npy --binarize none", "grey", "--likelihood continuous-bernoulli"),
    ("--dataset BAD/several.npz", "holds 2 arrays (one, other)", "--array"),
    ("--dataset BAD/several.npz --array tow", "array of several.npz 'tow'", "expected one of one, other"),
    ("--dataset BAD/nothing.npz", "got an empty .npz file", "at least one array"),
    ("--dataset BAD/labels.npz", "got 19 labels", "a label for each of 20"),
    ("--dataset BAD/unlike.npz", "train (1, 4, 4), test (1, 3, 4)", "save all splits alike"),
    ("--dataset BAD/ranges.npz", "train 1.0, test 255.0", "save all splits alike"),
    ("--dataset BAD/grey.npy --array grey", "got 'grey'", "remove --array"),
    ("--dataset digits --array grey", "got 'grey'", "remove --array"),
    ("--dataset BAD/grey.npy --skip-broken", "grey.npy", "a folder of images"),
    ("--dataset BAD/grey.npy --val-size 18", "got 18", "between 0 and 17"),
    ("--dataset BAD/rgba.npy", "got shape (20, 8, 8, 4)", "1 or 3 channels"),
    ("--dataset BAD/vast.npy --likelihood normal", "got up to 1e+300", "float32"),
    ("--dataset BAD/onehot.npz", "got shape (20, 5)", "argmax"),
    ("--dataset BAD/onelabel.npz", "got shape ()", "one label for each datum"),
    ("--dataset BAD/nolabel.npz", "row 4 has no label", "write -1 for an unknown label"),
    ("--dataset BAD/onlylabels.npz", "got only labels (y)", "add the data"),
    ("--dataset BAD/case.npz", "holds 2 arrays (X, x)", "--array"),
    ("--dataset BAD/loop.npy", "loop.npy", "check"),
    ("--dataset BAD/grey.npy --image-size 100000000", "got 100000000", "8,192"),
    # A table or a folder that is none.
    ("--dataset BAD/comment.csv", "got 1 name above longer rows", "remove comments"),
    ("--dataset BAD/onlylabel.csv", "beside 'label', got none", "add columns"),
    ("--dataset BAD/deep-images", "32 bits a pixel, mode F", "save with 8 or 16"),
    ("--dataset=", "got nothing", "digits"),
    ("--dataset BAD/ragged.csv", "line 2", "rows of one length"),
    ("--dataset BAD/names.csv", "got 'ann' in column 'name'", "name it 'label'"),
    ("--dataset BAD/gap.csv", "NaN or infinity in row 1", "remove such rows"),
    ("--dataset BAD/labels.csv", "y, label", "keep only one"),
    (
        "--dataset BAD/blank.csv",
        "label: row 1 has no label",
        "write -1 for an unknown label",
    ),
    (
        "--dataset BAD/unlabelled.csv",
        "label: row 1 has no label",
        "write -1 for an unknown label",
    ),
    ("--dataset BAD/header.csv", "got none", "at least 3 rows"),
    ("--dataset BAD/nothing", "found no images", "check the path"),
    ("--dataset BAD/no-image", "found no images", ".png"),
    ("--dataset BAD/broken", "3.png", "--skip-broken"),
    ("--dataset BAD/sizes", "4 x 4 (0.png) and 5 x 4 (more/0.png)", "--image-size"),
    ("--dataset BAD/two-images", "got 2", "at least 3 images"),
    ("--dataset BAD/good --array one", "got 'one'", "remove --array"),
    ("--dataset BAD/good --image-size 0", "got 0", "one or two whole numbers"),
    ("--dataset BAD/good --image-size 2 2 2", "got 2 2 2", "one or two whole numbers"),
    ("--dataset BAD/good --num-workers -1", "got -1", "num_workers"),
    # A configuration, a run.
    ("--config BAD/key.json", "'epoch'", "did you mean 'epochs'"),
    ("--config BAD/section.json", "'trian'", "did you mean 'train'"),
    ("--config BAD/type.json", "got 'many'", "a whole number"),
    ("--config BAD/value.json --epochs -3", "got -3", "epochs"),
    ("--config BAD/list.json", "got [1]", "config.json"),
    ("--config BAD/deep.json", "deep.json", "a JSON file"),
    ("--threads 100000000", "got 100000000", "at most"),
    ("--config BAD/cut.json", "cut.json", "a JSON file"),
    ("--config BAD/nowhere.json", "nowhere.json", "a JSON file"),
    ("--config BAD/key.json --resume BAD/run-text", "cannot be combined with --resume", "remove one of the two"),
    ("--resume BAD/nothing", "checkpoint.pt is missing", "name the folder of a run"),
    ("--resume BAD/run-empty", "cannot be read", "a checkpoint of pyro_vae"),
    ("--resume BAD/run-text", "cannot be read", "a checkpoint of pyro_vae"),
    ("--resume BAD/run-zip", "cannot be read", "a checkpoint of pyro_vae"),
    ("--resume BAD/run-object", "cannot be read", "a checkpoint of pyro_vae"),
    ("--resume BAD/run-schema", "99", "schema"),
    # Files and networks that are not there.
    ("--dataset fashion-mnist --no-download --data-dir nowhere", "nowhere", "--dataset digits"),
    ("--dataset cifar10 --no-download --data-dir nowhere", "nowhere", "--dataset digits"),
    # What the parser itself refuses.
    ("--epochs many", "epochs", "many"),
    ("--epochs 1.5", "epochs", "1.5"),
    ("--no-such-flag 3", "--no-such-flag", "unrecognized"),
    ("--latent-dims 3", "--latent-dims", "did you mean --latent-dim?"),
    ("--resume", "--resume", "expected a value, got none"),
    ("--dataset -x", "--dataset", "if it is the value, write --dataset=-x."),
    ("--download=False", "--download: expected no value, got 'False'", "write --no-download."),
    ("--overwrite=yes", "--overwrite: expected no value, got 'yes'", "write --overwrite."),
    ("-- --lr 3", "unexpected word '--lr'", "remove the --."),
]


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with somebody's file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    return tmp_path


@pytest.fixture(autouse=True)
def threads():
    """--threads sets torch's own count: give it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def words_of(text: str, bad: Path) -> list[str]:
    return [word.replace("BAD", str(bad)) for word in text.split()]


def check(code: int, out: str, error: str, what: str, how: str) -> None:
    assert code == 2, error
    assert out == ""
    assert what in error
    assert how in error
    assert "Traceback" not in error
    assert error.count("\n") == 1, error
    assert error.startswith("pyro_vae.")
    assert ": error: " in error


@pytest.mark.parametrize(("words", "what", "how"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_refused_before_anything_is_written(here, bad, capsys, words, what, how):
    before = listing(bad)
    code = train.main([*SMALL, *words_of(words, bad)])
    check(code, *capsys.readouterr(), what, how)
    assert listing(here) == ["taken", "taken/notes.txt"]
    assert listing(bad) == before


def test_there_are_at_least_60_of_them():
    assert len({row[0] for row in BAD}) == len(BAD) >= 60


@pytest.mark.parametrize(
    ("words", "what", "how"),
    [
        ("", "none", "at least one run"),
        ("--checks gaps BAD/nothing", "/nothing'; put the folders before", "at least one run"),
        ("-- -a", "-a", "name the folder of a run"),
        ("-- --version", "--version", "name the folder of a run"),
        ("BAD/nothing", "checkpoint.pt is missing", "name the folder of a run"),
        ("BAD/run-text", "cannot be read", "a checkpoint of pyro_vae"),
        ("BAD/run-object", "cannot be read", "a checkpoint of pyro_vae"),
        ("BAD/run-schema", "99", "schema"),
        ("BAD/run-text --device tpu", "'tpu'", "cpu"),
        ("BAD/run-text --threads 0", "got 0", "at least 1"),
        ("BAD/run-text --no-such-flag", "--no-such-flag", "nrecognized"),
    ],
)
def test_bad_input_to_evaluate(here, bad, capsys, words, what, how):
    before = listing(bad)
    check(evaluate.main(words_of(words, bad)), *capsys.readouterr(), what, how)
    assert (listing(here), listing(bad)) == (["taken", "taken/notes.txt"], before)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("--dataset BAD/grey.npy", "grey.npy"),
        ("--dataset BAD/good", "good"),
        ("--dataset BAD/several.npz", "several.npz"),
    ],
)
def test_data_that_may_not_be_read(here, bad, monkeypatch, capsys, words, name):
    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    if name == "good":
        monkeypatch.setattr(Image, "open", lambda path: denied(path))
    elif name == "grey.npy":
        monkeypatch.setattr(np, "load", lambda path, **kwargs: denied(path))
    else:
        monkeypatch.setattr(Path, "open", denied)
    check(train.main([*SMALL, *words_of(words, bad)]), *capsys.readouterr(), "Permission denied", str(bad / name))
    assert listing(here) == ["taken", "taken/notes.txt"]


#: As a user meets them, a process each: module, words, what, how. Every command, and what is found while parsing, while
#: choosing and while reading; the slow ones are of other kinds of files, of which the process shows nothing more.
PROCESSES = [
    ("train", "--elbo tarce", "objective 'tarce'", "did you mean 'trace'"),
    ("train", "--resume BAD/run-object", "cannot be read", "a checkpoint of pyro_vae"),
    ("data", "fashion", "'fashion'", "did you mean 'fashion-mnist'"),
]
MORE_PROCESSES = [
    ("evaluate", "BAD/nothing", "checkpoint.pt is missing", "name the folder of a run"),
    ("train", "--epochs many", "many", "epochs"),
    ("train", "--lr nan", "got nan", "lr"),
    ("train", "--dataset BAD/hole.npy", "NaN or infinity in row 7", "remove such rows"),
    ("train", "--dataset BAD/objects.npz", "Python objects", "save the array again"),
    ("train", "--dataset BAD/broken", "3.png", "--skip-broken"),
    ("train", "--dataset BAD/ragged.csv", "line 2", "rows of one length"),
    ("train", "--config BAD/key.json", "'epoch'", "did you mean 'epochs'"),
    ("train", "--run-dir taken", "taken", "--overwrite"),
    ("train", "--device cuda:99", "cuda:99", "--device cpu"),
]


def process(module: str, words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"pyro_vae.{module}", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize(
    "rows", [PROCESSES, pytest.param(MORE_PROCESSES, marks=pytest.mark.slow)], ids=["some", "more"]
)
def test_bad_input_to_real_processes(here, bad, rows):
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda row: process(row[0], words_of(row[1], bad), here), rows))
    for result, (_, _, what, how) in zip(done, rows, strict=True):
        check(result.returncode, result.stdout, result.stderr, what, how)
    assert listing(here) == ["taken", "taken/notes.txt"]
