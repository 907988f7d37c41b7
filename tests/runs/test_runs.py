from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import evaluate, train
from pyro_vae.runs import run as runs
from pyro_vae.runs.build import load_data, make_vae
from pyro_vae.runs.config import Config, DataConfig, ModelConfig, TrainConfig
from pyro_vae.runs.directory import FILES, SCHEMA, RunDirectory
from pyro_vae.system import files
from pyro_vae.system.files import write_atomically

SMALL = Config(
    DataConfig(val_size=100, data_seed=3), ModelConfig(latent_dim=2, hidden=(4,)), TrainConfig(epochs=3, batch_size=500)
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def claimed(path: Path | None, name: str = "digits", **options) -> RunDirectory:
    """The folder of a run that wrote a file and released it."""
    with RunDirectory.claim(path, name, **options) as directory:
        (directory.path / "config.json").write_text("{}")
    return directory


@pytest.fixture
def made(tmp_path):
    """A run directory after three epochs of training, with the training's state."""
    states = []
    directory = claimed(tmp_path / "run")
    data = load_data(SMALL)
    vae = make_vae(SMALL, data.data_shape)

    def save(training):
        directory.save(training, SMALL, 1.5, data.fingerprint())
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


def test_claim_makes_the_folder_and_its_parents(tmp_path):
    directory = claimed(tmp_path / "some" / "run")
    assert directory.path == tmp_path / "some" / "run"
    assert names(directory.path) == ["config.json"]


def test_claim_takes_a_folder_that_is_empty_or_holds_what_a_kill_left(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".lock", ".checkpoint.pt.17.tmp", ".config.json.18.tmp"):
        (tmp_path / "run" / name).write_text("half")
    assert claimed(tmp_path / "run").path == tmp_path / "run"
    assert names(tmp_path / "run") == ["config.json"]


def test_claim_refuses_a_folder_with_files_and_leaves_them(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a new or empty folder") as caught:
        claimed(tmp_path)
    for flag in ("--resume", "--overwrite", "--run-dir"):
        assert flag in str(caught.value)
    assert names(tmp_path) == ["config.json", "notes.txt"]
    (spaced := tmp_path / "with space").mkdir()
    (spaced / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"pass --resume '{spaced}' to continue"):
        claimed(spaced)


def test_overwrite_removes_the_run_files_only(tmp_path):
    for name in (*FILES, "notes.txt", ".checkpoint.pt.17.tmp", ".mine.tmp"):
        (tmp_path / name).write_text("old")
    (tmp_path / "folder").mkdir()
    with RunDirectory.claim(tmp_path, "digits", overwrite=True):
        assert names(tmp_path) == [".lock", ".mine.tmp", "folder", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "old"


def test_claim_where_no_folder_can_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="expected a folder that can be written") as caught:
            claimed(path, overwrite=True)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("made_before", [True, False])
def test_a_folder_that_is_given_up_is_removed_if_the_run_made_it(tmp_path, made_before):
    if made_before:
        (tmp_path / "some" / "run").mkdir(parents=True)
    with pytest.raises(KeyError), RunDirectory.claim(tmp_path / "some" / "run", "digits"):
        raise KeyError
    assert names(tmp_path) == (["some"] if made_before else [])


def test_default_names_are_distinct_and_plain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.time, "strftime", lambda form: "20260102-030405")  # all in one second
    paths = [claimed(None, "some data/set.npz: ELBO_β").path for _ in range(3)]
    assert len(set(paths)) == 3
    assert names(tmp_path / "runs") == sorted(path.name for path in paths)
    for path in paths:
        assert re.fullmatch(r"runs/some-data-set-npz-ELBO-20260102-030405(-[23])?", path.as_posix())


@pytest.mark.parametrize("name", ["", "-", "データ", "--x", "a" * 300, "a-" * 200, "...", "a\nb\0c"])
def test_default_names_are_plain_whatever_the_data_are_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"([A-Za-z0-9]+-)*\d{8}-\d{6}", claimed(None, name).path.name)


def test_many_runs_at_once_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.time, "strftime", lambda form: "20260102-030405")
    start = threading.Barrier(20)

    def one(_: int) -> Path:
        start.wait()
        return claimed(None, "digits-trace").path

    with ThreadPoolExecutor(20) as pool:
        paths = list(pool.map(one, range(20)))
    stem = "digits-trace-20260102-030405"
    assert sorted(p.name for p in paths) == sorted([stem, *(f"{stem}-{i}" for i in range(2, 21))])
    assert names(tmp_path / "runs") == sorted(p.name for p in paths)


def test_a_default_name_holds_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"digits-trace-\d{8}-\d{6}", claimed(None, "digits-trace").path.name)


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
        with pytest.raises(ValueError, match=r"checkpoint\.pt is missing; name the folder of a run") as caught:
            RunDirectory(folder).read_checkpoint()
        assert str(folder) in str(caught.value)


def refused(folder: Path, content: bytes) -> str:
    """Write this as a checkpoint; return the sentence with which both readers refuse it."""
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
    ("content", "found"),
    [
        ({"schema": 99, "pyro_vae": "7.8.9"}, "schema 99 (pyro_vae 7.8.9)"),
        ({"weights": 1}, "schema None (pyro_vae unknown)"),
        ([1, 2], "schema None (pyro_vae unknown)"),
        (torch.zeros(2), "schema None (pyro_vae unknown)"),
    ],
)
def test_a_checkpoint_of_another_schema_is_refused(tmp_path, content, found):
    torch.save(content, tmp_path / "foreign")
    expected = f"expected a checkpoint of schema {SCHEMA} (pyro_vae {pv.__version__}), got {found};"
    assert expected in refused(tmp_path, (tmp_path / "foreign").read_bytes())


