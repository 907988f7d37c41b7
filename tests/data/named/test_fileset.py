"""Where the files of named sets are looked for, and how they are fetched: from a server on this machine, or in vain."""

from __future__ import annotations

import shutil
import socket
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from pyro_vae.data import NAMED, load
from pyro_vae.data.__main__ import main
from pyro_vae.data.named import celeba, fileset
from pyro_vae.data.named.registry import FILES
from pyro_vae.data.source import Request
from pyro_vae.system import files
from tests.data.fabricated import Fabricated, fabricate

IN_FILES = [files.name for files in FILES]
#: Sets that come over HTTP; celeba comes from Google Drive, through gdown.
SERVED = [name for name in IN_FILES if name != "celeba"]


class Server(ThreadingHTTPServer):
    """Gives the files in ``content`` by the last part of their address, and notes what was asked.

    Attributes:
        content: Name -> bytes.
        cut: How many bytes of each file to leave out at the end, though its whole length was announced.
        asked: Names, as often as they were asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.cut = 0
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is none."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.asked.append(name)
        if name not in self.server.content:
            self.send_error(404)
            return
        content = self.server.content[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - self.server.cut])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def serve(name: str, server: Server, patch: pytest.MonkeyPatch) -> Fabricated:
    made = fabricate(name, patch, server.url)
    server.content = made.served
    return made


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", SERVED)
def test_a_download_leaves_the_files_of_the_set_and_no_others(name, server, tmp_path, monkeypatch):
    made = serve(name, server, monkeypatch)
    folder = tmp_path / "new" / "folder"
    fetched = NAMED[name](Request((folder, tmp_path / "other")))
    assert files_below(tmp_path) == {f"new/folder/{file}" for file in made.files}
    lying = NAMED[name](Request((made.put(tmp_path / "there"),), download=False))
    for split in ("train", "test"):
        assert torch.equal(getattr(fetched, split).x.in_memory(), getattr(lying, split).x.in_memory())
        assert torch.equal(getattr(fetched, split).y, getattr(lying, split).y)
    asked = len(server.asked)
    NAMED[name](Request((folder,)))
    assert len(server.asked) == asked  # once it is there, no one is asked


@pytest.mark.parametrize("name", SERVED)
def test_a_download_that_is_cut_off_leaves_nothing_and_can_be_repeated(name, server, tmp_path, monkeypatch):
    made = serve(name, server, monkeypatch)
    server.cut = 10
    with pytest.raises(ValueError, match=rf"^{name}: found no files in .* could not fetch them \(.+\);"):
        load(name, data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.cut = 0
    load(name, data_dir=tmp_path, val_size=1)
    assert files_below(tmp_path) == set(made.files)


def test_the_leavings_of_a_killed_process_are_not_taken_for_whole_and_removed(server, tmp_path, monkeypatch):
    made = serve("kmnist", server, monkeypatch)
    for name, content in made.files.items():
        left = tmp_path / ".kmnist-killed" / name
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(content[:-5])
    (tmp_path / ".kmnist.lock").touch()
    (tmp_path / "KMNIST" / "raw").mkdir(parents=True)
    first = next(iter(made.files))
    (tmp_path / first).write_bytes(b"some, but not all, were moved")
    load("kmnist", data_dir=tmp_path, val_size=1)
    assert files_below(tmp_path) == set(made.files)
    assert (tmp_path / first).read_bytes() == made.files[first]


def test_many_at_once_fetch_once(server, tmp_path, monkeypatch):
    made = serve("kmnist", server, monkeypatch)
    NAMED["kmnist"](Request((tmp_path / "alone",)))
    alone = sorted(server.asked)
    server.asked.clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(NAMED["kmnist"], [Request((tmp_path / "together",))] * 8))
    assert sorted(server.asked) == alone
    assert all(torch.equal(parts.train.x.in_memory(), found[0].train.x.in_memory()) for parts in found)
    assert files_below(tmp_path / "together") == set(made.files)


@pytest.mark.parametrize("name", SERVED)
def test_archives_that_are_there_are_taken_instead_of_the_network(name, offline, tmp_path, monkeypatch):
    made = fabricate(name, monkeypatch)
    for archive in NAMED[name].archives:
        there = tmp_path / "second" / archive
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(made.served[there.name])
    request = Request((tmp_path / "first", tmp_path / "second"))
    assert len(NAMED[name](request).test.x) == len(made.images["test"])
    assert {(tmp_path / "second" / archive).read_bytes() for archive in NAMED[name].archives} == set(
        made.served.values()
    )


@pytest.mark.parametrize("name", IN_FILES)
def test_without_files_and_network_one_sentence_says_where_and_what_to_do(name, offline, tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ValueError, match=rf"^{name}: found no files in ") as caught:
        load(name)
    sentence = str(caught.value)
    reason = "pip install 'pyro-vae[celeba]'" if name == "celeba" else "Temporary failure in name resolution"
    fetch = f"python -m pyro_vae.data {name} --data-dir {tmp_path / 'named'}"
    places = [str(NAMED[name].place(tmp_path / folder)) for folder in ("named", "cache/pyro_vae")]
    for word in (" or ".join(places), reason, "--data-dir,", fetch, "--dataset digits,"):
        assert word in sentence
    assert "--download" not in sentence
    assert "\n" not in sentence
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="allow --download, run python"):
        load(name, download=False)


def test_a_network_that_swallows_everything_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(fileset, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fabricate("kmnist", monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"could not fetch them \(.*timed out"):
            load("kmnist", data_dir=tmp_path)
    assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None


def test_the_callers_own_limit_of_patience_stays(offline, tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: limits.append(socket.getdefaulttimeout()))
    monkeypatch.setattr(fileset, "TIMEOUT", 3.0)
    for before in (None, 7.0):
        socket.setdefaulttimeout(before)
        try:
            with pytest.raises(ValueError, match="could not fetch"):
                load("kmnist", data_dir=tmp_path)
            assert socket.getdefaulttimeout() == before
        finally:
            socket.setdefaulttimeout(None)
    assert sorted(set(limits)) == [3.0, 7.0]


def test_the_first_folder_that_has_whole_files_is_taken(offline, tmp_path, monkeypatch):
    made = fabricate("kmnist", monkeypatch)
    folders = tuple(tmp_path / name for name in ("empty", "damaged", "whole", "also"))
    for folder in folders[1:]:
        made.put(folder)
    labels = folders[1] / "KMNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    assert NAMED["kmnist"].find(Request(folders))[0] == folders[2]
    with pytest.raises(ValueError, match=rf"^kmnist: the files in {labels.parent} cannot be read"):
        NAMED["kmnist"](Request(folders[:2]))
    assert not folders[0].exists()


@pytest.mark.parametrize("name", IN_FILES)
@pytest.mark.parametrize("damage", [b"", b"no such file on this server", None], ids=["empty", "text", "half"])
def test_damaged_files_are_named_and_left_as_they_are(name, damage, server, tmp_path, monkeypatch):
    made = serve(name, server, monkeypatch)
    made.put(tmp_path)
    damaged = tmp_path / NAMED[name].files[0]
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2 - 3] if damage is None else damage)
    content = damaged.read_bytes()
    with pytest.raises(ValueError, match=rf"^{name}: the files in {damaged.parent} cannot be read") as caught:
        load(name, data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert f"remove these files and run python -m pyro_vae.data {name} --data-dir {tmp_path}," in str(caught.value)
    assert damaged.read_bytes() == content
    assert server.asked == []


def test_nothing_is_made_or_printed_where_the_files_are_there(tmp_path, monkeypatch, capfd):
    made = fabricate("kmnist", monkeypatch)
    made.put(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    monkeypatch.setattr(files, "FileLock", None)
    load("kmnist", data_dir=tmp_path, val_size=1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before
    assert capfd.readouterr() == ("", "")


def test_a_folder_that_cannot_be_made_is_reported(offline, tmp_path, monkeypatch):
    fabricate("kmnist", monkeypatch)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"could not fetch them \(\[Errno 20\] Not a directory"):
        load("kmnist", data_dir=tmp_path / "file" / "below")


def test_without_locks_it_is_fetched_all_the_same(server, tmp_path, monkeypatch):
    made = serve("kmnist", server, monkeypatch)

    class NoLock:
        def __init__(self, path: Path, timeout: float) -> None: ...

        def acquire(self) -> None:
            raise NotImplementedError

    monkeypatch.setattr(files, "FileLock", NoLock)
    (tmp_path / ".kmnist-of-another").mkdir()  # which may still be at work
    load("kmnist", data_dir=tmp_path, val_size=1)
    assert files_below(tmp_path) == set(made.files)
    assert (tmp_path / ".kmnist-of-another").is_dir()


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Fabricated:
    """CelebA, and a gdown that gives it."""
    made = fabricate("celeba", monkeypatch)
    gdown = types.ModuleType("gdown")
    gdown.__spec__ = types.SimpleNamespace(name="gdown")
    gdown.download = lambda id, output, **_: Path(output).write_bytes(made.served[id])
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    monkeypatch.setattr(celeba, "_reach_google_drive", lambda: None)
    return made


def test_celeba_is_fetched_by_gdown(drive, tmp_path):
    data = load("celeba", data_dir=tmp_path)
    assert data.sizes == "4 train, 2 validation, 3 test"
    assert files_below(tmp_path) == set(drive.files)


def test_celeba_of_archives_needs_no_gdown(drive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    (tmp_path / "celeba").mkdir()
    for name, content in drive.served.items():
        (tmp_path / "celeba" / name).write_bytes(content)
    assert load("celeba", data_dir=tmp_path).sizes == "4 train, 2 validation, 3 test"
    assert files_below(tmp_path) == {*drive.files, "celeba/img_align_celeba.zip"}


def test_photographs_without_their_list_are_not_replaced(drive, tmp_path):
    drive.put(tmp_path)
    (tmp_path / "celeba" / "list_eval_partition.txt").unlink()
    before = files_below(tmp_path)
    with pytest.raises(ValueError, match=r"img_align_celeba exists, but other files are missing: move it away\)"):
        load("celeba", data_dir=tmp_path)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("name", ["celeba"])
def test_google_drive_out_of_reach_is_reported_before_gdown_waits(name, offline, tmp_path, monkeypatch):
    fabricate(name, monkeypatch)
    gdown = types.ModuleType("gdown")
    gdown.__spec__ = types.SimpleNamespace(name="gdown")
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    with pytest.raises(ValueError, match=r"could not fetch them \(.*Temporary failure in name resolution"):
        load(name, data_dir=tmp_path)


def test_the_command_fetches_what_it_can_and_complains_of_the_rest(server, tmp_path, monkeypatch, capsys):
    serve("kmnist", server, monkeypatch)
    fabricate("svhn", monkeypatch, server.url)
    assert main(["svhn", "kmnist", "--data-dir", str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert out == f"kmnist: 7 train, 4 test, each 1 x 28 x 28; {tmp_path / 'KMNIST' / 'raw'}\n"
    sentences = [line for line in error.splitlines() if line.startswith("pyro_vae.data: error: ")]
    assert len(sentences) == 1
    assert "svhn: found no files in" in sentences[0]
    assert "HTTP Error 404" in sentences[0]
    shutil.rmtree(tmp_path / "KMNIST")
    assert main(["kmnist", "--data-dir", str(tmp_path)]) == 0
