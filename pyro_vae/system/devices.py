"""The device of a run, and explanations of device errors."""

from __future__ import annotations

import os
import re
import warnings

import torch

from pyro_vae.errors import first_line

_LACKING = re.compile(
    r"\bMPS\b.*(not|n't).*(implement|support)|(not|n't).*(implement|support).*\bMPS\b"
    r"|_(mps|cuda)\W.*not implemented|Could not run .*'(MPS|CUDA)'",
    re.IGNORECASE,
)
_FAILING = re.compile(r"^(CUDA|HIP|MPS|cuDNN|cuBLAS|CUBLAS|CUDNN)\b.*\b(error|failed|failure)", re.IGNORECASE)
_FULL = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)


def resolve_device(text: str) -> tuple[torch.device, str]:
    """Return the device for a value of the flag ``--device``.

    Args:
        text: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. ``auto`` tries CUDA, MPS and CPU in this order, and
            selects the first device that works.

    Returns:
        The device, and its description, such as ``"cpu (no GPU: this torch is built without CUDA)"``.

    Raises:
        ValueError: If ``text`` has another form, or the device is missing or does not work.
    """
    if text == "cpu":
        return torch.device("cpu"), "cpu (as asked)"
    if text == "auto":
        return _best()
    if not re.fullmatch(r"cuda(:\d+)?|mps", text):
        raise ValueError(f"device: expected auto, cpu, cuda, cuda:N or mps, got {text!r}.")
    device = torch.device(text)
    if (reason := _missing(device)) is not None:
        raise ValueError(f"device: this machine has no device {text!r}: {reason}; use --device cpu.")
    if (reason := _broken(device)) is not None:
        raise ValueError(f"device: {text!r} does not work: {reason}; use --device cpu.")
    return device, _description(device)


def _best() -> tuple[torch.device, str]:
    reasons = []
    for device in (torch.device("cuda"), torch.device("mps")):
        reason = _missing(device)
        if reason is None and (failure := _broken(device)) is not None:
            reason = f"{device} does not work: {failure}"
        if reason is None:
            return device, _description(device)
        reasons.append(reason)
    # The reason for MPS is the useful one on a Mac, the reason for CUDA on other machines.
    return torch.device("cpu"), f"cpu (no GPU: {reasons[1] if torch.backends.mps.is_built() else reasons[0]})"


def _description(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else f"{device} (Apple GPU)"


def _missing(device: torch.device) -> str | None:
    """Return the reason why a device is missing; None if it exists."""
    if device.type == "mps":
        if torch.backends.mps.is_available():
            return None
        built = torch.backends.mps.is_built()
        return "no Metal device found" if built else "this torch is built without MPS, the backend of Apple GPUs"
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    with warnings.catch_warnings(record=True) as caught:  # torch only warns about a broken driver
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
        count = torch.cuda.device_count() if there else 0
    if not there:
        return _why_no_cuda([w.message for w in caught if isinstance(w.message, Warning)])
    if (device.index or 0) >= count:
        names = "one CUDA device, cuda:0" if count == 1 else f"{count} CUDA devices, cuda:0 to cuda:{count - 1}"
        return f"this machine has {names}"
    return None


def _why_no_cuda(caught: list[Warning]) -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and (hidden.strip() == "" or hidden.strip().startswith("-1")):
        return f"CUDA_VISIBLE_DEVICES={hidden} hides them all"
    if caught:
        return _torch_reason(caught[0])
    return "no CUDA device found" + (f" with CUDA_VISIBLE_DEVICES={hidden}" if hidden else "")


def _broken(device: torch.device) -> str | None:
    """Return the reason why a device fails; None if it works."""
    try:
        with warnings.catch_warnings(record=True):  # torch warns, for example, that a GPU is too old
            warnings.simplefilter("always")
            works = torch.ones(2, device=device).square().sum().item() == 2
    except (RuntimeError, AssertionError) as error:
        return _torch_reason(error)
    return None if works else "its sums are wrong"


def explain_device_error(error: BaseException) -> str | None:
    """Explain an error that the device caused, and name a remedy.

    Args:
        error: An error raised by training or evaluation.

    Returns:
        The explanation, one sentence; None if the device did not cause the error.
    """
    if not isinstance(error, (RuntimeError, TypeError, MemoryError)):
        return None
    text, line = str(error), _torch_reason(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _FULL.search(text):
        other = "" if isinstance(error, MemoryError) or "CPU" in text else ", or use --device cpu"
        return f"memory: not enough memory ({line}); train with a smaller --batch-size{other}."
    if _LACKING.search(text):
        return f"device: an operation is missing on this device: {line}; use --device cpu."
    if _FAILING.search(text):
        return f"device: the device does not work: {line}; use --device cpu."
    return None


def _torch_reason(error: BaseException) -> str:
    """Return the first sentence of torch's error message.

    The rest of the message is advice to torch's developers.
    """
    line = re.sub(r"^\[enforce fail at .*?\. ", "", first_line(error))
    return re.sub(r"(?<=[a-z0-9)'])\. .*", "", line).strip(" .")
