"""Jobs of several processes, as ``torchrun`` would start them, and programs whose noise lies in the data."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import parallel, train
from pyro_vae.data import Data, Split, Stored
from pyro_vae.inference.capture import graph as capture
from pyro_vae.inference.kl.floors import FreeBits, MinimumRate
from pyro_vae.inference.kl.targets import Capacity, TargetRate
from pyro_vae.inference.svi.svi import SVI
from pyro_vae.inference.training.validation import evaluate_terms
from pyro_vae.models.semi_supervised.labels import Labels
from pyro_vae.runs.evaluation.estimators import Estimation, estimate
from tests.children import Child, Nursery

LATENT, PIXELS = 2, 5


class Job:
    """Processes that are told their ranks; on this machine, without a network.

    Args:
        nursery: Which forks them.
        size: How many.
        words: Those of the command line.
        folder: Where their outputs go.
        options: See :meth:`Nursery.start`; ``only={rank: options}`` for single ranks.
    """

    def __init__(self, nursery: Nursery, size: int, words: Sequence[str], folder: Path, **options: Any) -> None:
        only = options.pop("only", {})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self.ranks: list[Child] = []
        for rank in range(size):
            env = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.ranks.append(nursery.start(words, folder, env=env, **{**options, **only.get(rank, {})}))

    def wait(self) -> list[int]:
        """Their exit codes."""
        return [child.wait() for child in self.ranks]

    @property
    def texts(self) -> list[str]:
        """What they printed."""
        return [child.text for child in self.ranks]


class Noisy(dist.Normal):
    """A normal whose draws have their noise given, in the place of the generator's."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return (self.loc + self.scale * self.noise).expand(self._extended_shape(sample_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Noisy:
        return Noisy(*(part.expand(batch_shape) for part in (self.loc, self.scale, self.noise)))


class Rows(nn.Module):
    """A small VAE of rows ``(pixels, noise)``: the noise of its guide's draw goes with the datum.

    Args:
        full_size: N, which the plate declares; None: the plate is the batch.
    """

    events = 1

    def __init__(self, full_size: int | None = None) -> None:
        super().__init__()
        self.full_size = full_size
        generator = torch.Generator().manual_seed(5)
        self.encoder, self.decoder = nn.Linear(PIXELS, 2 * LATENT), nn.Linear(LATENT, PIXELS)

        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator))
        self.double()

    def plate(self, x: Tensor) -> Any:
        if self.full_size is None:
            return pyro.plate("data", len(x), dim=-1)
        return pyro.plate("data", self.full_size, subsample=torch.arange(len(x)), dim=-1)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[..., PIXELS:]), 1.0).to_event(self.events))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(self.events), obs=x[..., :PIXELS])

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x[..., :PIXELS]).chunk(2, -1)
        with self.plate(x):
            pyro.sample("z", Noisy(loc, log_scale.exp(), x[..., PIXELS:]).to_event(self.events))


