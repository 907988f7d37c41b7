"""Which device and why, what a device that gives way means, and that nothing needs float64 off the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

import pyro_vae as pv
from pyro_vae import evaluate, report, train
from pyro_vae.inference.svi.svi import SVI
from pyro_vae.inference.training.validation import evaluate_terms
from pyro_vae.inference.weights.log_weights import ProposalDraws
from pyro_vae.runs.evaluation import summary
from pyro_vae.system import devices as machine
from pyro_vae.system.randomness import own_randomness
from tests import apple
from tests.children import ROOT

SMALL = "--latent-dim 2 --hidden 8 --num-samples 30 --threads 1 --batch-size 100 --epochs 2".split()
NO_FLOAT64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use float32."
)
NO_OPERATION = (
    "The operator 'aten::_standard_gamma' is not currently implemented for the MPS device. If you want this op to be "
    "considered for addition please comment on https://github.com/pytorch/pytorch/issues/141287\nand mention use-case"
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """--threads sets torch's own count: give it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Which device.


def machine_with(monkeypatch, *, cuda: str | None = "13.2", devices: int = 0, mps: bool = False) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fictive 100")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: mps)
    monkeypatch.setattr(machine, "_broken", lambda device: None)


@pytest.mark.parametrize(
    ("has", "device", "words"),
    [
        ({"cuda": None}, "cpu", "cpu (no GPU: this torch is built without CUDA)"),
        ({}, "cpu", "cpu (no GPU: no CUDA device found)"),
        ({"devices": 2}, "cuda", "cuda (Fictive 100)"),
        ({"cuda": None, "mps": True}, "mps", "mps (Apple GPU)"),
        ({"devices": 1, "mps": True}, "cuda", "cuda (Fictive 100)"),
    ],
)
def test_auto_takes_the_gpu_that_is_there_and_says_why_not(monkeypatch, has, device, words):
    machine_with(monkeypatch, **has)
    assert machine.resolve_device("auto") == (torch.device(device), words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "CUDA_VISIBLE_DEVICES= hides them all"),
        ("-1", "CUDA_VISIBLE_DEVICES=-1 hides them all"),
        ("5", "no CUDA device found with CUDA_VISIBLE_DEVICES=5"),
    ],
)
def test_hidden_devices_are_named_as_such(monkeypatch, value, words):
    machine_with(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert machine.resolve_device("auto")[1] == f"cpu (no GPU: {words})"
    with pytest.raises(ValueError, match=words):
        machine.resolve_device("cuda")


def test_the_warning_of_a_broken_driver_becomes_the_reason(monkeypatch):
    def unavailable() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
            "driver by downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx",
            UserWarning,
            stacklevel=2,
        )
        return False

    machine_with(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    expected = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)"
    assert machine.resolve_device("auto")[1] == f"cpu (no GPU: {expected})"


def test_a_device_that_does_not_work_is_passed_over_or_refused(monkeypatch):
    def failing(*args, **kwargs):
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might"
        )

    broken = machine._broken
    machine_with(monkeypatch, devices=1)
    monkeypatch.setattr(machine, "_broken", broken)
    monkeypatch.setattr(torch, "ones", failing)
    reason = "CUDA error: no kernel image is available for execution on the device"
    device, words = machine.resolve_device("auto")
    assert (device.type, words) == ("cpu", f"cpu (no GPU: cuda does not work: {reason})")
    with pytest.raises(ValueError, match=f"'cuda' does not work: {reason}; use --device cpu"):
        machine.resolve_device("cuda")


