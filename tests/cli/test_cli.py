from __future__ import annotations

import csv
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import evaluate, report, train
from pyro_vae.inference import LR_SCHEDULES
from pyro_vae.inference.svi.svi import SVI
from pyro_vae.inference.training.checkpoint import KEYS
from pyro_vae.runs.build import load_data
from pyro_vae.runs.config import Config
from pyro_vae.runs.directory import FILES, RunDirectory
from pyro_vae.runs.evaluation import summary as summaries
from pyro_vae.runs.evaluation.estimators import Estimation, estimate
from tests.children import ROOT

SMALL = "--latent-dim 2 --hidden 8 --num-samples 5 --threads 1 --device cpu --quiet --batch-size 100 --epochs 2".split()
STEPS = 15  # an epoch of 1,437 images in batches of 100
TIMES = ("seconds", "images_per_second")


@pytest.fixture(autouse=True)
def threads():
    """--threads sets torch's own count: give it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_pictures(monkeypatch):
    """Spare the time of drawing where the pictures are not the point."""
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])


def run(folder: Path, *words: str) -> int:
    return train.main([*SMALL, "--run-dir", str(folder), *words])


def resume(folder: Path, *words: str) -> int:
    return train.main(["--quiet", "--threads", "1", "--device", "cpu", "--resume", str(folder), *words])


def metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def checkpoint(folder: Path) -> dict:
    return RunDirectory(folder).read_checkpoint()


def timeless(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def differing(one, other, where: str = "") -> list[str]:
    """Where two nested containers of tensors and plain values are not bit for bit the same."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for k in one if k not in TIMES for found in differing(one[k], other[k], f"{where}/{k}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, pair in pairs for found in differing(*pair, f"{where}/{i}")]
    return [] if type(one) is type(other) and one == other else [where]


def process(module: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


# One run by the command as a process, which the tests of its files read.

WORDS = "--elbo trace --epochs 2 --latent-dim 2 --hidden 16 --num-samples 20 --threads 1 --device cpu --seed 7".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("cli")
    result = process("pyro_vae.train", *WORDS, "--run-dir", "run", cwd=folder)
    return folder / "run", result


def test_the_command_as_a_process_writes_every_file(finished):
    folder, result = finished
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    assert {p.name for p in folder.iterdir()} == set(FILES)
    assert {p.name for p in folder.parent.iterdir()} == {"run"}
    for path in folder.glob("*.png"):
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert content.endswith(b"IEND\xaeB`\x82")


def test_the_command_prints_sizes_epochs_and_figures(finished):
    folder, result = finished
    assert "1,437 train, 180 validation, 180 test images of 1 x 8 x 8" in result.stdout
    for row in metrics(folder):
        line = next(li for li in result.stdout.splitlines() if li.split()[:1] == [f"{row['epoch']:.0f}/2"])
        assert f"{row['train_elbo']:.2f}" in line
        assert f"{row['validation_elbo']:.2f} ± {row['validation_elbo_std_error']:.2f}" in line
    test = summary(folder)["test"]
    figures = {line.split("   ")[0].strip(): line.split() for line in result.stdout.splitlines()}
    assert figures["ELBO"][1] == f"{test['elbo']['value']:.3f}"
    assert figures["log p(x)"][2] == f"{test['log_px']['value']:.3f}"


NUMBER = (int, float)
OPTIONAL = (int, float, type(None))
SCHEMA = {
    "test": {
        "elbo": {"value": float, "std_error": float, "mc_error": float},
        "log_px": {"value": float, "std_error": float, "mc_error": OPTIONAL, "num_samples": int, "pareto_k_bad": int},
        "gap": float,
        "rate": float,
        "distortion": float,
        "active_units": int,
        "kl_per_unit": list,
        "num_data": int,
    },
    "validation": {"elbo": {"value": float, "std_error": float}},
    "units": str,
    "schema": int,
    "seconds": {"train": NUMBER, "evaluate": NUMBER},
    "best_epoch": int,
    "stopped_by": str,
    "images_per_second": NUMBER,
    "compiled": bool,
    "device": str,
    "seed": int,
    "versions": {"torch": str, "pyro-ppl": str},
}


def check_schema(values: dict, schema: dict, where: str = "") -> None:
    for key, expected in schema.items():
        assert key in values, f"{where}/{key}"
        if isinstance(expected, dict):
            check_schema(values[key], expected, f"{where}/{key}")
        else:
            assert isinstance(values[key], expected), f"{where}/{key}: {values[key]!r}"
            assert isinstance(values[key], bool) == (expected is bool), f"{where}/{key}"


def test_the_summary_has_every_key_of_the_contract(finished):
    found = summary(finished[0])
    check_schema(found, SCHEMA)
    expected = {"units": "nats per datum", "schema": 1, "device": "cpu", "seed": 7, "stopped_by": "epochs"}
    assert {k: found[k] for k in expected} == expected
    assert (found["test"]["num_data"], found["test"]["log_px"]["num_samples"]) == (180, 20)
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    )
    assert 0 <= found["test"]["active_units"] <= 2
    assert 0 <= found["test"]["log_px"]["pareto_k_bad"] <= 180


