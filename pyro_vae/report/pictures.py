"""The table of pictures: their conditions, and functions that draw them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from pyro_vae.data import Data, Split
from pyro_vae.errors import error_summary
from pyro_vae.evidence import Estimate
from pyro_vae.inference import History
from pyro_vae.models.protocol import (
    PyroModel,
    decodes,
    encodes,
    evaluation_inputs,
    evidence_name,
    loss_name,
    method_of,
    num_required_arguments,
    reconstructs,
    trained_on,
)
from pyro_vae.models.protocol import samples as can_sample
from pyro_vae.models.user_code import place_of_error, user_modules
from pyro_vae.report.figures.curves import curves
from pyro_vae.report.figures.encoded import Encoded, encode
from pyro_vae.report.figures.images import analogies, interpolations, plane, reconstructions, samples
from pyro_vae.report.figures.latents import latents
from pyro_vae.report.figures.log_px import log_px, worst
from pyro_vae.report.figures.tiles import has_known_labels, like_parameters
from pyro_vae.report.figures.tsne import MIN_POINTS, tsne
from pyro_vae.report.figures.units import traversals, units
from pyro_vae.report.picture_names import PICTURES
from pyro_vae.system.devices import explain_device_error
from pyro_vae.system.files import write_atomically
from pyro_vae.system.randomness import own_randomness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A trained model and its data: everything that a picture may show.

    Attributes:
        split: The data.
        source: Name of the data, such as ``test``.
        vae: The model. Its methods decide which pictures apply; None if only the estimate is shown.
        history: One row for each epoch.
        encoded: The encoded data; None if the model has no encoder.
        estimate: Estimate of log p(x) for each datum; None if there is none.
        evidence: Name of the estimated quantity, such as ``log p(x|y)``.
    """

    split: Split
    source: str
    vae: Any = None
    history: History = field(default_factory=History)
    encoded: Encoded | None = None
    estimate: Estimate | None = None
    evidence: str = "log p(x)"

    @property
    def images(self) -> bool:
        """True if data are images, ``(1, H, W)`` or ``(3, H, W)``."""
        return len(self.split.x.shape) == 4 and self.split.x.shape[1] in (1, 3)

    @property
    def decodes_z(self) -> bool:
        """True if the model has a ``decode`` that needs only z."""
        return num_required_arguments(method_of(self.vae, "decode")) == 1

    @property
    def samples(self) -> bool:
        """True if the model can draw samples."""
        return can_sample(self.vae) or (self.decodes_z and decodes(self.vae))

    @property
    def num_encoded(self) -> int:
        """Number of encoded data; 0 if the model has no encoder."""
        return 0 if self.encoded is None else len(self.split.x)

    @property
    def codes(self) -> Encoded:
        """The encoded data; fails if there are none."""
        assert self.encoded is not None
        return self.encoded

    @property
    def has_unit_kl(self) -> bool:
        """True if the KL of each latent unit is known."""
        return self.encoded is not None and self.encoded.unit_kl is not None

    @property
    def unit_kl(self) -> Tensor:
        """KL of each latent unit, shape ``(Z,)``, nats; fails if unknown."""
        assert self.codes.unit_kl is not None
        return self.codes.unit_kl

    @property
    def estimated(self) -> Estimate:
        """The estimate of log p(x); fails if there is none."""
        assert self.estimate is not None
        return self.estimate


@dataclass(frozen=True)
class Picture:
    """One row of the table of pictures.

    Attributes:
        applies: Function that returns True if a subject has everything that the picture needs.
        draw: Function that draws the picture of a subject.
    """

    applies: Callable[[Subject], bool]
    draw: Callable[[Subject], Figure]


TABLE = {
    "reconstructions": Picture(
        lambda s: s.images and reconstructs(s.vae), lambda s: reconstructions(s.vae, s.split, s.source)
    ),
    "samples": Picture(lambda s: s.images and s.samples, lambda s: samples(s.vae, s.split, s.source)),
    "interpolations": Picture(
        lambda s: s.images and s.decodes_z and s.encoded is not None,
        lambda s: interpolations(s.vae, s.split, s.source),
    ),
    "traversals": Picture(
        lambda s: s.images and s.decodes_z and s.has_unit_kl,
        lambda s: traversals(s.vae, s.split, s.unit_kl, s.source),
    ),
    "analogies": Picture(
        lambda s: s.images and method_of(s.vae, "analogies") is not None and has_known_labels(s.split),
        lambda s: analogies(s.vae, s.split, s.source),
    ),
    "curves": Picture(lambda s: len(s.history) > 0, lambda s: curves(s.history, trained_on(s.vae), loss_name(s.vae))),
    "latents": Picture(lambda s: s.num_encoded > 1, lambda s: latents(s.codes, s.source)),
    "units": Picture(lambda s: s.num_encoded > 1 and s.has_unit_kl, lambda s: units(s.codes, s.unit_kl, s.source)),
    "tsne": Picture(lambda s: s.num_encoded >= MIN_POINTS, lambda s: tsne(s.codes, s.split, s.source)),
    "log-px": Picture(
        lambda s: s.estimate is not None, lambda s: log_px(s.estimated, s.split, s.images, s.source, s.evidence)
    ),
    "worst": Picture(
        lambda s: s.images and s.estimate is not None, lambda s: worst(s.estimated, s.split, s.source, s.evidence)
    ),
    "grid": Picture(
        lambda s: s.images and s.decodes_z and decodes(s.vae) and getattr(s.vae, "latent_dim", None) == 2,
        lambda s: plane(s.vae),
    ),
}


