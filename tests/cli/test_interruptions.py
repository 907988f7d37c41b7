"""Signals, kills, full disks and other processes: what is left is whole, and what goes on is exact."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import evaluate, report, train
from pyro_vae.data import Batches
from pyro_vae.inference.svi.svi import SVI
from pyro_vae.runs import build
from pyro_vae.runs.directory import FILES, RunDirectory
from pyro_vae.runs.evaluation import summary as summaries
from pyro_vae.system import files
from pyro_vae.system.signals import handled_signals
from tests.children import ROOT, Child, Nursery, wait_for
from tests.cli.test_cli import checkpoint, differing, metrics, summary, timeless

resource = pytest.importorskip("resource", reason="signals, forks and limits of POSIX")

WORDS = "--latent-dim 2 --hidden 8 --num-samples 5 --threads 1 --device cpu --quiet --batch-size 100".split()
STEPS = 15  # an epoch of 1,437 images in batches of 100
SIGNALS = ["SIGINT", "SIGTERM", "SIGUSR1"]


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Spare the time of drawing; give back --threads, and SIGINT, which a background job is started to ignore."""
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    threads, before = torch.get_num_threads(), signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, before)


def run(folder: Path, *words: str) -> int:
    return train.main([*WORDS, "--run-dir", str(folder), *words])


def resume(folder: Path, *words: str) -> int:
    return train.main(["--quiet", "--threads", "1", "--device", "cpu", "--resume", str(folder), *words])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def send_in_step(monkeypatch, call: int, *numbers: int) -> None:
    """Let signals come during the given optimization step, counted from 1."""
    step, calls = SVI.step_terms, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == call:
            for number in numbers:
                signal.raise_signal(number)
        return step(self, *args)

    monkeypatch.setattr(SVI, "step_terms", interrupted)


def same(one: Path, other: Path) -> None:
    """Two runs have the same parameters, optimizers, generators, figures and metrics, all but times bit for bit."""
    assert differing(checkpoint(one)["training"], checkpoint(other)["training"]) == []
    assert timeless(metrics(one)) == timeless(metrics(other))
    assert summary(one)["test"] == summary(other)["test"]
    assert (names(one), names(other)) == (names(other), {name for name in FILES if not name.endswith(".png")})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Three epochs without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_pictures", lambda *args: [])
        assert run(folder, "--epochs", "3") == 0
    return folder


# Signals.


#: Every signal in one step and every step with one signal here; all of the table in make test-all.
PLACES = [1, 7, STEPS, STEPS + 1, 3 * STEPS - 1]
THINNED = [
    pytest.param(step, name, marks=[pytest.mark.slow] * (step != 7 and name != "SIGTERM"))
    for step in PLACES
    for name in SIGNALS
]


@pytest.mark.parametrize(("step", "name"), THINNED)
def test_a_signal_saves_within_the_epoch_and_the_run_goes_on_exactly(tmp_path, monkeypatch, capsys, whole, name, step):
    handlers = [signal.getsignal(getattr(signal, one)) for one in SIGNALS]
    with monkeypatch.context() as patch:
        send_in_step(patch, step, getattr(signal, name))
        assert run(tmp_path / "run", "--epochs", "3") == 128 + getattr(signal, name)
    epoch = math.ceil(step / STEPS)
    out, error = capsys.readouterr()
    sentence = f"stopped by {name} in epoch {epoch}, step {step}: saved; go on with --resume {tmp_path / 'run'}"
    assert (out, error) == ("", f"pyro_vae.train: {sentence}\n")
    assert [signal.getsignal(getattr(signal, one)) for one in SIGNALS] == handlers
    training = checkpoint(tmp_path / "run")["training"]
    assert (len(training["rows"]), training["epoch"]["batches"]) == (epoch - 1, step - (epoch - 1) * STEPS)
    assert names(tmp_path / "run") == {"config.json", "checkpoint.pt", *(["metrics.csv"] if epoch > 1 else [])}
    torch.manual_seed(99)
    assert resume(tmp_path / "run") == 0
    same(whole, tmp_path / "run")