def test_the_figures_of_the_summary_agree_with_one_another(finished):
    test = summary(finished[0])["test"]
    assert test["gap"] == pytest.approx(test["log_px"]["value"] - test["elbo"]["value"], abs=1e-9)
    assert test["elbo"]["value"] == pytest.approx(-(test["rate"] + test["distortion"]), abs=1e-9)
    # 64 pixels of 0 and 1: better than a fair coin each, worse than certainty.
    assert -64 * math.log(2) < test["elbo"]["value"] < test["log_px"]["value"] < 0
    if test["log_px"]["pareto_k_bad"]:
        assert test["log_px"]["mc_error"] is None


def test_metrics_have_one_row_an_epoch_with_true_bounds(finished):
    rows = metrics(finished[0])
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [math.ceil(1437 / 64), 2 * math.ceil(1437 / 64)]
    for row in rows:
        assert row["train_elbo"] == pytest.approx(-(row["train_rate"] + row["train_distortion"]), abs=1e-9)
        assert row["validation_elbo"] == pytest.approx(
            -(row["validation_rate"] + row["validation_distortion"]), abs=1e-9
        )
        assert row["objective"] == pytest.approx(row["train_elbo"], abs=1e-4)  # beta is 1; float32 sums
        assert (row["beta"], row["lr"]) == (1.0, 1e-3)


def test_the_summary_names_the_epoch_with_the_best_validation_elbo(finished):
    rows, found = metrics(finished[0]), summary(finished[0])
    best = max(rows, key=lambda row: row["validation_elbo"])
    assert found["best_epoch"] == best["epoch"]
    assert found["validation"]["elbo"]["value"] == best["validation_elbo"]


def test_the_configuration_says_what_the_flags_said(finished):
    folder, _ = finished
    written = json.loads((folder / "config.json").read_text())
    assert written == json.loads(json.dumps(checkpoint(folder)["config"]))
    config = Config.from_dict(written)
    assert (config.train.elbo, config.train.epochs, config.train.seed) == ("trace", 2, 7)
    assert (config.model.latent_dim, config.model.hidden) == (2, (16,))
    assert (config.evaluate.num_samples, config.data.binarize) == (20, "dynamic")


def test_load_gives_the_best_parameters_and_the_same_test_images(finished):
    folder, _ = finished
    loaded = pv.load(folder)
    assert differing(dict(loaded.vae.state_dict()), dict(checkpoint(folder)["training"]["best"])) == []
    assert loaded.summary == summary(folder)
    x = loaded.data().test.x
    assert torch.equal(x, load_data(loaded.config).test.x)
    again = estimate(loaded.vae, x, Estimation(num_samples=20), loaded.config.train.seed).summary()
    assert again.log_px == summary(folder)["test"]["log_px"]["value"]  # the very images and parameters