@pytest.mark.parametrize(
    ("text", "devices", "how"),
    [
        ("cuda:7", 2, "this machine has 2 CUDA devices, cuda:0 to cuda:1; use --device cpu."),
        ("cuda:1", 1, "this machine has one CUDA device, cuda:0; use --device cpu."),
        ("cuda", 0, "no CUDA device found; use --device cpu."),
        ("mps", 2, "this torch is built without MPS, the backend of Apple GPUs; use --device cpu."),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_what_is(monkeypatch, text, devices, how):
    machine_with(monkeypatch, devices=devices)
    expected = f"device: this machine has no device {text!r}: {how}"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        machine.resolve_device(text)


@pytest.mark.parametrize("text", ["tpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:1", "", "gpu"])
def test_an_unknown_name_of_a_device_is_refused(text):
    with pytest.raises(ValueError, match="expected auto, cpu, cuda, cuda:N or mps, got"):
        machine.resolve_device(text)


def test_a_device_that_is_there_is_taken_as_asked(monkeypatch):
    machine_with(monkeypatch, devices=2)
    assert machine.resolve_device("cuda:1") == (torch.device("cuda:1"), "cuda:1 (Fictive 100)")
    assert machine.resolve_device("cpu") == (torch.device("cpu"), "cpu (as asked)")


def test_every_device_of_this_machine_works_or_says_why_not():
    for text in ("auto", "cpu"):
        device, words = machine.resolve_device(text)
        assert torch.ones(3, device=device).sum().item() == 3
        assert device.type in words


# What a device's errors mean.

ERRORS = [
    (
        NotImplementedError(NO_OPERATION),
        "_standard_gamma' is not currently implemented for the MPS device",
        "--device cpu",
    ),
    (TypeError(NO_FLOAT64), "MPS framework doesn't support float64", "--device cpu"),
    (RuntimeError("MPS does not support cumsum op with int64 input"), "cumsum", "--device cpu"),
    (RuntimeError("\"sum_mps\" not implemented for 'Double'"), "sum_mps", "--device cpu"),
    (NotImplementedError("Could not run 'aten::qr' with arguments from the 'MPS' backend. This"), "qr", "--device cpu"),
    (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel"), "illegal", "--device cpu"),
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
        "out of memory",
        "--batch-size",
    ),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)."), "out of memory", "--device cpu"),
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        "DefaultCPUAllocator: can't allocate memory",
        "--batch-size.",
    ),
    (MemoryError(), "MemoryError", "--batch-size."),
]


@pytest.mark.parametrize(("error", "what", "how"), ERRORS, ids=[str(row[0])[:30] for row in ERRORS])
def test_an_error_of_the_device_becomes_a_sentence(error, what, how):
    said = machine.explain_device_error(error)
    assert said is not None
    assert what in said
    assert how in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        TypeError("unsupported operand type(s) for +: 'int' and 'str'"),
        NotImplementedError("_particle"),
        ValueError(NO_OPERATION),
        KeyError("MPS device not implemented"),
    ],
)
def test_other_errors_are_left_alone(error):
    assert machine.explain_device_error(error) is None


def raising(monkeypatch, error: Exception, at_step: int = 1) -> None:
    step, calls = SVI.step_terms, []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == at_step:
            raise error
        return step(self, *args)

    monkeypatch.setattr(SVI, "step_terms", failing)


@pytest.mark.parametrize(("at_step", "code", "kept"), [(1, 2, "no checkpoint"), (20, 1, "--resume")])
@pytest.mark.parametrize("error", [row[0] for row in ERRORS[:3]])
def test_training_on_a_device_that_gives_way_ends_with_a_sentence(
    tmp_path, monkeypatch, capsys, error, at_step, code, kept
):
    raising(monkeypatch, error, at_step)
    words = [*SMALL, "--device", "cpu", "--quiet", "--run-dir", str(tmp_path / "run")]
    assert train.main(words) == code
    said = capsys.readouterr().err
    assert said.startswith("pyro_vae.train: error: device: an operation is missing on this device: ")
    assert "use --device cpu." in said
    assert kept in said
    assert said.count("\n") == 1
    assert (tmp_path / "run" / "checkpoint.pt").exists() == (code == 1)