def draw_pictures(
    vae: PyroModel, data: Data, history: History, directory: Path, seed: int = 0, estimate: Estimate | None = None
) -> list[Path]:
    """Draw the pictures that apply to a run, as PNG files.

    A picture applies if the model has the methods that the picture needs. Such methods are ``encode``, ``decode(z)``,
    ``prior`` or ``sample``, ``reconstruct``, and ``analogies`` (for data with some known labels). Pictures made of images
    need data of shape ``(1, H, W)`` or ``(3, H, W)``; they show pixels clipped to [0, 1]. ``traversals`` and ``units`` need
    q(z|x) and p(z) with independent units, because otherwise the KL is not a sum over units. ``curves`` needs an epoch of
    history. ``latents`` and ``units`` need two data, ``tsne`` needs ten. ``log-px`` needs an estimate, ``worst`` needs
    images and an estimate, ``grid`` needs images and a latent vector of size 2. If a method of a user's class fails, the
    picture is left out with a warning, and all other pictures are drawn.

    Args:
        vae: The model, on any device. Its mode (train or eval) is restored at the end.
        data: The data. Pictures show the test data, or the training data if there are no test data. If there are more than
            10,000 data, the pictures use 10,000 evenly spaced data.
        history: One row for each epoch.
        directory: Folder of the PNG files; made if it does not exist.
        seed: Seed of all draws, also of those that choose the images. The caller's generators are not changed.
        estimate: Estimate of log p(x) for the data shown, in the same order; None: no estimate is drawn.

    Returns:
        The files written, in the order of ``picture_names.PICTURES``. Each file is written whole or not at all.

    Raises:
        ValueError: If ``estimate`` has a different number of data.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    was_training = vae.training
    vae.eval()
    try:
        with torch.no_grad(), own_randomness(seed):
            subject = _subject(vae, data, history, estimate)
            files = [_draw(subject, name, directory) for name in PICTURES if TABLE[name].applies(subject)]
            return [path for path in files if path is not None]
    finally:
        vae.train(was_training)


def draw_estimate(split: Split, source: str, directory: Path, estimate: Estimate, name: str) -> list[Path]:
    """Draw the pictures of an estimate of log p(x): ``log-px`` and ``worst``.

    Args:
        split: The data.
        source: Name of the data, such as ``test``.
        directory: Folder of the PNG files.
        estimate: Estimate of log p(x) for the data, in the same order.
        name: Name of the estimated quantity, see :func:`pyro_vae.models.protocol.evidence_name`.

    Returns:
        The files written; ``worst.png`` is written only if the data are images.
    """
    subject = Subject(split, source, estimate=estimate, evidence=name)
    rows = ((file, TABLE[file]) for file in PICTURES)
    return [write_figure(directory / f"{file}.png", row.draw(subject)) for file, row in rows if row.applies(subject)]


def write_figure(path: Path, figure: Figure) -> Path:
    """Write a figure as a PNG file, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.12)
    write_atomically(path, buffer.getvalue())
    return path


def _subject(vae: PyroModel, data: Data, history: History, estimate: Estimate | None) -> Subject:
    split, source = (data.train, "training") if data.test is None else (data.test, "test")
    encoded = _attempt(vae, "codes", lambda: encode(vae, split)) if encodes(vae) else None
    evidence = "log p(x)"
    if estimate is not None:
        evidence = evidence_name(vae, like_parameters(vae, evaluation_inputs(vae, split)[:2]))
    return Subject(split, source, vae, history, encoded, estimate, evidence)


def _draw(subject: Subject, name: str, directory: Path) -> Path | None:
    path = directory / f"{name}.png"
    return _attempt(subject.vae, name, lambda: write_figure(path, TABLE[name].draw(subject)))


def _attempt(vae: PyroModel, name: str, make: Callable[[], T]) -> T | None:
    """Return ``make()``, or warn and return None if a user's class fails."""
    try:
        return make()
    except Exception as error:
        modules = user_modules(type(part).__module__ for part in vae.modules())
        if not modules or isinstance(error, OSError) or explain_device_error(error) is not None:
            raise
        place = place_of_error(error, modules)
        text = error_summary(error) + ("" if place is None else f" ({place})")
        warnings.warn(
            f"picture {name}: the model's class failed with {text}; fix the class. The other pictures are drawn.",
            stacklevel=4,
        )
        return None