@pytest.mark.slow
def test_evaluate_as_a_process_changes_the_number_of_samples(finished, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for path in finished[0].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    result = process("pyro_vae.evaluate", str(copy), "--num-samples", "30", "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    before, after = summary(finished[0]), summary(copy)
    check_schema(after, SCHEMA)
    assert after["test"]["log_px"]["num_samples"] == 30
    assert "30 importance samples" in result.stdout
    error = math.hypot(before["test"]["elbo"]["mc_error"], after["test"]["elbo"]["mc_error"])
    assert 0 < abs(after["test"]["elbo"]["value"] - before["test"]["elbo"]["value"]) < 4 * error
    kept = ("validation", "best_epoch", "stopped_by", "images_per_second", "seed")
    assert {k: after[k] for k in kept} == {k: before[k] for k in kept}
    assert after["seconds"]["train"] == before["seconds"]["train"]


def test_two_evaluations_agree(finished, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "checkpoint.pt").write_bytes((finished[0] / "checkpoint.pt").read_bytes())
    for _ in range(2):
        torch.manual_seed(1)  # the caller's generator is not used
        assert evaluate.main([str(copy), "--quiet", "--device", "cpu"]) == 0
        assert summary(copy)["test"] == summary(finished[0])["test"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("RUN --num-samples 1", "num_samples"),
        ("RUN --num-samples 0", "num_samples"),
        ("RUN --device cuda:99", "device"),
        ("RUN --device tpu", "device"),
        ("RUN --threads 0", "threads"),
        ("nowhere", "nowhere"),
        ("", "runs"),
    ],
)
def test_bad_input_to_evaluate(finished, words, named, capsys):
    before = (finished[0] / "summary.json").read_bytes()
    assert evaluate.main([str(finished[0]) if word == "RUN" else word for word in words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyro_vae.evaluate: error: ")
    assert named in error
    assert error.count("\n") == 1
    assert (finished[0] / "summary.json").read_bytes() == before


# Exactness: the same again, and the same after an interruption.


@pytest.mark.usefixtures("no_pictures")
def test_a_seed_repeats_bit_for_bit_and_another_does_not(tmp_path):
    for name, seed, disturbance in (("one", "5", 1), ("again", "5", 2), ("other", "6", 1)):
        torch.manual_seed(disturbance)
        assert run(tmp_path / name, "--seed", seed) == 0
    one, again, other = (checkpoint(tmp_path / name) for name in ("one", "again", "other"))
    assert differing(one, again) == []
    assert summary(tmp_path / "one")["test"] == summary(tmp_path / "again")["test"]
    different = differing(one["training"], other["training"])
    assert {f"/model/{key}" for key in one["training"]["model"]} - set(different) == set()
    assert {"/order", "/random"} <= set(different)
    images = [pv.load(tmp_path / name).data().test.x for name in ("one", "other")]
    assert torch.equal(*images)  # --data-seed is another flag


def interrupt_save(monkeypatch, call: int) -> None:
    """Raise KeyboardInterrupt in place of the given checkpoint, counted from 1."""
    save, calls = RunDirectory.save, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        save(self, *args)

    monkeypatch.setattr(RunDirectory, "save", interrupted)


def interrupt_step(monkeypatch, call: int) -> None:
    """Raise KeyboardInterrupt in place of the given optimization step, counted from 1."""
    step, calls = SVI.step_terms, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(SVI, "step_terms", interrupted)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "words",
    [
        "--elbo trace",
        pytest.param("--elbo mean-field", marks=pytest.mark.slow),  # those marked add no state to what others have
        "--anneal linear:0:50",
        "--anneal cyclical:0:60:4 --beta 2",
        "--lr-schedule cosine",
        "--lr-schedule step --elbo mean-field",
        "--val-size 0",
        "--optimizer adamw --clip-norm 0.5",
        "--optimizer sgd --lr 1e-4",
        "--num-particles 2 --vectorize-particles",
        pytest.param("--likelihood normal --binarize none", marks=pytest.mark.slow),
        "--binarize static --patience 2",
        pytest.param("--hidden", marks=pytest.mark.slow),
    ],
)
@pytest.mark.thin(2)
def test_an_interrupted_run_goes_on_exactly(tmp_path, monkeypatch, capsys, words):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["--epochs", "4", *words.split()]
    assert run(whole, *words) == 0
    with monkeypatch.context() as patch:
        interrupt_save(patch, call=3)
        assert run(broken, *words) == 130
    assert f"--resume {broken}" in capsys.readouterr().err
    assert len(metrics(broken)) == len(checkpoint(broken)["training"]["rows"]) == 2
    assert not (broken / "summary.json").exists()
    assert differing(checkpoint(whole)["training"]["model"], checkpoint(broken)["training"]["model"]) != []
    torch.manual_seed(99)  # what the process did before is of no matter
    assert resume(broken) == 0
    expected, found = checkpoint(whole), checkpoint(broken)
    assert set(found["training"]) == set(KEYS)
    assert found["training"]["step"] == 4 * math.ceil((1617 if "0" == words[-1] else 1437) / 100)
    assert differing(expected, found) == []
    assert timeless(metrics(whole)) == timeless(metrics(broken))
    assert [row["epoch"] for row in metrics(broken)] == [1, 2, 3, 4]
    assert summary(whole)["test"] == summary(broken)["test"]
    assert (whole / "config.json").read_bytes() == (broken / "config.json").read_bytes()


@pytest.mark.usefixtures("no_pictures")
def test_an_interruption_within_an_epoch_goes_on_from_the_last_whole_one(tmp_path, monkeypatch):
    assert run(tmp_path / "whole", "--epochs", "3") == 0
    with monkeypatch.context() as patch:
        interrupt_step(patch, call=STEPS + 7)
        assert run(tmp_path / "broken", "--epochs", "3") == 130
    assert len(metrics(tmp_path / "broken")) == 1
    assert resume(tmp_path / "broken") == 0
    assert differing(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "broken")) == []


@pytest.mark.usefixtures("no_pictures")
def test_the_best_epoch_before_an_interruption_is_not_forgotten(tmp_path, monkeypatch):
    values = [-3.0, -2.0, -4.0, -5.0]

    def validate(model, split, objective, beta, seed, poll):
        return {"validation_elbo": values[len(poll.__self__.history)], "validation_elbo_std_error": 0.1}

    monkeypatch.setattr("pyro_vae.inference.training.training.validate", validate)
    assert run(tmp_path / "whole", "--epochs", "4") == 0
    with monkeypatch.context() as patch:
        interrupt_save(patch, call=3)
        assert run(tmp_path / "broken", "--epochs", "4") == 130
    at_best = checkpoint(tmp_path / "broken")["training"]["model"]
    assert resume(tmp_path / "broken") == 0
    assert differing(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "broken")) == []
    assert differing(dict(pv.load(tmp_path / "broken").vae.state_dict()), dict(at_best)) == []
    assert summary(tmp_path / "broken")["best_epoch"] == 2


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_goes_on_to_a_larger_total(tmp_path):
    assert run(tmp_path / "whole", "--epochs", "4") == 0
    assert run(tmp_path / "halves", "--epochs", "2") == 0
    assert resume(tmp_path / "halves", "--epochs", "4", "--num-samples", "6") == 0
    whole, halves = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "halves")
    assert differing(whole["training"], halves["training"]) == []
    assert halves["config"]["train"]["epochs"] == 4
    assert summary(tmp_path / "halves")["test"]["log_px"]["num_samples"] == 6