@pytest.mark.parametrize(
    "words",
    [
        "--elbo mean-field --anneal linear:0:40 --lr-schedule cosine",
        "--optimizer adamw --clip-norm 0.5 --val-size 0",
        "--num-particles 2 --vectorize-particles --binarize static --patience 2",
    ],
)
def test_a_run_that_was_stopped_again_and_again_goes_on_exactly(tmp_path, monkeypatch, words):
    words = ["--epochs", "3", *words.split()]
    assert run(tmp_path / "whole", *words) == 0
    with monkeypatch.context() as patch:
        send_in_step(patch, 4, signal.SIGTERM)
        assert run(tmp_path / "broken", *words) == 143
    for step in (1, 3, 11, 20):
        with monkeypatch.context() as patch:
            send_in_step(patch, step, signal.SIGUSR1)
            assert resume(tmp_path / "broken") == 128 + signal.SIGUSR1
    assert resume(tmp_path / "broken") == 0
    same(tmp_path / "whole", tmp_path / "broken")


def test_a_signal_during_validation_waits_for_no_more_than_a_batch(tmp_path, monkeypatch, whole):
    """The epoch's steps are done, its row is not: it is made by the run that goes on."""
    calls = []

    def poll(self):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        before(self)

    before = pv.inference.Training._poll
    with monkeypatch.context() as patch:
        patch.setattr(pv.inference.Training, "_poll", poll)
        assert run(tmp_path / "run", "--epochs", "3") == 143
    training = checkpoint(tmp_path / "run")["training"]
    assert (len(training["rows"]), training["epoch"]["batches"], training["step"]) == (1, STEPS, 2 * STEPS)
    assert resume(tmp_path / "run") == 0
    same(whole, tmp_path / "run")


