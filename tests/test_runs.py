from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import runs
from pyro_vae.config import Config, DataConfig, ModelConfig, TrainConfig
from pyro_vae.files import write_atomically
from pyro_vae.runs import FILES, RunDirectory, load_data, make_vae

SMALL = Config(
    DataConfig(val_size=100, data_seed=3), ModelConfig(latent_dim=2, hidden=(4,)), TrainConfig(epochs=3, batch_size=500)
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def made(tmp_path):
    """A run directory as three epochs of training leave it, with the state of the training that wrote it."""
    states = []
    directory = RunDirectory.create(tmp_path / "run", "digits")
    data = load_data(SMALL)
    vae = make_vae(SMALL, data.data_shape)

    def save(training):
        directory.save(training, SMALL, 1.5)
        states.append({k: v.clone() for k, v in training.model.state_dict().items()})

    history = pv.fit(vae, data, epochs=3, batch_size=500, callbacks=[save], progress=False)
    return directory, states, history


def test_write_atomically_replaces_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_failing_write_leaves_the_old_file_whole_and_nothing_else(tmp_path, monkeypatch, broken, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*args):
        raise error

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    write_atomically(tmp_path / "file", b"new")
    assert calls[:2] == ["fsync", "replace"]


def test_create_makes_the_folder_and_its_parents(tmp_path):
    directory = RunDirectory.create(tmp_path / "some" / "run", "digits")
    assert directory.path == tmp_path / "some" / "run"
    assert names(directory.path) == []


def test_create_takes_an_empty_folder(tmp_path):
    (tmp_path / "run").mkdir()
    assert RunDirectory.create(tmp_path / "run", "digits").path == tmp_path / "run"


def test_create_refuses_a_folder_with_files_and_leaves_them(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a new or empty folder") as caught:
        RunDirectory.create(tmp_path, "digits")
    for flag in ("--resume", "--overwrite", "--run-dir"):
        assert flag in str(caught.value)
    assert names(tmp_path) == ["config.json", "notes.txt"]


def test_overwrite_removes_the_run_files_only(tmp_path):
    for name in (*FILES, "notes.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "folder").mkdir()
    RunDirectory.create(tmp_path, "digits", overwrite=True)
    assert names(tmp_path) == ["folder", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "old"


def test_create_where_no_folder_can_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="expected a folder that can be written") as caught:
            RunDirectory.create(path, "digits", overwrite=True)
        assert str(path) in str(caught.value)


def test_default_names_are_distinct_and_plain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "strftime", lambda form: "20260102-030405")  # all in one second
    paths = [RunDirectory.create(None, "some data/set.npz: ELBO_β").path for _ in range(3)]
    assert len(set(paths)) == 3
    assert names(tmp_path / "runs") == sorted(path.name for path in paths)
    for path in paths:
        assert re.fullmatch(r"runs/some-data-set-npz-ELBO-20260102-030405(-[23])?", path.as_posix())


def test_a_default_name_holds_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"digits-trace-\d{8}-\d{6}", RunDirectory.create(None, "digits-trace").path.name)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.write_json("summary.json", {"elbo": -1.5, "name": "β"})
    assert directory.read_json("summary.json") == {"elbo": -1.5, "name": "β"}
    with pytest.raises(ValueError, match="Out of range float"):
        directory.write_json("summary.json", {"elbo": float("nan")})
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == {"elbo": -1.5, "name": "β"}
    assert directory.read_json("other.json") == {}


def test_a_missing_checkpoint_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"expected a folder with checkpoint\.pt, got none there") as caught:
            RunDirectory(folder).read_checkpoint()
        assert str(folder) in str(caught.value)