@pytest.mark.usefixtures("no_pictures")
def test_resuming_a_complete_run_trains_nothing_and_evaluates_again(tmp_path):
    assert run(tmp_path / "run") == 0
    before, figures = checkpoint(tmp_path / "run"), summary(tmp_path / "run")["test"]
    (tmp_path / "run" / "summary.json").unlink()
    assert resume(tmp_path / "run") == 0
    assert differing(before, checkpoint(tmp_path / "run")) == []
    assert summary(tmp_path / "run")["test"] == figures


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_was_ended_before_its_first_checkpoint_begins_again(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_save(patch, call=1)
        assert run(tmp_path / "run", "--seed", "5") == 130
    error = capsys.readouterr().err
    assert "stopped by SIGINT at once. No epoch was finished; there is no checkpoint" in error
    assert f"--resume {tmp_path / 'run'} begins again" in error
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.json"}
    assert resume(tmp_path / "run") == 0
    assert run(tmp_path / "whole", "--seed", "5") == 0
    assert differing(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")) == []


# Flags that change what is trained.


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("elbo", ["trace", "mean-field"])
def test_beta_weighs_the_rate_in_the_objective_and_never_in_the_bound(tmp_path, elbo):
    rates = []
    for beta in (0.0, 1.0, 4.0):
        folder = tmp_path / str(beta)
        assert run(folder, "--beta", str(beta), "--elbo", elbo, "--epochs", "6", "--lr", "1e-2") == 0
        for row in metrics(folder):
            assert row["beta"] == beta
            assert row["train_elbo"] == pytest.approx(-(row["train_rate"] + row["train_distortion"]), abs=1e-9)
            objective = -(row["train_distortion"] + beta * row["train_rate"])
            assert row["objective"] == pytest.approx(objective, abs=1e-4)  # float32 sums
        rates.append(summary(folder)["test"]["rate"])
        test = summary(folder)["test"]
        assert test["elbo"]["value"] == pytest.approx(-(test["rate"] + test["distortion"]), abs=1e-9)
    assert rates[0] > rates[1] + 0.1
    assert rates[1] > rates[2] + 0.1


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("anneal", "betas"),
    [
        ("linear:0:30", [2 * 14 / 30, 2 * 29 / 30, 2.0, 2.0]),
        ("linear:1:60", [1 + 14 / 60, 1 + 29 / 60, 1 + 44 / 60, 1 + 59 / 60]),
        # Two cycles of 20 steps, of which 10 rise; the last steps of the epochs are 14, 29, 44 and 59.
        ("cyclical:0:40:2", [2.0, 2 * 9 / 10, 2.0, 2.0]),
        ("constant", [2.0, 2.0, 2.0, 2.0]),
    ],
)
def test_anneal_sets_beta_of_each_step(tmp_path, anneal, betas):
    assert run(tmp_path / "run", "--epochs", "4", "--anneal", anneal, "--beta", "2") == 0
    rows = metrics(tmp_path / "run")
    assert [row["beta"] for row in rows] == pytest.approx(betas, rel=1e-6)  # float32
    for row in rows:
        assert row["train_elbo"] == pytest.approx(-(row["train_rate"] + row["train_distortion"]), abs=1e-9)
    if betas[2] == betas[3]:  # then beta was 2 in every step of the last epoch
        objective = -(rows[-1]["train_distortion"] + 2 * rows[-1]["train_rate"])
        assert rows[-1]["objective"] == pytest.approx(objective, abs=1e-4)
        assert abs(rows[-1]["objective"] - rows[-1]["train_elbo"]) > 1e-3


#: Factors of the learning rate in the last step of each of four epochs.
LR_FACTORS = {
    "constant": [1, 1, 1, 1],
    "cosine": [0.5 + 0.5 * math.cos(math.pi * (epoch - 1 / STEPS) / 4) for epoch in (1, 2, 3, 4)],
    "step": [1, 1, 0.1, 0.01],
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_lr_schedule_sets_the_learning_rate(tmp_path, schedule):
    assert run(tmp_path / "run", "--epochs", "4", "--lr-schedule", schedule, "--lr", "0.01") == 0
    expected = [0.01 * f for f in LR_FACTORS[schedule]]
    assert [row["lr"] for row in metrics(tmp_path / "run")] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    last = checkpoint(tmp_path / "run")["training"]["optimizer"]["encoder.head.bias"]["param_groups"][0]["lr"]
    step = 4 * STEPS - 1  # what the optimizer used last
    used = {"constant": 1, "cosine": 0.5 + 0.5 * math.cos(math.pi * step / (4 * STEPS)), "step": 0.01}[schedule]
    assert last == pytest.approx(0.01 * used, rel=1e-9)


@pytest.mark.usefixtures("no_pictures")
def test_a_schedule_that_outlives_training_is_warned_of(tmp_path):
    with pytest.warns(
        UserWarning, match="takes 31 steps, but training has only 30; train longer or shorten the schedule"
    ):
        assert run(tmp_path / "long", "--anneal", "linear:0:31") == 0
    assert run(tmp_path / "exact", "--anneal", "linear:0:30") == 0  # a warning would be an error here


@pytest.mark.usefixtures("no_pictures")
def test_patience_stops_when_the_validation_elbo_stands_still(tmp_path):
    # At this rate no weight changes in float32, so that every epoch has the validation ELBO of the first.
    assert run(tmp_path / "run", "--patience", "3", "--lr", "1e-30", "--epochs", "9") == 0
    assert len({row["validation_elbo"] for row in metrics(tmp_path / "run")}) == 1
    assert len(metrics(tmp_path / "run")) == 4
    found = summary(tmp_path / "run")
    assert (found["best_epoch"], found["stopped_by"]) == (1, "patience")


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("patience", "epochs", "best", "stopped_by"),
    [(1, 3, 2, "patience"), (2, 6, 4, "patience"), (3, 7, 4, "patience"), (4, 8, 8, "epochs"), (None, 8, 8, "epochs")],
)
def test_patience_counts_the_epochs_since_the_best(tmp_path, monkeypatch, patience, epochs, best, stopped_by):
    values, states = [-5.0, -4.0, -4.5, -3.0, -3.5, -3.0, -3.1, -2.0], []

    def validate(model, split, objective, beta, seed, poll):
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"validation_elbo": values[len(poll.__self__.history)], "validation_elbo_std_error": 0.1}

    monkeypatch.setattr("pyro_vae.inference.training.training.validate", validate)
    words = [] if patience is None else ["--patience", str(patience)]
    assert run(tmp_path / "run", "--epochs", "8", *words) == 0
    assert len(metrics(tmp_path / "run")) == epochs
    found = summary(tmp_path / "run")
    assert (found["best_epoch"], found["stopped_by"]) == (best, stopped_by)
    assert found["validation"]["elbo"] == {"value": values[best - 1], "std_error": 0.1}
    assert differing(dict(pv.load(tmp_path / "run").vae.state_dict()), states[best - 1]) == []


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_patience_stopped_is_not_trained_further_by_a_resume(tmp_path, monkeypatch):
    words = ["--patience", "3", "--lr", "1e-30", "--epochs", "9"]
    assert run(tmp_path / "whole", *words) == 0

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(summaries, "evaluate", interrupted)
        assert run(tmp_path / "broken", *words) == 130
    assert resume(tmp_path / "broken") == 0
    assert [row["epoch"] for row in metrics(tmp_path / "broken")] == [1, 2, 3, 4]
    assert differing(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "broken")) == []
    assert summary(tmp_path / "broken")["stopped_by"] == "patience"


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("words", "hidden"), [("--hidden", ()), ("--hidden 5", (5,)), ("--hidden 5 3", (5, 3))])
def test_hidden_takes_any_number_of_widths(tmp_path, words, hidden):
    assert run(tmp_path / "run", *words.split()) == 0
    loaded = pv.load(tmp_path / "run")
    assert loaded.config.model.hidden == hidden
    shapes = [tuple(w.shape) for k, w in loaded.vae.named_parameters() if k.endswith("weight")]
    widths = [64, *hidden, 4], [2, *reversed(hidden), 64]  # to a location and a log scale; from a latent vector
    assert shapes == [(out, into) for way in widths for into, out in itertools.pairwise(way)]
    if not hidden:
        x, y = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).split(1)
        middle = (loaded.vae.encoder(x) + loaded.vae.encoder(y)) / 2
        torch.testing.assert_close(loaded.vae.encoder((x + y) / 2), middle)


