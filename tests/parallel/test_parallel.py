"""Several processes: the same training as by one, one voice, one set of files, and one end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed

from pyro_vae import parallel, train
from pyro_vae.data import Batches
from pyro_vae.inference.kl.control import KLControl
from pyro_vae.parallel import World
from pyro_vae.system import compiler
from tests.children import ROOT, wait_for
from tests.cli.test_cli import checkpoint, differing, metrics, summary, timeless
from tests.ranks import CASES, Job, evaluated, rows, trained

pytest.importorskip("resource", reason="forks and signals of POSIX")

WORDS = "--latent-dim 2 --hidden 8 --num-samples 5 --threads 1 --device cpu --batch-size 100 --epochs 3".split()
STEPS = 15  # an epoch of 1,437 images in batches of 100


def results(nursery, size: int, folder: Path, name: str, *words: str) -> list:
    """What each rank of a job has saved."""
    job = Job(nursery, size, [str(folder), *words], folder, call=f"tests.ranks:{name}")
    assert job.wait() == [0] * size, job.texts
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(size)]


# The same training.


#: Of 3 ranks, no two have as many rows of every batch; 2 are the easier case.
@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def ranks(request, nursery, tmp_path_factory) -> list[dict]:
    """What each rank of a job of 2 and of 3 has, of every case."""
    return results(nursery, request.param, tmp_path_factory.mktemp("ranks"), "train_all", "{}")


@pytest.mark.parametrize("name", CASES)
def test_the_same_noise_gives_the_training_of_one_process(ranks, name):
    expected = trained(name)
    for rank in ranks:
        torch.testing.assert_close(rank[name], expected, rtol=1e-9, atol=1e-10)
        assert all(torch.equal(rank[name]["state"][k], v) for k, v in ranks[0][name]["state"].items())


@pytest.mark.slow
@pytest.mark.skipif(compiler.obstacle() is not None, reason="nothing can be compiled here")
def test_compiled_steps_give_it_too(nursery, tmp_path):
    for rank in results(nursery, 2, tmp_path, "train_all", '{"compile": true}'):
        for name, (_, objective, *_) in CASES.items():
            assert rank[name]["compiled"] is not isinstance(objective(), KLControl)
            expected = {**trained(name), "compiled": rank[name]["compiled"]}
            torch.testing.assert_close(rank[name], expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranks_share_a_batch_and_its_binarization(size):
    x = torch.rand(17, 3)
    whole = list(Batches(x, 4, redraw=True).epoch(torch.Generator().manual_seed(2)))
    parts = [
        list(Batches(x, 4, redraw=True, world=World(rank, size)).epoch(torch.Generator().manual_seed(2)))
        for rank in range(size)
    ]
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        held = [World(rank, size).rows(len(batch)) for rank in range(size)]
        assert (sum(held), max(held) - min(held) <= 1) == (len(batch), True)
        assert torch.equal(torch.cat([s for s, rows in zip(shares, held, strict=True) if rows]), batch)
        assert all(len(s) == max(rows, 1) for s, rows in zip(shares, held, strict=True))


def test_each_rank_reads_its_rows_alone(nursery, tmp_path):
    one, two = results(nursery, 2, tmp_path, "read")
    for ours, theirs, size in zip(one["read"], two["read"], (8, 8, 6), strict=True):
        assert (len(ours), len(theirs), len({*ours, *theirs})) == (size // 2, size // 2, size)
    assert one["objective"] == two["objective"]


def test_streams_of_random_numbers():
    seeds = {parallel.stream_seed(seed, number) for seed in range(30) for number in range(30)}
    assert (len(seeds), min(seeds) >= 0, max(seeds) < 2**63) == (900, True, True)
    assert parallel.stream_seed(7) == parallel.stream_seed(7, 0) == 7


# Evaluation.


def test_evaluation_does_not_depend_on_the_number_of_ranks(nursery, tmp_path, monkeypatch):
    found = []
    for size in (2, 3):
        (folder := tmp_path / str(size)).mkdir()
        found += results(nursery, size, folder, "evaluate_rows")
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)
    single = evaluated()
    assert torch.equal(found[0]["noise in the data"], single["noise in the data"])
    torch.testing.assert_close(found[0]["log px"], single["log px"], rtol=0, atol=0)
    assert torch.equal(found[0]["ratio"][:1000], single["ratio"][:1000])
    assert not torch.equal(found[0]["ratio"][1000:], single["ratio"][1000:])  # other noise: the same law
    with monkeypatch.context() as patch:  # a single process that takes each batch's own noise
        patch.setattr(parallel, "local_batches", all_batches)
        torch.testing.assert_close(found[0], evaluated(), rtol=0, atol=0)


def all_batches(x, size, seed):
    for number, part in enumerate(x.split(size)):
        torch.manual_seed(parallel.stream_seed(seed, number))
        yield part


# The command: one voice, one set of files, exact resume.


def run(nursery, size: int, tmp_path: Path, *words: str, **options) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of the command."""
    job = Job(nursery, size, words, tmp_path, **options)
    return job.wait(), job.texts


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory) -> Path:
    """Three epochs by two processes, without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    codes, texts = run(nursery, 2, folder, *WORDS, "--run-dir", str(folder / "run"))
    assert (codes, texts[1]) == ([0, 0], "")
    assert "device cpu (as asked), 2 processes" in texts[0]
    assert texts[0].count("/3  ") == 3
    return folder / "run"


def test_one_set_of_files(whole):
    assert {path.name for path in whole.iterdir()} == {"config.json", "metrics.csv", "checkpoint.pt", "summary.json"}
    assert summary(whole)["processes"] == 2
    states = [rank["random"] for rank in checkpoint(whole)["training"]["ranks"]]
    assert (len(states), torch.equal(*states)) == (2, False)


@pytest.mark.parametrize(("name", "rank", "step"), [("SIGINT", 0, 7), ("SIGTERM", 1, STEPS + 1)])
def test_a_signal_to_one_stops_all_at_its_step_and_the_run_goes_on_exactly(nursery, tmp_path, whole, name, rank, step):
    words = [str(step), name, str(rank), *WORDS, "--quiet", "--run-dir", str(tmp_path / "run")]
    codes, texts = run(nursery, 2, tmp_path, *words, call="tests.ranks:train_and_signal")
    assert codes == [128 + getattr(signal, name)] * 2
    where = f"in epoch {1 + step // (STEPS + 1)}, step {step}: saved; go on with --resume {tmp_path / 'run'}"
    assert texts == [f"pyro_vae.train: stopped by {name} {where}\n", ""]
    codes, texts = run(nursery, 2, tmp_path, "--quiet", "--device", "cpu", "--resume", str(tmp_path / "run"))
    assert (codes, texts) == ([0, 0], ["", ""])
    assert differing(checkpoint(whole)["training"], checkpoint(tmp_path / "run")["training"]) == []
    assert timeless(metrics(whole)) == timeless(metrics(tmp_path / "run"))
    assert summary(whole)["test"] == summary(tmp_path / "run")["test"]


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_ranks_goes_on_with_other_noise_in_the_same_order(nursery, tmp_path, size):
    words = ["20", "SIGUSR1", "0", *WORDS, "--quiet", "--run-dir", str(tmp_path / "run")]
    codes, _ = run(nursery, 2, tmp_path, *words, call="tests.ranks:train_and_signal")
    assert codes == [128 + signal.SIGUSR1] * 2
    first_row, order = metrics(tmp_path / "run")[0], checkpoint(tmp_path / "run")["training"]["epoch"]["start"]
    codes, texts = run(nursery, size, tmp_path, "--quiet", "--device", "cpu", "--resume", str(tmp_path / "run"))
    assert codes == [0] * size, texts
    assert texts[0].startswith(
        f"pyro_vae.train: warning: resume: this run began with 2 processes and continues with {size}"
    )
    assert (texts[0].count("\n"), set(texts[1:]) <= {""}) == (1, True)
    training = checkpoint(tmp_path / "run")["training"]
    assert (len(training["rows"]), training["step"], len(training.get("ranks", [0]))) == (3, 3 * STEPS, size)
    assert metrics(tmp_path / "run")[0] == first_row
    assert not torch.equal(training["order"], order)


def test_a_killed_rank_ends_the_job_and_leaves_a_checkpoint(nursery, tmp_path):
    words = [*WORDS, "--quiet", "--run-dir", str(tmp_path / "run"), "--epochs", "100000", "--no-compile"]
    job = Job(nursery, 3, words, tmp_path)
    wait_for((tmp_path / "run" / "metrics.csv").exists)
    job.ranks[1].send(signal.SIGKILL)
    assert job.wait() == [1, -signal.SIGKILL, 1]
    assert job.texts[0].startswith("pyro_vae.train: rank 0: lost the connection to another process of the job (")
    assert job.texts[0].endswith(f"The last checkpoint is kept: go on with --resume {tmp_path / 'run'}\n")
    assert (job.texts[0].count("\n"), job.texts[1:]) == (1, ["", ""])
    done = len(checkpoint(tmp_path / "run")["training"]["rows"])
    words = ["--quiet", "--device", "cpu", "--resume", str(tmp_path / "run"), "--epochs", str(done + 1)]
    assert run(nursery, 3, tmp_path, *words) == ([0, 0, 0], ["", "", ""])
    assert len(metrics(tmp_path / "run")) == done + 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--latent-dmi", "2"], "unrecognized flag --latent-dmi"),
        (["--device", "cuda:1"], "device: expected auto, cuda or cpu for a job of 2 processes"),
        (["--device", "mps"], "device: expected auto, cuda or cpu for a job of 2 processes"),
        (["--device", "cpu", "--dataset", "nowhere.npz"], "nowhere.npz"),
        (["--device", "cpu", "--run-dir", "FULL"], "expected a new or empty folder"),
        (["--device", "cpu", "--beta-sweep", "1", "2"], "--beta-sweep: expected one process, got 2"),
    ],
)
def test_bad_input_is_one_sentence_of_one_process(nursery, tmp_path, words, sentence):
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "thesis.tex").touch()
    codes, texts = run(nursery, 2, tmp_path, *words, cwd=str(tmp_path))
    assert (codes, texts[1], texts[0].count("\n")) == ([2, 2], "", 1)
    assert texts[0].startswith("pyro_vae.train: error: ")
    assert sentence in texts[0]


def test_a_file_that_one_process_cannot_read_is_reported_once(nursery, tmp_path):
    words = [*WORDS, "--quiet", "--run-dir", str(tmp_path / "run"), "--dataset", "x.npy"]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    only = {0: {"cwd": str(here)}, 1: {"cwd": str(there)}}
    import numpy as np

    np.save(here / "x.npy", (rows(60).numpy() > 0).astype("float32").reshape(60, 1, 1, -1))
    codes, texts = run(nursery, 2, tmp_path, *words, only=only)
    assert (codes, texts[1]) == ([2, 2], "")
    assert texts[0].startswith("pyro_vae.train: error: rank 1: ")
    assert "x.npy" in texts[0]


# What goes wrong on one rank.


@pytest.mark.parametrize(
    ("objective", "begun"),
    [
        ("trace", "0"),
        ("trace", "1"),
        ("free-bits", "0"),
        ("free-bits", "1"),
        ("mean-field", "0"),
    ],  # the last one captured
)
@pytest.mark.parametrize("kind", ["nan", "error"])
@pytest.mark.thin(2)
def test_what_goes_wrong_on_one_ends_all_at_its_step(nursery, tmp_path, kind, objective, begun):
    codes, texts = run(nursery, 2, tmp_path, kind, objective, begun, str(tmp_path), call="tests.ranks:fail")
    assert codes == [0, 0], texts
    said = [(tmp_path / f"rank-{rank}.txt").read_text() for rank in range(2)]
    if kind == "nan":
        step = 3 * int(begun)
        assert said[0] == said[1]
        assert said[0].startswith(f"NonFiniteLossError: step {step}: expected a finite loss, got nan: site 'z' has a")
    else:
        first_lines = [text.splitlines()[0] for text in said]  # Pyro adds what it had seen
        assert first_lines == ["RuntimeError: rank 1: the machine is on fire", "RuntimeError: the machine is on fire"]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("bare", "data plate: expected one pyro.plate of size 4, the batch of a rank, around all sites, got none"),
        ("loose", "parameter: expected parameters of the model's modules, got one made by pyro.param"),
    ],
)
def test_what_cannot_be_shared_is_refused(nursery, tmp_path, kind, sentence):
    run(nursery, 2, tmp_path, kind, "trace", "0", str(tmp_path), call="tests.ranks:fail")
    for rank in range(2):
        assert (tmp_path / f"rank-{rank}.txt").read_text().startswith(f"ValueError: {sentence}")


@pytest.mark.parametrize(
    ("gpu", "text", "name"),
    [(True, "auto", "cuda:3"), (True, "cuda", "cuda:3"), (False, "auto", "auto"), (False, "cpu", "cpu")],
)
def test_each_rank_takes_the_device_of_its_local_rank(monkeypatch, gpu, text, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert parallel.device_name(text) == text
    monkeypatch.setattr(parallel.processes, "_world", World(7, 8, 3))
    assert parallel.device_name(text) == name


def test_ranks_with_other_parameters_end_the_job(nursery, tmp_path):
    run(nursery, 3, tmp_path, "drift", "trace", "1", str(tmp_path), call="tests.ranks:fail")
    said = {(tmp_path / f"rank-{rank}.txt").read_text() for rank in range(3)}
    sentence = "epoch 2: expected the same parameters on every rank, got a difference between rank 0 and rank 2"
    assert (len(said), said.pop().startswith(f"JobError: {sentence}")) == (1, True)


# One process alone.


def test_a_process_alone_has_no_group(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pyro_vae.report.draw_pictures", lambda *args: [])
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    threads, before = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    assert train.main([*WORDS, "--quiet", "--epochs", "1", "--run-dir", str(tmp_path / "run")]) == 0
    torch.set_num_threads(threads)
    assert (torch.distributed.is_initialized(), signal.getsignal(signal.SIGTERM)) == (False, before)
    assert "ranks" not in checkpoint(tmp_path / "run")["training"]
    assert summary(tmp_path / "run")["processes"] == 1


# The launcher itself.


@pytest.mark.slow
def test_torchrun(tmp_path):
    def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            *words,
        ]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.run(launcher, env=environment, capture_output=True, text=True, timeout=300)

    trained = torchrun("pyro_vae.train", *WORDS, "--run-dir", str(tmp_path / "run"))
    assert (trained.returncode, trained.stdout.count("Test set: 180 images")) == (0, 1), trained.stderr
    figures = summary(tmp_path / "run")["test"]
    evaluated = torchrun("pyro_vae.evaluate", str(tmp_path / "run"), "--device", "cpu")
    assert (evaluated.returncode, evaluated.stdout.count("Test set: 180 images")) == (0, 1), evaluated.stderr
    assert summary(tmp_path / "run")["test"] == figures
    refused = torchrun("pyro_vae.train", "--device", "cuda:1")
    assert (refused.returncode, refused.stderr.count("pyro_vae.train: error: device: ")) == (1, 1)
    assert refused.stderr.count("exitcode  : 2") == 2