def nested(values, where=()):
    """The places of everything in nested dicts and lists."""
    yield where
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from nested(value, (*where, key))


def replaced(values, where, value):
    """A copy with another value at one place, or without its value."""
    if not where:
        return value
    copy = values.copy()
    if value is ... and len(where) == 1:
        del copy[where[0]]
    else:
        copy[where[0]] = replaced(copy[where[0]], where[1:], value)
    return copy


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_checkpoint_with_anything_in_it_of_another_kind_is_refused_with_a_sentence(made, capsys, which):
    """Whatever one puts wherever: a sentence or, where it is of no consequence, a run; never a traceback.

    Two kinds at each place: one here, the other in the slow test, kinds that follow one another as the places do.
    """
    directory, _, _ = made
    whole, count = directory.read_checkpoint(), 0
    places = [w for w in nested(whole) if w and w[-1] != "schema" and not {"rows", "optimizer"} & {*w[:-1]}]
    places += [("training", "rows", 0), ("training", "rows", 1, "epoch"), ("training", "rows", 0, "train_elbo")]
    places += [
        ("training", "optimizer", "encoder.head.bias", *more) for more in [(), ("state",), ("state", 0, "exp_avg")]
    ]
    for number, where in enumerate(places):
        value = ((..., "x"), (None, {}), ([], torch.zeros(3)))[number % 3][(number // 3 + which) % 2]
        torch.save(replaced(whole, where, value), directory.path / "checkpoint.pt")
        words = ["--resume", str(directory.path), "--quiet", "--device", "cpu", "--epochs", "2"]  # fewer than done
        assert train.main(words) == 2, (where, value)
        error = capsys.readouterr().err
        assert error.count("\n") == 1, (where, value, error)
        with contextlib.suppress(ValueError):
            pv.load(directory.path)
            continue
        count += 1
    assert count > 25


def test_a_checkpoint_of_another_architecture_is_refused_with_the_first_parameter_that_differs(made):
    directory, _, _ = made
    checkpoint = directory.read_checkpoint()
    parameters = checkpoint["training"]["model"]
    name = next(iter(parameters))
    shape = tuple(parameters[name].shape)
    for tampered, found in [
        ({**parameters, name: torch.zeros(3, 2)}, f"{name!r} of shape {shape}, got shape (3, 2);"),
        ({k: v for k, v in parameters.items() if k != name}, f"{name!r} of shape {shape}, got none;"),
        ({**parameters, "more": torch.zeros(2)}, "got 'more' as well;"),
    ]:
        for key in ("model", "best"):
            training = {**checkpoint["training"], key: tampered}
            torch.save({**checkpoint, "training": training}, directory.path / "checkpoint.pt")
            with pytest.raises(ValueError, match=re.escape(found)) as caught:
                pv.load(directory.path)
            assert str(caught.value).startswith(str(directory.path / "checkpoint.pt"))


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_checkpoint_is_run(tmp_path, zipped):
    target = tmp_path / "executed"
    content = {"schema": SCHEMA, "training": Malicious(target)}
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


@pytest.mark.parametrize("spared", [(), ("checkpoint.pt",)])
def test_no_code_in_any_file_of_a_run_is_run(made, tmp_path, capsys, spared):
    directory, _, _ = made
    target = tmp_path / "executed"
    for name in {*FILES, ".lock", ".checkpoint.pt.1.tmp"} - {*spared}:
        (directory.path / name).write_bytes(pickle.dumps(Malicious(target)))
    words = [str(directory.path), "--quiet", "--device", "cpu"]
    before = directory.path / "config.json"
    for command in (
        lambda: train.main(["--resume", *words, "--epochs", "0"]),
        lambda: train.main(["--run-dir", *words]),
    ):
        assert command() == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert evaluate.main([*words, "--num-samples", "2"]) == (0 if spared else 2)
    if not spared:
        with pytest.raises(ValueError, match="cannot be read"):
            pv.load(directory.path)
        (directory.path / "checkpoint.pt").unlink()
        assert train.main(["--resume", *words]) == 2  # config.json takes its place, and is no JSON
        assert f"{before}: expected a JSON file" in capsys.readouterr().err
    assert not target.exists()


def test_weights_are_read_with_weights_only_everywhere():
    package = Path(pv.__file__).parent
    calls = [
        line for path in package.rglob("*.py") for line in path.read_text("utf-8").splitlines() if "torch.load(" in line
    ]
    assert calls
    assert all("weights_only=True" in line for line in calls)
    assert not [
        path for path in package.rglob("*.py") if re.search(r"import pickle|allow_pickle=True", path.read_text("utf-8"))
    ]


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


def test_data_that_changed_beneath_a_run_are_refused(made, monkeypatch):
    directory, _, _ = made
    run, data = pv.load(directory.path), load_data(SMALL)
    fewer = dataclasses.replace(data, train=data.train._replace(x=data.train.x[:1437]))
    other = dataclasses.replace(data, test=data.test._replace(x=1 - data.test.x))
    none = dataclasses.replace(data, validation=None)
    for found, sentence in [
        (fewer, "got num_train 1437 (there 1517);"),
        (other, "got other pixels in the test data;"),
        (none, "got num_validation None (there 100);"),
    ]:
        monkeypatch.setattr(runs, "load_data", lambda config, found=found: found)
        with pytest.raises(ValueError, match=re.escape(sentence)):
            run.data()


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