@pytest.mark.usefixtures("no_pictures")
def test_without_validation_the_last_epoch_is_kept(tmp_path):
    assert run(tmp_path / "run", "--val-size", "0") == 0
    found, training = summary(tmp_path / "run"), checkpoint(tmp_path / "run")["training"]
    assert found["validation"]["elbo"] is None if found["validation"] else found["validation"] is None
    assert found["best_epoch"] == 2
    assert training["best"] is None
    assert not any(key.startswith("validation") for key in metrics(tmp_path / "run")[0])
    assert differing(dict(pv.load(tmp_path / "run").vae.state_dict()), dict(training["model"])) == []


@pytest.mark.usefixtures("no_pictures")
def test_one_validation_image_has_no_standard_error(tmp_path):
    assert run(tmp_path / "run", "--val-size", "1") == 0
    assert summary(tmp_path / "run")["validation"]["elbo"]["std_error"] is None


@pytest.mark.usefixtures("no_pictures")
def test_quiet_prints_nothing_and_its_absence_a_line_an_epoch(tmp_path, capsys):
    assert run(tmp_path / "quiet") == 0
    assert capsys.readouterr().out == ""
    assert run(tmp_path / "loud", "--no-quiet") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "/2 " in line] == ["1/2", "2/2"]


def test_version(capsys):
    assert train.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"pyro_vae {pv.__version__} (Python {sys.version.split()[0]}, torch ")