class LabelledRows(Rows):
    """The same with labels, known for some rows, that a classifier learns beside it."""

    takes = ("x", "y")

    def __init__(self, full_size: int | None = None) -> None:
        super().__init__(full_size)
        self.labels = Labels(3, 2.0)
        self.classifier = nn.Linear(PIXELS, 3).double()
        with torch.no_grad():
            for p in self.classifier.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))

    def model(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        pyro.module("decoder", self.decoder)
        pyro.module("classifier", self.classifier)
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[..., PIXELS:]), 1.0).to_event(self.events))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(self.events), obs=x[..., :PIXELS])
            self.labels.classified(y, self.classifier(x[..., :PIXELS]))

    def guide(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        super().guide(x)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(x[..., :PIXELS]).softmax(-1)


def known(num: int) -> Tensor:
    """Labels of so many rows, of which every third is known."""
    return torch.where(torch.arange(num) % 3 == 0, torch.arange(num) // 3 % 3, -1)


def rows(num: int, seed: int = 1) -> Tensor:
    """Data for it, shape ``(num, PIXELS + LATENT)``."""
    return torch.randn(num, PIXELS + LATENT, generator=torch.Generator().manual_seed(seed)).double()


#: What is compared: the plate's N, the objective, the size of a batch, and more options of ``fit``.
CASES: dict[str, tuple[int | None, Any, int, dict[str, Any]]] = {
    "whole plate": (None, lambda: pv.elbo("trace"), 8, {}),
    "declared size": (22, lambda: pv.elbo("trace"), 8, {}),
    "declared size, uneven": (22, lambda: pv.elbo("mean-field"), 7, {"clip_norm": 0.5}),
    "uneven, an empty share": (None, lambda: pv.elbo("mean-field"), 7, {"optimizer": "adamw"}),
    "fewer data than ranks": (None, lambda: pv.elbo("trace"), 2, {"optimizer": "sgd", "lr": 1e-3}),
    "clipped, annealed": (
        None,
        lambda: pv.elbo("trace"),
        5,
        {"clip_norm": 0.1, "beta": pv.schedules.linear(0.0, 1.0, 6)},
    ),
    "free bits": (None, lambda: FreeBits(pv.elbo("mean-field"), 0.4), 7, {"beta": 0.7}),
    "free bits, declared size": (22, lambda: FreeBits(pv.elbo("trace"), 0.4), 7, {}),
    "minimum rate": (None, lambda: MinimumRate(pv.elbo("trace"), 1.5), 5, {}),
    "capacity": (None, lambda: Capacity(pv.elbo("mean-field"), 1.0, 10, 3.0), 7, {}),
    "capacity, declared size": (22, lambda: Capacity(pv.elbo("mean-field"), 1.0, 10, 3.0), 7, {"clip_norm": 1.0}),
    "target rate": (None, lambda: TargetRate(pv.elbo("trace"), 1.0), 7, {}),
    "labels for some": (None, lambda: pv.elbo("trace"), 7, {}),
    "labels for some, one or none a rank": (None, lambda: pv.elbo("trace"), 4, {"clip_norm": 0.5}),
}


def trained(name: str, **more: Any) -> dict[str, Any]:
    """What training gives in one of the ``CASES``: the history without times, parameters, whether steps were compiled."""
    full_size, objective, batch_size, options = CASES[name]
    labelled = name.startswith("labels")
    model = (LabelledRows if labelled else Rows)(full_size)
    y, validation = (known(22), known(9)) if labelled else (None, None)
    data = Data("rows", Split(rows(22), y), Split(rows(9, 2), validation))
    options = {"epochs": 2, "lr": 1e-2, "progress": False, **options, **more}
    history = pv.fit(model, data, elbo=objective(), batch_size=batch_size, **options)
    times = ("seconds", "images_per_second")
    kept = [{k: v for k, v in row.items() if k not in times} for row in history.rows]
    return {"rows": kept, "state": model.state_dict(), "compiled": history.compiled}


def train_all(words: list[str]) -> int:
    """In each rank: all cases, into a file for each rank."""
    torch.manual_seed(int(os.environ["RANK"]))
    with parallel.process_group() as world:
        found = {name: trained(name, **json.loads(words[1])) for name in CASES}
        torch.save(found, Path(words[0]) / f"rank-{world.rank}.pt")
    return 0


def train_and_signal(words: list[str]) -> int:
    """The command, in which a signal comes to one rank during a step: ``STEP SIGNAL RANK WORDS...``."""
    call, number, rank = int(words[0]), getattr(signal, words[1]), words[2]
    step, calls = SVI.step_terms, []

    def interrupted(self: SVI, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == call and os.environ["RANK"] == rank:
            signal.raise_signal(number)
        return step(self, *args)

    SVI.step_terms = interrupted  # type: ignore[method-assign]
    return train.main(words[3:])


def fail(words: list[str]) -> int:
    """In each rank: what ends a fit in which something goes wrong on one, ``KIND OBJECTIVE EPOCHS FOLDER``."""
    kind, objective, begun, folder = words
    with parallel.process_group() as world:
        model = Broken(kind, int(begun))
        bent = FreeBits(pv.elbo("mean-field"), 0.4) if objective == "free-bits" else pv.elbo(objective)
        found = "nothing"
        capture._compiled = lambda graph, inputs: graph
        options = {"batch_size": 8, "epochs": 3, "progress": False, "compile": objective == "mean-field"}
        try:
            pv.fit(model, rows(22), elbo=bent, callbacks=[model.count], **options)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        Path(folder, f"rank-{world.rank}.txt").write_text(found)
    return 0


class Broken(Rows):
    """A program in which something goes wrong on the last rank, after some epochs.

    Args:
        kind: ``"nan"``, ``"error"`` or ``"drift"``; on all ranks ``"loose"`` parameters and ``"bare"`` data without a plate.
        begun: How many epochs.
    """

    def __init__(self, kind: str, begun: int) -> None:
        super().__init__()
        self.kind, self.left = kind, begun
        self.events = 2 if kind == "bare" else 1

    def count(self, training: Any) -> None:
        """A callback: an epoch is over."""
        self.left -= 1

    def plate(self, x: Tensor) -> Any:
        return contextlib.nullcontext() if self.kind == "bare" else super().plate(x)

    def guide(self, x: Tensor) -> None:
        world = parallel.world()
        if self.kind == "loose":
            x = x * pyro.param("loose", torch.ones(()))
        if self.kind in ("nan", "error", "drift") and self.left <= 0 and world.rank == world.size - 1:
            if self.kind == "nan":
                x = torch.cat([x[..., :PIXELS] * torch.nan, x[..., PIXELS:]], -1)
            elif self.kind == "error":
                raise RuntimeError("the machine is on fire")
            else:
                with torch.no_grad():
                    self.decoder.bias[0] += 1e-12
        super().guide(x)


class Recorded:
    """A reader of rows that writes down which of them are read."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.read_rows, self.shape = values, [], tuple(values.shape)

    def read(self, chosen: Any) -> Tensor:
        self.read_rows.append(chosen.tolist())
        return self.values[torch.from_numpy(chosen)]


def read(words: list[str]) -> int:
    """In each rank: training from data that are stored, and which rows of them were read in each step."""
    with parallel.process_group() as world:
        reader, model = Recorded(rows(22)), Rows()
        data = Data("rows", Split(Stored(reader)))
        history = pv.fit(model, data, batch_size=8, epochs=1, lr=1e-2, progress=False)
        torch.save(
            {"read": reader.read_rows, "objective": history["objective"]}, Path(words[0]) / f"rank-{world.rank}.pt"
        )
    return 0


def evaluate_rows(words: list[str]) -> int:
    """In each rank: the estimate of log p(x), whose noise lies in the data, and those of a VAE, whose noise does not."""
    with parallel.process_group() as world:
        torch.save(evaluated(), Path(words[0]) / f"rank-{world.rank}.pt")
    return 0


def evaluated() -> dict[str, Tensor]:
    """Estimates of 250 data in three batches."""
    how = Estimation(num_samples=7)
    with_noise = estimate(Rows(), rows(250), Estimation(num_samples=2), 0)  # type: ignore[arg-type]
    x = (rows(250)[:, :PIXELS] > 0).float().reshape(-1, 1, 1, PIXELS)
    torch.manual_seed(3)
    vae = pv.VAE((1, 1, PIXELS), 2, hidden=(4,))
    likelihood, ratio = evaluate_terms(vae, torch.cat([x] * 9), 0)
    return {
        "noise in the data": with_noise.elbo,
        "log px": estimate(vae, x, how, 0).log_px,
        "likelihood": likelihood,
        "ratio": ratio,
    }