def test_a_signal_during_a_checkpoint_stops_after_the_epoch(tmp_path, monkeypatch, capsys, whole):
    save, calls = RunDirectory.save, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        save(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save", interrupted)
        assert run(tmp_path / "run", "--epochs", "3") == 143
    assert f"stopped by SIGTERM after epoch 2, step {2 * STEPS}: saved;" in capsys.readouterr().err
    assert checkpoint(tmp_path / "run")["training"]["epoch"] is None
    assert resume(tmp_path / "run") == 0
    same(whole, tmp_path / "run")


def test_a_signal_in_the_last_step_leaves_the_evaluation(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        send_in_step(patch, STEPS, signal.SIGTERM)
        assert (
            run(tmp_path / "run", "--epochs", "1", "--val-size", "0", "--batch-size", "108") == 143
        )  # 15 x 108 > 1,617
    error = capsys.readouterr().err
    assert (
        "stopped by SIGTERM after training: the trained model is saved; for results and pictures go on with --resume"
        in error
    )
    assert not (tmp_path / "run" / "summary.json").exists()
    assert resume(tmp_path / "run") == 0
    assert summary(tmp_path / "run")["epochs"] == 1


def test_a_second_ctrl_c_leaves_at_once(tmp_path, monkeypatch, capsys, whole):
    with monkeypatch.context() as patch:
        send_in_step(patch, STEPS + 4, signal.SIGINT, signal.SIGINT)
        assert run(tmp_path / "run", "--epochs", "3") == 130
    sentence = f"stopped by SIGINT at once. The last checkpoint is kept: go on with --resume {tmp_path / 'run'}"
    assert capsys.readouterr().err == f"pyro_vae.train: {sentence}\n"
    assert checkpoint(tmp_path / "run")["training"]["epoch"] is None  # that of the first epoch
    assert resume(tmp_path / "run") == 0
    same(whole, tmp_path / "run")


def test_a_second_request_of_a_scheduler_does_not_disturb_the_saving(tmp_path, monkeypatch, capsys):
    send_in_step(monkeypatch, STEPS + 4, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM)
    assert run(tmp_path / "run", "--epochs", "3") == 128 + signal.SIGUSR1
    assert "in epoch 2" in capsys.readouterr().err


def test_a_mid_epoch_state_that_is_not_finite_is_not_saved(tmp_path, monkeypatch, capsys):
    step, calls = SVI.step_terms, []

    def spoil(self, *args):
        calls.append(1)
        found = step(self, *args)
        if len(calls) == STEPS + 5:
            pv_module = next(iter(self.model.__self__.parameters()))
            pv_module.data.fill_(math.nan)
            signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(SVI, "step_terms", spoil)
    assert run(tmp_path / "run", "--epochs", "3") == 1
    assert "expected a finite loss" in capsys.readouterr().err
    training = checkpoint(tmp_path / "run")["training"]
    assert (training["step"], training["epoch"]) == (STEPS, None)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_outside_of_training_leaves_at_once(tmp_path, monkeypatch, capsys, name, whole):
    number = getattr(signal, name)

    def interrupted(*args, **kwargs):
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(build, "load_data", interrupted)
        assert run(tmp_path / "run") == 128 + number
    assert capsys.readouterr().err == f"pyro_vae.train: stopped by {name} before training began.\n"
    assert names(tmp_path) == set()
    with monkeypatch.context() as patch:
        patch.setattr(summaries, "evaluate", interrupted)
        assert run(tmp_path / "run", "--epochs", "3") == 128 + number
    error = capsys.readouterr().err
    assert error.startswith(f"pyro_vae.train: stopped by {name} after training: the trained model is saved;")
    assert error.count("\n") == 1
    assert resume(tmp_path / "run") == 0
    same(whole, tmp_path / "run")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(summaries, "estimate", interrupted)
        assert evaluate.main([str(tmp_path / "run"), "--quiet", "--device", "cpu"]) == 128 + number
    error = capsys.readouterr().err
    assert error.startswith(f"pyro_vae.evaluate: stopped by {name} before the end;")
    assert error.count("\n") == 1
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_signals_that_are_ignored_and_other_threads_are_left_alone():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = signal.getsignal(signal.SIGTERM)
    with handled_signals() as signals, signals.deferred():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signals.handle
    seen = []

    def elsewhere():
        with handled_signals() as signals:
            seen.append((signals(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_run_stopped_in_its_first_epoch_loads_and_is_not_evaluated(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        send_in_step(patch, 5, signal.SIGTERM)
        assert run(tmp_path / "run") == 143
    loaded = pv.load(tmp_path / "run")
    assert (len(loaded.history), loaded.history.stopped_by, loaded.history.steps) == (0, "interrupted", 5)
    assert differing(dict(loaded.vae.state_dict()), dict(checkpoint(tmp_path / "run")["training"]["model"])) == []
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "run"), "--quiet", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "expected at least one whole epoch to evaluate" in error
    assert error.count("\n") == 1
    with monkeypatch.context() as patch:
        send_in_step(patch, STEPS, signal.SIGTERM)  # of what was left of the first epoch and of the second
        assert resume(tmp_path / "run", "--epochs", "2") == 143
    capsys.readouterr()
    assert resume(tmp_path / "run", "--epochs", "1") == 2
    assert "epochs: expected at least the 2 that the run has begun, got 1" in capsys.readouterr().err


SLOW = [*WORDS, "--batch-size", "2", "--epochs", "2", "--num-workers", "2"]  # an epoch of a second
PATCHES = {"memory": {}, "workers": {"pyro_vae.data.loading.IN_MEMORY_BYTES": 0}}


@pytest.fixture(scope="module")
def slow(tmp_path_factory, nursery) -> dict[str, Path]:
    """Two epochs of many steps without an interruption, from memory and by workers."""
    folder = tmp_path_factory.mktemp("slow")
    for name, patch in PATCHES.items():
        assert nursery.start([*SLOW, "--run-dir", str(folder / name)], folder, patch=patch).wait() == 0
    return {name: folder / name for name in PATCHES}


#: A terminal's signal and a scheduler's here; the others, which the table above has without a process, in make test-all.
REAL = [
    pytest.param(kind, name, marks=[pytest.mark.slow] * ((kind, name) != ("memory", "SIGINT")))
    for kind in PATCHES
    for name in SIGNALS
]


@pytest.mark.parametrize(("kind", "name"), REAL)
def test_a_real_process_stops_within_the_epoch_and_goes_on_exactly(tmp_path, nursery, slow, name, kind):
    """Workers that read ahead get the signal too, as all processes of a job or before a terminal do."""
    child = nursery.start([*SLOW, "--run-dir", str(tmp_path / "run")], tmp_path, patch=PATCHES[kind])
    wait_for((tmp_path / "run" / "metrics.csv").exists)
    time.sleep(0.1)
    child.send(getattr(signal, name), group=kind == "workers")
    assert child.wait() == 128 + getattr(signal, name)
    assert f"stopped by {name} in epoch 2, step " in child.text
    assert child.text.count("\n") == 1
    training = checkpoint(tmp_path / "run")["training"]
    assert 719 < training["step"] == 719 + training["epoch"]["batches"] < 2 * 719
    child = nursery.start(["--quiet", "--resume", str(tmp_path / "run")], tmp_path, patch=PATCHES[kind])
    assert child.wait() == 0, child.text
    same(slow[kind], tmp_path / "run")


# Kills.


def look(folder: Path, done: int, config: dict | None) -> int:
    """See that all there is in a killed run's folder is whole, and how many epochs it has, no fewer than before."""
    found = names(folder) if folder.exists() else set()
    halves = {name for name in found if name.startswith(".")}
    assert found - halves <= set(FILES)
    assert all(name == ".lock" or name.endswith(".tmp") for name in halves)
    if "config.json" in found:
        assert json.loads((folder / "config.json").read_text()) == (
            config or RunDirectory(folder).read_json("config.json")
        )
    if "checkpoint.pt" not in found:
        assert done == 0
        return 0
    history = pv.load(folder).history
    rows = metrics(folder) if "metrics.csv" in found else []
    assert len(history) - 1 <= len(rows) <= len(history)  # the checkpoint comes first
    assert rows == [{k: float(v) for k, v in row.items()} for row in history.rows[: len(rows)]]
    assert len(history) >= done
    return len(history)


def going_on(folder: Path) -> list[str]:
    """The flags of the next process, after a kill."""
    begun = any((folder / name).exists() for name in ("checkpoint.pt", "config.json"))
    return ["--quiet", "--threads", "1", "--device", "cpu", "--resume", str(folder)] if begun else []


def die_in(nursery: Nursery, folder: Path, words: list[str], name: str, call: int) -> int:
    child = nursery.start(going_on(folder) or words, folder.parent, die=(name, call))
    return child.wait()


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_kill_at_any_point_of_the_saving_loses_no_file(tmp_path, nursery, whole, name):
    """One process after the other, each killed in place of its first, second, ... such call."""
    folder, done, code = tmp_path / "run", 0, -9
    words = [*WORDS, "--epochs", "3", "--run-dir", str(folder)]
    for call in (1, 2, 3, 1, 2, 4, 6, 9):
        code = die_in(nursery, folder, words, name, call)
        assert code in (0, -9)
        done = look(folder, done, None)
    assert done >= 2
    assert code == 0 or nursery.start(going_on(folder), tmp_path).wait() == 0
    same(whole, folder)


@contextmanager
def command(words: list[str], folder: Path):
    """The command itself as a process, and the lines that it prints."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-m", "pyro_vae.train", *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process


def stage(folder: Path, before: set[str]) -> str:
    """In what a kill fell, by what it left."""
    left = {name for name in names(folder) - before if name.endswith(".tmp")} if folder.exists() else set()
    return "saving" if left else "else"


def written(path: Path) -> int:
    """When a file was last replaced, 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path, nursery):
    dice, folder, done, config = random.Random(3), tmp_path / "run", 0, None
    words, started = [*WORDS, "--epochs", "60"], time.monotonic()
    assert train.main([*words, "--run-dir", str(tmp_path / "whole")]) == 0
    share = (time.monotonic() - started) / 12  # so that six lives do not reach the end, however fast the machine
    for kill in range(6):
        before = written(folder / "checkpoint.pt")
        child = nursery.start(going_on(folder) or [*words, "--run-dir", str(folder)], tmp_path)
        if kill % 3:
            wait_for(lambda before=before: written(folder / "checkpoint.pt") > before)
        time.sleep(dice.uniform(0, share))
        child.send(signal.SIGKILL)
        assert child.wait() == -9, child.text
        done = look(folder, done, config)
        config = config or RunDirectory(folder).read_json("config.json") or None
    assert 4 <= done < 60
    child = nursery.start(going_on(folder), tmp_path)
    assert child.wait() == 0, child.text
    same(tmp_path / "whole", folder)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_lose_nothing(tmp_path):
    """The command as a user starts it, killed fifty times: in its epochs and saves, some times as it starts."""
    dice, folder, done, config = random.Random(11), tmp_path / "run", 0, None
    words = [*WORDS, "--no-quiet", "--epochs", "1000"]
    with command([*words, "--run-dir", str(tmp_path / "whole")], tmp_path) as process:
        process.communicate()
        assert process.returncode == 0
    started, where, lives = time.monotonic(), Counter(), []
    for kill in range(50):
        before = names(folder) if folder.exists() else set()
        flags = going_on(folder)
        with command([*flags, "--no-quiet"] if flags else [*words, "--run-dir", str(folder)], tmp_path) as process:
            if kill % 5 == 4:
                time.sleep(dice.uniform(0, 6))
            else:
                lines = iter(process.stdout.readline, "")
                assert any(line.split("/")[0].strip().isdigit() for line in lines), "it ended before an epoch"
                time.sleep(dice.uniform(0, 0.3))
                if kill % 5 == 1:  # a save takes a tenth of an epoch: sometimes wait for one
                    old = names(folder)
                    wait_for(lambda old=old: {n for n in names(folder) - old if n.endswith(".tmp")}, pause=0)
            process.kill()
            process.stdout.read()
        assert process.returncode == -9
        epochs = look(folder, done, config)
        where["within a save" if stage(folder, before) == "saving" else "epochs" if epochs > done else "start-up"] += 1
        done, config = epochs, config or RunDirectory(folder).read_json("config.json") or None
        lives.append(done)
    with command(going_on(folder), tmp_path) as process:
        process.communicate()
        assert process.returncode == 0
    print(f"50 kills in {time.monotonic() - started:.0f} s, {dict(where)}, epochs done after each: {lives}")
    assert where["within a save"] > 0
    assert where["epochs"] > 20
    png = {name for name in FILES if name.endswith(".png")}
    for path in (p for one in (folder, tmp_path / "whole") for p in one.iterdir() if p.name in png):
        path.unlink()
    same(tmp_path / "whole", folder)


# Other processes.


def test_of_two_processes_with_one_new_folder_exactly_one_trains(tmp_path, nursery):
    for number in range(3):
        folder = tmp_path / f"run-{number}"
        words = [*WORDS, "--epochs", "8", "--run-dir", str(folder)]
        children = [nursery.start([*words, "--seed", str(seed)], tmp_path) for seed in (1, 2, 3)]
        codes = [child.wait() for child in children]
        assert sorted(codes) == [0, 2, 2]
        assert checkpoint(folder)["config"]["train"]["seed"] == 1 + codes.index(0)
        assert len(metrics(folder)) == 8
        for child, code in zip(children, codes, strict=True):
            assert child.text.count("\n") == (1 if code else 0)
            assert code == 0 or "is using this folder" in child.text or "files in it" in child.text


def in_use(child: Child) -> bool:
    return child.wait() == 2 and child.text.count("\n") == 1 and "is using this folder; wait" in child.text


@pytest.mark.parametrize("kind", PATCHES)
def test_a_run_in_use_is_refused_until_its_process_is_gone(tmp_path, nursery, kind):
    """Gone by a kill, too: the workers that outlive it for a while do not hold its folder."""
    folder, patch = tmp_path / "run", PATCHES[kind]
    words = [*WORDS, "--epochs", "2000", "--num-workers", "2"]
    first = nursery.start([*words, "--run-dir", str(folder)], tmp_path, patch=patch)
    wait_for((folder / "metrics.csv").exists)
    assert in_use(nursery.start(["--resume", str(folder)], tmp_path))
    assert in_use(nursery.start([*WORDS, "--run-dir", str(folder), "--overwrite"], tmp_path))
    assert in_use(nursery.start([*WORDS, "--run-dir", str(folder)], tmp_path))
    first.send(signal.SIGKILL)
    assert first.wait() == -9
    done = len(metrics(folder))
    second = nursery.start(going_on(folder), tmp_path, patch=patch)
    wait_for(lambda: len(metrics(folder)) > done + 1)
    second.send(signal.SIGTERM)
    assert second.wait() == 143
    assert ".lock" not in names(folder)


def test_processes_that_start_at_one_second_get_a_folder_each(tmp_path, nursery, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, "--epochs", "1", "--seed"]
    patch = {"pyro_vae.system.files.CLOCK": "%Y"}  # a clock of one tick a year
    children = [nursery.start([*words, str(seed)], tmp_path, patch=patch, cwd=str(tmp_path)) for seed in range(4)]
    assert [child.wait() for child in children] == [0] * 4, [child.text for child in children]
    folders = list((tmp_path / "runs").iterdir())
    assert {checkpoint(folder)["config"]["train"]["seed"] for folder in folders} == {0, 1, 2, 3}


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.FileLock, "acquire", fail)
    assert run(tmp_path / "run", "--epochs", "1") == 0
    assert resume(tmp_path / "run", "--epochs", "2") == 0
    assert len(metrics(tmp_path / "run")) == 2


# Disks and folders.


def test_a_full_disk_is_reported_before_training(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    for free, code in ((8_000_000, 2), (11_000_000, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        assert run(tmp_path / "some" / "run", "--epochs", "1") == code
        error = capsys.readouterr().err
        if code == 2:
            assert "expected 10 MB of free disk for checkpoints and pictures, got 8 MB" in error
            assert error.count("\n") == 1
            assert names(tmp_path) == set()
    before = {path.name: path.read_bytes() for path in (tmp_path / "some" / "run").iterdir()}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert resume(tmp_path / "some" / "run", "--epochs", "2") == 2
    assert run(tmp_path / "some" / "run", "--overwrite") == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "some" / "run").iterdir()} == before


def test_the_estimate_of_disk_covers_what_a_run_writes(tmp_path, monkeypatch):
    sizes = []

    def record(path, needed):
        sizes.append(needed)

    monkeypatch.setattr("pyro_vae.runs.directory.check_writable", record)
    assert run(tmp_path / "run", "--epochs", "1", "--hidden", "700") == 0
    checkpoint_bytes = (tmp_path / "run" / "checkpoint.pt").stat().st_size
    assert 2 * checkpoint_bytes < sizes[0] < 2 * checkpoint_bytes + 12_000_000


@contextmanager
def limited_files(size: int):
    """No file of this process can grow beyond this size, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(tmp_path, monkeypatch, capsys, whole):
    save, calls = RunDirectory.save, []

    def full_at_the_second(self, *args):
        calls.append(1)
        with limited_files(10_000 if len(calls) == 2 else resource.RLIM_INFINITY):
            save(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save", full_at_the_second)
        assert run(tmp_path / "run", "--epochs", "3") == 2
    error = capsys.readouterr().err
    assert "the run's files cannot be written: [Errno 27] File too large" in error
    assert f"The last checkpoint is kept: go on with --resume {tmp_path / 'run'}" in error
    assert error.count("\n") == 1
    assert names(tmp_path / "run") == {"config.json", "checkpoint.pt", "metrics.csv"}
    assert len(pv.load(tmp_path / "run").history) == 1
    assert resume(tmp_path / "run") == 0
    same(whole, tmp_path / "run")


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("a file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_is_full(tiny_disk, monkeypatch, capsys, whole):
    folder = tiny_disk / "run"
    assert run(folder) == 2
    assert "MB of free disk" in capsys.readouterr().err
    assert names(tiny_disk) == set()
    with monkeypatch.context() as patch:
        patch.setattr(build, "SPARE_BYTES", 0)
        assert run(folder, "--epochs", "1") == 0
        ballast = tiny_disk / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1k"], capture_output=True)  # until it is full
        patch.setattr("pyro_vae.runs.directory.check_writable", lambda folder, needed: None)  # it fills up after that
        assert resume(folder, "--epochs", "3") == 2
        error = capsys.readouterr().err
        assert "[Errno 28] No space left on device" in error
        assert f"The last checkpoint is kept: go on with --resume {folder}" in error
        assert len(pv.load(folder).history) == 1
        assert not [name for name in names(folder) if name.endswith(".tmp")]
        ballast.unlink()
        assert resume(folder, "--epochs", "3") == 0
    same(whole, folder)


def test_a_folder_without_write_permission_is_reported_before_training(tiny_disk, capsys):
    assert run(tiny_disk / "run") == 2  # made and removed again
    (tiny_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    for folder in (tiny_disk / "run", tiny_disk / "new" / "run"):
        capsys.readouterr()
        assert run(folder) == 2
        error = capsys.readouterr().err
        assert f"run directory {folder}: expected a folder that can be written, got [Errno 30]" in error
        assert error.count("\n") == 1


# What a run goes on with.


def test_data_that_changed_or_moved_beneath_a_run(tmp_path, capsys):
    import numpy as np

    x = (np.random.default_rng(0).random((200, 6)) < 0.5).astype("float32")
    np.save(tmp_path / "one.npy", x)
    words = ["--dataset", str(tmp_path / "one.npy"), "--binarize", "none", "--epochs", "1"]
    assert run(tmp_path / "run", *words) == 0
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.npy").rename(tmp_path / "sub" / "two.npy")
    assert resume(tmp_path / "run", "--epochs", "2") == 2
    assert resume(tmp_path / "run", "--epochs", "2", "--dataset", str(tmp_path / "sub" / "two.npy")) == 0
    assert len(metrics(tmp_path / "run")) == 2
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    for changed, sentence in [(x[:150], "num_train"), (1 - x, "other pixels in the train data")]:
        np.save(tmp_path / "sub" / "two.npy", changed)
        capsys.readouterr()
        assert resume(tmp_path / "run", "--epochs", "3") == 2
        assert sentence in capsys.readouterr().err
        assert evaluate.main([str(tmp_path / "run"), "--quiet", "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert resume(tmp_path / "run", "--dataset", "digits") == 2
    assert "dataset 'digits' (there" in capsys.readouterr().err


def test_the_number_of_workers_is_free(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    assert resume(tmp_path / "run", "--num-workers", "2") == 0
    same(whole, tmp_path / "run")


def test_a_path_gives_a_folder_its_stem_alone(tmp_path, monkeypatch):
    import numpy as np

    (tmp_path / "deep & wide").mkdir()
    np.save(tmp_path / "deep & wide" / "my data_1.npy", np.zeros((50, 4), "float32"))
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "deep & wide/my data_1.npy", "--binarize", "none", "--epochs", "1"]
    assert train.main([*WORDS, *words]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("my-data-1-trace-2")


def test_asking_after_every_step_costs_no_measurable_time():
    """Ten thousand questions take less than ten steps."""
    with handled_signals() as signals:
        started = time.perf_counter()
        for _ in range(10_000):
            signals()
        assert time.perf_counter() - started < 0.02


def test_nothing_is_left_of_an_epoch_but_its_rest(whole):
    """A whole epoch done: no batch is left, not an empty one."""
    x = torch.arange(10.0)[:, None]
    batches, generator = Batches(x, 4), torch.Generator().manual_seed(0)
    order = batches.order(generator)
    for done in range(4):
        left = [part.flatten().tolist() for part in batches.rest(order, done, generator)]
        assert left == [part.tolist() for part in order.float().split(4)][done:]