@pytest.mark.usefixtures("no_pictures")
def test_overwrite_replaces_the_run_and_nothing_else(tmp_path):
    assert run(tmp_path / "run", "--epochs", "3") == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert run(tmp_path / "run", "--epochs", "1", "--overwrite") == 0
    assert len(metrics(tmp_path / "run")) == 1
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("no_pictures")
def test_the_default_folder_is_named_by_data_and_objective(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main([*SMALL, "--epochs", "1", "--elbo", "mean-field"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-mean-field-")
    assert (folder / "summary.json").is_file()


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.fixture(scope="module")
def short_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("short") / "run"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_pictures", lambda *args: [])
        assert run(folder) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--lr 0.5", "lr 0.5 (there 0.001)"),
        ("--seed 3", "seed 3 (there 0)"),
        ("--hidden 9", "hidden (9,) (there (8,))"),
        ("--beta 2 --batch-size 7", "batch_size 7 (there 100), beta 2.0 (there 1.0)"),
        ("--epochs 1", "epochs"),  # two are done already
        ("--epochs 0", "epochs"),
        ("--patience 0", "patience"),
        ("--run-dir elsewhere", "run-dir"),  # it would do nothing
        ("--overwrite", "overwrite"),
    ],
)
def test_bad_input_to_a_resumed_run_leaves_it_as_it_was(short_run, tmp_path, monkeypatch, capsys, words, what):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    before = {p.name: p.read_bytes() for p in short_run.iterdir()}
    code = resume(short_run, *words.split())
    error = capsys.readouterr().err
    after = {p.name: p.read_bytes() for p in short_run.iterdir()}
    for name, content in before.items():  # for the tests that come after
        (short_run / name).write_bytes(content)
    assert code == 2
    assert what in error
    assert error.count("\n") == 1
    assert after == before
    assert listing(tmp_path) == []


@pytest.mark.usefixtures("no_pictures")
def test_one_run_is_never_written_into_another(tmp_path):
    assert run(tmp_path / "one", "--seed", "1") == 0
    assert run(tmp_path / "two", "--seed", "2") == 0
    before = (tmp_path / "one" / "checkpoint.pt").read_bytes()
    words = ["--resume", str(tmp_path / "one"), "--resume", str(tmp_path / "two"), "--epochs", "3"]
    assert train.main(["--quiet", "--threads", "1", "--device", "cpu", *words]) in (0, 2)
    for name, seed in (("one", 1), ("two", 2)):
        assert checkpoint(tmp_path / name)["config"]["train"]["seed"] == seed
    assert (tmp_path / "one" / "checkpoint.pt").read_bytes() == before


@pytest.mark.slow  # test_bad_input.py has others as processes
def test_bad_input_to_the_command_as_a_process(tmp_path):
    result = process("pyro_vae.train", "--lr", "-1", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr == "pyro_vae.train: error: lr: expected a positive number, got -1.0.\n"
    assert listing(tmp_path) == []


# A loss that is not finite: exit code 1, the step and the site, and the last good checkpoint.


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_that_is_not_finite_keeps_the_last_whole_epoch(tmp_path, monkeypatch, capsys):
    folder, save, saved = tmp_path / "run", RunDirectory.save, []

    def spoil_after_two(self, training, *more):
        save(self, training, *more)
        saved.append({k: v.clone() for k, v in training.model.state_dict().items()})
        if len(saved) == 2:
            training.model.decoder.head.bias.data.fill_(math.nan)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save", spoil_after_two)
        assert run(folder, "--epochs", "4") == 1
    error = capsys.readouterr().err
    assert f"step {2 * STEPS}: expected a finite loss, got nan" in error
    assert "site 'x'" in error
    assert str(folder) in error
    assert "Traceback" not in error
    assert len(metrics(folder)) == 2
    assert differing(dict(checkpoint(folder)["training"]["model"]), saved[1]) == []
    assert len(pv.load(folder).history) == 2
    # What was kept is whole: the run goes on from it as if nothing had been.
    assert resume(folder) == 0
    assert run(tmp_path / "whole", "--epochs", "4") == 0
    assert differing(checkpoint(folder), checkpoint(tmp_path / "whole")) == []


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("words", ["--lr 1e30", "--optimizer sgd --lr 1e6"])
def test_a_learning_rate_that_diverges_at_once(tmp_path, capsys, words):
    folder = tmp_path / "run"
    assert run(folder, *words.split()) == 1
    error = capsys.readouterr().err
    assert "step 1: expected a finite loss" in error
    assert "site 'z'" in error
    assert "Traceback" not in error
    assert "smaller learning rate" in error
    assert not (folder / "checkpoint.pt").exists()
    assert "checkpoint of the last whole epoch" not in error  # there is none


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("words", ["", "--val-size 0", "--likelihood normal"])
def test_parameters_that_cannot_be_evaluated_are_no_traceback(tmp_path, capsys, words):
    # The one step of the one epoch has a finite loss and leaves parameters under which nothing has.
    words = f"--epochs 1 --batch-size 2000 --lr 1e30 {words}"
    assert run(tmp_path / "run", *words.split()) == 1
    error = capsys.readouterr().err
    assert "finite" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "summary.json").exists()


def test_config_repeats_a_run_and_flags_go_before_it(tmp_path, no_pictures):
    assert run(tmp_path / "one", "--seed", "3") == 0
    config = str(tmp_path / "one" / "config.json")
    words = ["--config", config, "--threads", "1", "--device", "cpu", "--quiet"]
    assert train.main([*words, "--run-dir", str(tmp_path / "again")]) == 0
    assert differing(checkpoint(tmp_path / "one")["training"], checkpoint(tmp_path / "again")["training"]) == []
    assert train.main([*words, "--run-dir", str(tmp_path / "other"), "--epochs", "1"]) == 0
    assert len(metrics(tmp_path / "other")) == 1
    assert Config.read(tmp_path / "other" / "config.json").train.seed == 3
