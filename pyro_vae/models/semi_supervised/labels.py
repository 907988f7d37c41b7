"""Labels that are known for some data: their prior, their place in a guide, and the term that trains a classifier."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_vae.data.labels import check_labels
from pyro_vae.distributions.relaxed import LogRelaxedCategorical
from pyro_vae.parallel.shared_batch import batch_counts


class Labels(nn.Module):
    r"""A label of C classes, known for some data: :math:`p(y) = 1/C` and, where it is unknown, :math:`q(y|x)`.

    Labels of another kind, and numbers that are no class, are refused by a ``ValueError`` under Pyro's validation.

    Two sites, named as Pyro's ``obs_mask`` names them. ``y_observed`` is the label where it is known, and masked elsewhere.
    ``y_unobserved`` is drawn for all data: where the label is known nothing reads it, and the guide draws it from its
    prior, so that it enters with log p - log q = 0, in any objective and with its values summed over.

    Args:
        num_classes: C.
        weight: Of the classifier's own term, see :meth:`classified`.
        temperature: None: ``y_unobserved`` is a whole number, marked to be enumerated: ``elbo("enum")`` sums over it,
            ``trace`` and ``graph`` draw it, the other objectives refuse it. A number: in train mode it is a relaxed label
            instead, on both sides, which all but ``enum`` and ``piwae`` take. In eval mode the label is whole, and p(x)
            that of the model proper.

    Raises:
        ValueError: If a number is out of its range.
    """

    one_hot: Tensor
    prior: Tensor

    def __init__(self, num_classes: int, weight: float, temperature: float | None = None) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"classifier_weight: expected at least 0, got {weight}.")
        if temperature is not None and not temperature > 0:
            raise ValueError(
                f"temperature: expected a number above 0, got {temperature}; leave it out to enumerate labels."
            )
        self.num_classes, self.weight, self.temperature = num_classes, weight, temperature
        self.register_buffer("one_hot", torch.eye(num_classes), persistent=False)
        self.register_buffer("prior", torch.zeros(num_classes), persistent=False)

    def model(self, y: Tensor) -> Tensor:
        r"""Draw :math:`y \sim p(y)`, and observe what is known of it; for use within the data plate.

        Args:
            y: Labels, shape ``(B,)``, int64, -1 where unknown.

        Returns:
            The label of each datum as a one-hot vector, or a relaxed one, shape ``(..., B, C)``.
        """
        self._check(y)
        drawn = pyro.sample("y_unobserved", self._unobserved(self.prior))
        with poutine.mask(mask=y >= 0):
            given = pyro.sample("y_observed", dist.Categorical(logits=self.prior), obs=y.clamp(min=0))
        return self._chosen(y >= 0, given, drawn)

    def guide(self, y: Tensor, logits: Tensor) -> Tensor:
        r"""Draw :math:`y \sim q(y|x)` where it is unknown; for use within the data plate.

        Args:
            y: Labels, shape ``(B,)``, int64, -1 where unknown.
            logits: The classifier's output, shape ``(..., B, C)``.

        Returns:
            As :meth:`model`.
        """
        self._check(y)
        known = y >= 0
        free = self._unobserved(torch.where(known[:, None], self.prior, logits))
        drawn = pyro.sample("y_unobserved", free, infer={} if self.relaxed else {"enumerate": "parallel"})
        return self._chosen(known, y.clamp(min=0), drawn)

    def classified(self, y: Tensor, logits: Tensor) -> None:
        r"""Add :math:`\alpha\, \frac{B}{B_l} \sum_{i \text{ labelled}} \log q(y_i|x_i)` to the objective, and to no bound.

        Where the label is known the bound does not depend on q(y|x), which without this term would learn from unlabelled
        data alone. With the factor B / B_l (data to labelled data of the batch) a datum's share of the sum is
        :math:`\alpha` times the mean over labelled data, however few there are or often they come, if every batch has one
        (``labelled_per_batch`` of ``fit``): :math:`\alpha` is what Kingma et al. multiply by the number of data. For use in
        the model, within the data plate.

        Args:
            y: Labels, shape ``(B,)``, int64, -1 where unknown.
            logits: The classifier's output, shape ``(..., B, C)``.
        """
        self._check(y)
        if self.weight == 0:  # no factor of Pyro's may be 0
            return
        known = y >= 0
        size, labelled = batch_counts(known)
        scale = self.weight * size * labelled.clamp(min=1).reciprocal()
        with poutine.mask(mask=known), poutine.scale(scale=scale):
            fn = dist.Categorical(logits=logits)
            pyro.sample("y_classified", fn, obs=y.clamp(min=0), infer={"auxiliary_loss": True})

    @property
    def relaxed(self) -> bool:
        """Whether labels are relaxed at the moment."""
        return self.temperature is not None and self.training

    def _check(self, y: Tensor) -> None:
        """Refuse labels of another kind, and numbers that are no class, under Pyro's validation."""
        if is_validation_enabled():
            check_labels(y, self.num_classes, complete=False)

    def _unobserved(self, logits: Tensor) -> Any:
        if self.relaxed:
            temperature = self.prior.new_tensor(self.temperature)
            return LogRelaxedCategorical(temperature, logits=logits, validate_args=False)  # it has no support to check
        return dist.Categorical(logits=logits)

    def _chosen(self, known: Tensor, given: Tensor, drawn: Tensor) -> Tensor:
        """The label that is given where it is known, else what was drawn; as vectors."""
        vector = drawn.exp() if self.relaxed else self.one_hot[drawn]
        return torch.where(known[:, None], self.one_hot[given], vector)