def refused(folder: Path, content: bytes) -> str:
    """Put this into a checkpoint; the one sentence with which both readers refuse it."""
    (folder / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: expected a checkpoint of") as caught:
        RunDirectory(folder).read_checkpoint()
    with pytest.raises(ValueError, match=re.escape(str(caught.value))):
        pv.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(made, share):
    directory, _, _ = made
    content = (directory.path / "checkpoint.pt").read_bytes()
    assert "cannot be read" in refused(directory.path, content[: int(share * len(content))])


@pytest.mark.parametrize(
    "content",
    [b"epoch,elbo\n1,-3\n", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"hello", b"{}", b"\x80\x02.", bytes(range(256))],
    ids=repr,
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    refused(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "found"), [({"schema": 99}, "99"), ({"weights": 1}, "None"), ([1, 2], "None"), (torch.zeros(2), "None")]
)
def test_a_checkpoint_of_another_schema_is_refused(tmp_path, content, found):
    torch.save(content, tmp_path / "foreign")
    assert f"expected a checkpoint of schema 1, got {found};" in refused(tmp_path, (tmp_path / "foreign").read_bytes())


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_checkpoint_is_run(tmp_path, zipped):
    target = tmp_path / "executed"
    content = {"schema": 1, "training": Malicious(target)}
    torch.save(content, tmp_path / "bad", _use_new_zipfile_serialization=zipped)
    torch.load(tmp_path / "bad", weights_only=False)  # the trap works
    target.rmdir()
    assert "cannot be read" in refused(tmp_path, (tmp_path / "bad").read_bytes())
    assert not target.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_no_code_in_a_plain_pickle_is_run(tmp_path, protocol):
    target = tmp_path / "executed"
    content = pickle.dumps(Malicious(target), protocol)
    pickle.loads(content)  # the trap works
    target.rmdir()
    assert "cannot be read" in refused(tmp_path, content)
    assert not target.exists()


def test_load_gives_the_run(made):
    directory, _, history = made
    run = pv.load(str(directory.path))
    assert run.path == directory.path
    assert run.config == SMALL
    assert run.history.rows == history.rows
    assert run.summary == {}
    assert run.vae.data_shape == (1, 8, 8)
    assert not run.vae.training
    assert {str(p.device) for p in run.vae.parameters()} == {"cpu"}


def test_load_gives_the_best_epoch_and_not_the_last(made, monkeypatch):
    directory, states, _ = made
    checkpoint = directory.read_checkpoint()
    for best in range(1, 4):  # whichever was the best, by hand
        checkpoint["training"]["best"] = states[best - 1]
        monkeypatch.setattr(RunDirectory, "read_checkpoint", lambda self: checkpoint)
        loaded = pv.load(directory.path).vae.state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in states[best - 1].items())
    assert not torch.equal(states[0]["decoder.head.weight"], states[2]["decoder.head.weight"])
    checkpoint["training"]["best"] = None  # no validation: the last
    loaded = pv.load(directory.path).vae.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in states[2].items())


def test_the_checkpoint_holds_the_best_and_the_last_state(made):
    directory, states, history = made
    training = directory.read_checkpoint()["training"]
    for key, value in states[-1].items():
        assert torch.equal(training["model"][key], value)
    for key, value in states[history.best_epoch - 1].items():
        assert torch.equal(training["best"][key], value)


def test_data_of_a_run_are_the_very_ones(made):
    directory, _, _ = made
    data, expected = pv.load(directory.path).data(), load_data(SMALL)
    other = load_data(dataclasses.replace(SMALL, data=dataclasses.replace(SMALL.data, data_seed=4)))
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(data, split).x, getattr(expected, split).x)
        assert not torch.equal(getattr(data, split).x, getattr(other, split).x)
    assert (data.redraw, data.sizes) == (True, "1,517 train, 100 validation, 180 test")


def test_metrics_have_a_header_and_a_row_an_epoch(made):
    directory, _, history = made
    header, *rows = (directory.path / "metrics.csv").read_text().splitlines()
    assert header.split(",") == list(history.rows[0])
    assert [[float(v) for v in row.split(",")] for row in rows] == [list(row.values()) for row in history.rows]


def test_a_run_survives_being_moved(made, tmp_path):
    directory, states, _ = made
    directory.path.rename(tmp_path / "elsewhere")
    run = pv.load(tmp_path / "elsewhere")
    assert set(run.vae.state_dict()) == set(states[0])
    assert run.config == SMALL