def test_a_mistake_of_ours_is_not_dressed_up_as_the_devices(tmp_path, monkeypatch):
    raising(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train.main([*SMALL, "--device", "cpu", "--quiet", "--run-dir", str(tmp_path / "run")])


def test_a_device_that_gives_way_before_anything_is_written(tmp_path, monkeypatch, capsys):
    def failing(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(pv.VAE, "to", failing)
    assert train.main([*SMALL, "--device", "cpu", "--run-dir", str(tmp_path / "run")]) == 2
    assert (
        "not enough memory (CUDA out of memory); train with a smaller --batch-size, or use --device cpu."
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_a_full_device_is_no_reason_to_draw_one_by_one(monkeypatch):
    def full(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    vae = pv.VAE((3,), latent_dim=2, hidden=(4,))
    monkeypatch.setattr(ProposalDraws, "_draw", full)
    with pytest.raises(torch.OutOfMemoryError):
        pv.log_weights(vae.model, vae.guide, torch.ones(5, 3), num_samples=3)


# A device without float64: an Apple GPU, played.


def test_the_played_device_refuses_what_apples_would():
    with apple.Apple():
        x = torch.ones(2, 3).to("mps")
        assert x.device.type == (x + 1).device.type == "mps"
        assert x.cpu().double().device.type == torch.ones(2).device.type == "cpu"
        for wrong in (x.double, lambda: x.to(torch.float64), lambda: torch.zeros(2, dtype=torch.float64, device="mps")):
            with pytest.raises(TypeError, match="float64"):
                wrong()
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2, 3)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


@pytest.fixture
def played(monkeypatch) -> Iterator[apple.Apple]:
    monkeypatch.setattr(torch, "Generator", apple.Generator)
    monkeypatch.setattr(machine, "_missing", lambda device: None if device.type == "mps" else "not in this play")
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # what torch imports at its first optimizer is no part of it
    with apple.Apple() as mode:
        yield mode


@pytest.mark.parametrize("beta", [1.0, 4.0, pv.schedules.linear(0.0, 1.0, steps=5)])
@pytest.mark.parametrize("objective", ["trace", "mean-field"])
def test_training_validation_and_evidence_need_no_float64(played, objective, beta):
    x = (torch.arange(60.0).reshape(20, 3).sin() > 0).float().to("mps")
    vae = pv.VAE((3,), latent_dim=2, hidden=(4,)).to("mps")
    data = pv.data.Data("three pixels", pv.data.Split(x), pv.data.Split(x[:8]), pv.data.Split(x[:6]))
    history = pv.fit(vae, data, elbo=objective, beta=beta, epochs=2, batch_size=8, clip_norm=1.0, progress=False)
    assert len(history) == 2
    assert {p.device.type for p in vae.parameters()} == {"mps"}
    likelihood, ratio = evaluate_terms(vae, x, seed=1)
    estimate = pv.evidence.importance_sampling(vae.model, vae.guide, x, num_samples=30)
    for result in (likelihood, ratio, estimate.log_px, estimate.std_error, estimate.elbo):
        assert (result.dtype, result.device.type) == (torch.float64, "cpu")
    assert 0 <= summary.latent_figures(vae, x)["active_units"] <= 2
    pair = pv.handlers.scale_kl_pair(vae.model, vae.guide, torch.tensor(2.0, device="mps"))
    assert pv.log_weights(*pair, x, num_samples=2).device.type == "mps"
    assert pv.elbo(objective).bound(*pair, x).shape == (20,)
    assert torch.float32 in played.dtypes
    assert torch.float64 not in played.dtypes


@pytest.mark.parametrize(
    "words",
    [
        "",
        pytest.param("--likelihood continuous-bernoulli", marks=pytest.mark.slow),
        pytest.param("--likelihood normal --clip-norm 1", marks=pytest.mark.slow),
    ],
)
def test_both_commands_run_where_there_is_no_float64(played, tmp_path, monkeypatch, capsys, words):
    folder = tmp_path / "run"
    if words:  # the pictures take the longest, and are the same
        monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    assert train.main([*SMALL, "--run-dir", str(folder), *words.split()]) == 0, capsys.readouterr().err
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    assert "device mps (Apple GPU)," in capsys.readouterr().out.splitlines()[0]
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["device"] == "mps"
    assert (folder / "grid.png").exists() == (words == "")
    assert train.main(["--resume", str(folder), "--epochs", "3", "--threads", "1"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert evaluate.main([str(folder), "--num-samples", "25", "--threads", "1"]) == 0
    assert "device mps (Apple GPU)," in capsys.readouterr().out.splitlines()[0]
    # And what was trained there is evaluated here.
    assert evaluate.main([str(folder), "--device", "cpu", "--quiet", "--threads", "1"]) == 0


def test_the_generator_of_an_apple_gpu_is_put_back(monkeypatch):
    state = [torch.zeros(3)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", state.append)
    with own_randomness():
        state.append(torch.ones(3))
    assert torch.equal(state[-1], torch.zeros(3))


def test_the_first_line_names_the_device(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    assert train.main([*SMALL, "--epochs", "1", "--run-dir", str(tmp_path / "run")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert f"device {machine.resolve_device('auto')[1]}, 1 threads" in first


# A system without what POSIX has.

WITHOUT_POSIX = """
import os, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for module, names in ((os, ("fork", "O_DIRECTORY", "sched_getaffinity", "mkfifo")),
                      (signal, ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
from pyro_vae import evaluate, report, train
report.draw_pictures = lambda *args: []
words = sys.argv[1:]
codes = [train.main(words), train.main(["--resume", "run", "--epochs", "3", "--quiet"]), evaluate.main(["run"])]
sys.exit(codes != [0, 0, 0])
"""


@pytest.mark.slow
def test_both_commands_use_nothing_that_only_posix_has(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_POSIX, *SMALL, "--run-dir", "run", "--device", "cpu"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr.decode()
    assert json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["epochs"] == 3
