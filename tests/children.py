"""Real processes that train, to be sent signals: forked from one that has imported everything, which takes seconds."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60  # seconds


def wait_for(condition: Callable[[], Any], pause: float = 0.002) -> Any:
    """What a condition gives as soon as it is true."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(pause)
    return found


class Child:
    """A forked process that runs the command."""

    def __init__(self, nursery: Nursery, pid: int, out: Path) -> None:
        self.nursery, self.pid, self.out = nursery, pid, out

    def send(self, number: int, group: bool = False) -> None:
        """Send a signal, to the process or to it and its workers."""
        (os.killpg if group else os.kill)(self.pid, number)

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        return self.nursery.ask({"wait": self.pid})

    @property
    def text(self) -> str:
        return self.out.read_text()


class Nursery:
    """The process that forks children."""

    def __enter__(self) -> Nursery:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.children"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.count = 0
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()

    def ask(self, question: dict[str, Any]) -> int:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, words: Sequence[str], folder: Path, **options: Any) -> Child:
        """Fork a process that trains.

        Args:
            words: Those of the command line.
            folder: Where its output goes.
            options: ``die=(function, call)``: kill itself in place of a call of a function of ``os``; ``patch``: values for
                names of modules; ``cwd``: a folder; ``env``: variables; ``call="module:function"``: what gets the words.
        """
        self.count += 1
        out = folder / f"out-{self.count}.txt"
        return Child(self, self.ask({"words": list(words), "out": str(out), **options}), out)


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    names = (
        "torch._dynamo",
        "sklearn.datasets",
        "pyro_vae.data.named.registry",
        "pyro_vae.runs.evaluation.summary",
        "pyro_vae.train",
        "arviz",
    )
    for name in names:
        importlib.import_module(name)
    from pyro_vae import report

    report.draw_pictures = lambda *args: []
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            print(os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            _train(question)


def _train(question: dict[str, Any]) -> None:
    code = 99
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in the background
        out = os.open(question["out"], os.O_CREAT | os.O_WRONLY)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(question.get("cwd", "."))
        os.environ.update(question.get("env", {}))
        for name, value in question.get("patch", {}).items():
            module, attribute = name.rsplit(".", 1)
            setattr(importlib.import_module(module), attribute, value)
        if "die" in question:
            _die_in(*question["die"])
        module, name = question.get("call", "pyro_vae.train:main").split(":")
        code = getattr(importlib.import_module(module), name)(question["words"])
        sys.stdout.flush()
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _die_in(name: str, call: int) -> None:
    function, calls = getattr(os, name), []

    def die(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    setattr(os, name, die)


if __name__ == "__main__":
    _serve()
