"""The rate-distortion curve: ordinary runs, one table of their figures, one plot."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from pyro_vae import report, train
from pyro_vae.cli import training_session
from pyro_vae.report.figures.sweep import rate_distortion
from pyro_vae.runs.sweep import COLUMNS, name_of

SMALL = "--latent-dim 2 --hidden 8 --num-samples 5 --threads 1 --device cpu --quiet --batch-size 200 --epochs 2".split()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def sweep(folder: Path, *words: str) -> int:
    return train.main([*SMALL, "--run-dir", str(folder), *words])


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_is_a_run_for_each_weight_and_their_figures(tmp_path):
    assert sweep(tmp_path / "s", "--beta-sweep", "4", "0.5", "1", "--seed", "3") == 0
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"beta-0-5", "beta-1", "beta-4", "sweep.csv", "sweep.png"}
    rows = table(tmp_path / "s")
    assert tuple(rows[0]) == COLUMNS
    assert [float(row["beta"]) for row in rows] == [0.5, 1.0, 4.0]
    for row in rows:
        run = tmp_path / "s" / row["run"]
        test = json.loads((run / "summary.json").read_text())["test"]
        config = json.loads((run / "config.json").read_text())
        assert (config["train"]["beta"], config["train"]["seed"]) == (float(row["beta"]), 3)
        assert float(row["rate"]) == test["rate"]
        assert float(row["distortion"]) == test["distortion"]
        assert float(row["elbo"]) == test["elbo"]["value"] == pytest.approx(-test["rate"] - test["distortion"])
        assert float(row["log_px"]) == test["log_px"]["value"]
    # The run of one weight is the very run that the command without a sweep makes.
    assert train.main([*SMALL, "--seed", "3", "--beta", "4", "--run-dir", str(tmp_path / "alone")]) == 0
    alone = json.loads((tmp_path / "alone" / "summary.json").read_text())["test"]
    assert float(rows[2]["elbo"]) == alone["elbo"]["value"]


def test_the_same_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    words = ["--beta-sweep", "0.5", "2"]
    assert sweep(tmp_path / "s", *words) == 0
    (tmp_path / "s" / "beta-2" / "summary.json").unlink()
    (tmp_path / "s" / "sweep.csv").unlink()
    kept = (tmp_path / "s" / "beta-0-5" / "summary.json").stat().st_mtime_ns
    begun = []
    describe = training_session.describe
    monkeypatch.setattr(
        training_session, "describe", lambda prepared, *rest: (begun.append(prepared), describe(prepared, *rest))[1]
    )
    assert sweep(tmp_path / "s", *words) == 0
    assert [(p.config.train.beta, p.resume is not None) for p in begun] == [(2.0, True)]
    assert (tmp_path / "s" / "beta-0-5" / "summary.json").stat().st_mtime_ns == kept
    assert [row["run"] for row in table(tmp_path / "s")] == ["beta-0-5", "beta-2"]
    assert sweep(tmp_path / "s", *words, "--overwrite") == 0
    assert [p.config.train.beta for p in begun] == [2.0, 0.5, 2.0]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--beta-sweep", "at least two different weights, such as 0.1 0.5 1 2 4 8, got none"),
        ("--beta_sweep --seed 3", "at least two different weights, such as 0.1 0.5 1 2 4 8, got none"),
        ("--beta-sweep 1", "at least two different weights, such as 0.1 0.5 1 2 4 8, got 1"),
        ("--beta-sweep 1 x", "--beta-sweep: expected a number, got 'x'"),
        ("--beta-sweep 1 1", "at least two different weights"),
        ("--beta-sweep 1 -2", "got -2"),
        ("--beta-sweep 1 nan", "got nan"),
        ("--beta-sweep 1 2 --beta 3", "cannot be combined with --beta-sweep"),
        ("--beta-sweep 1 2 --run-dir taken", "notes.txt"),
        ("--beta-sweep 1 2 --elbo rws", "KL weight"),
    ],
)
def test_bad_sweeps_write_nothing(tmp_path, monkeypatch, capsys, words, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    assert train.main([*SMALL, *words.split()]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1
    assert {p.name for p in tmp_path.rglob("*")} == {"notes.txt", "taken"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--free-bits-per site", "free_bits_per: 'site' has no effect without --free-bits; remove --free-bits-per."),
        ("--capacity-weight 3", "capacity_weight: 3 has no effect without --capacity; remove --capacity-weight."),
        ("--elbo iwae --alpha 0.5", "--alpha: needs --elbo renyi or dreg, but the objective is iwae; remove --alpha."),
        (
            "--elbo trace --num-groups 3",
            "--num-groups: needs --elbo miwae or piwae, but the objective is trace; remove --num-groups.",
        ),
        (
            "--elbo stl --elbo-weight 0.3",
            "--elbo-weight: needs --elbo ciwae, but the objective is stl; remove --elbo-weight.",
        ),
        (
            "--elbo iwae --partitions 3",
            "--partitions: needs --elbo tvo, but the objective is iwae; remove --partitions.",
        ),
        ("--elbo tvo --partitions 0", "partitions: expected at least 1, got 0."),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert train.main([*SMALL, *words.split()]) == 2
    assert capsys.readouterr().err == f"pyro_vae.train: error: {sentence}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_other_settings_is_not_taken_for_one_of_the_sweep(tmp_path, capsys):
    assert sweep(tmp_path / "s", "--beta-sweep", "0.5", "2") == 0
    assert sweep(tmp_path / "s", "--beta-sweep", "0.5", "2", "--seed", "9") == 2
    assert "seed 9 (there 0)" in capsys.readouterr().err


def test_names_hold_letters_digits_and_hyphens():
    assert [name_of(beta) for beta in (0.1, 1.0, 25.0, 1e-5)] == ["beta-0-1", "beta-1", "beta-25", "beta-1e-05"]


def test_points_on_top_of_one_another_share_a_label():
    points = [(0.1, 20, 5), (1, 4, 15), (4, 0.01, 20), (8, 0.0, 20)]
    rows = [{"beta": b, "rate": r, "distortion": d} for b, r, d in points]
    axes = rate_distortion(rows, "title").axes[0]
    assert [text.get_text() for text in axes.texts if "β" in text.get_text()] == ["β = 0.1", "β = 1", "β = 4, 8"]
    assert axes.lines[0].get_xydata().tolist() == [[20, 5], [4, 15], [0.01, 20], [0.0, 20]]


@pytest.mark.parametrize("scale", [100.0, 1.0, 0.01, 1e-4])
def test_lines_of_equal_elbo_have_labels_of_their_own(scale):
    rows = [
        {"beta": b, "rate": 0.5 + r * scale, "distortion": 27 + d * scale}
        for b, r, d in ((1, 2, 0), (2, 1, 1), (4, 0, 3))
    ]
    axes = rate_distortion(rows, "title").axes[0]
    (lines,) = axes.collections
    said = [float(text.get_text().replace("−", "-")) for text in axes.texts if "β" not in text.get_text()]
    assert len(said) == len(set(said)) > 2
    assert all(abs(lines.levels - value).min() < 1e-6 * scale for value in said)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rate, nats per datum", "distortion, nats per datum")
