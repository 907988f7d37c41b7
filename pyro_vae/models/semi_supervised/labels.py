"""Partly known labels: their prior, their guide and the classifier's term."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_vae.data.labels import check_labels
from pyro_vae.distributions.relaxed import LogRelaxedCategorical
from pyro_vae.parallel.shared_batch import batch_counts


class Labels(nn.Module):
    r"""A label y, one of C classes, known for some data.

    The prior is :math:`p(y) = 1/C`; the guide of an unknown label is :math:`q(y|x)`. The label has two sites, with the names
    that Pyro's ``obs_mask`` would choose. The site ``y_observed`` observes the known labels, and is masked for all other data.
    The site ``y_unobserved`` is drawn for all data. For a datum with a known label the draw is not used, and the guide draws
    from the prior: the site then adds log p - log q = 0 to every objective, even to an objective that sums over the values of
    y. If Pyro's validation is on, a label with another dtype or out of range raises a ``ValueError``.

    Args:
        num_classes: Number C of classes.
        weight: Weight alpha of the classifier's term, at least 0; see :meth:`classified`.
        temperature: None: ``y_unobserved`` is discrete and marked for enumeration. Then ``elbo("enum")`` sums over its
            values, ``trace`` and ``graph`` draw it, and other objectives refuse the model. A positive number: in train mode,
            both model and guide relax the label, and all objectives except ``enum`` and ``piwae`` take the model. In eval
            mode the label is discrete.

    Raises:
        ValueError: If ``weight`` is negative, or ``temperature`` is not positive.
    """

    one_hot: Tensor
    prior: Tensor

    def __init__(self, num_classes: int, weight: float, temperature: float | None = None) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"classifier_weight: expected at least 0, got {weight}.")
        if temperature is not None and not temperature > 0:
            raise ValueError(
                f"temperature: expected a number above 0, got {temperature}; omit temperature to enumerate labels."
            )
        self.num_classes, self.weight, self.temperature = num_classes, weight, temperature
        self.register_buffer("one_hot", torch.eye(num_classes), persistent=False)
        self.register_buffer("prior", torch.zeros(num_classes), persistent=False)

    def model(self, y: Tensor) -> Tensor:
        r"""Draw unknown labels from p(y) and observe known labels.

        Call this method within the data plate.

        Args:
            y: Labels, shape ``(B,)``, int64, -1 where unknown.

        Returns:
            The label of each datum as a one-hot or relaxed vector, shape ``(..., B, C)``.
        """
        self._check(y)
        drawn = pyro.sample("y_unobserved", self._unobserved(self.prior))
        with poutine.mask(mask=y >= 0):
            given = pyro.sample("y_observed", dist.Categorical(logits=self.prior), obs=y.clamp(min=0))
        return self._chosen(y >= 0, given, drawn)

    def guide(self, y: Tensor, logits: Tensor) -> Tensor:
        r"""Draw the unknown labels from q(y|x).

        Call this method within the data plate.

        Args:
            y: Labels, shape ``(B,)``, int64, -1 where unknown.
            logits: The classifier's output, shape ``(..., B, C)``.

        Returns:
            The label of each datum, a one-hot or relaxed vector, shape ``(..., B, C)``.
        """
        self._check(y)
        known = y >= 0
        free = self._unobserved(torch.where(known[:, None], self.prior, logits))
        drawn = pyro.sample("y_unobserved", free, infer={} if self.relaxed else {"enumerate": "parallel"})
        return self._chosen(known, y.clamp(min=0), drawn)

    def classified(self, y: Tensor, logits: Tensor) -> None:
        r"""Add the classifier's term to the training objective.

        The term covers the labelled data and is not part of the bound:

        .. math:: \alpha\, \frac{B}{B_l} \textstyle\sum_{i \text{ labelled}} \log q(y_i|x_i)

        The bound of a labelled datum does not depend on q(y|x): without this term the classifier would learn from unlabelled
        data alone. The batch has B data, and :math:`B_l` of them have labels. Thanks to the factor
        :math:`B / B_l`, the term per datum is :math:`\alpha` times the mean of log q over the labelled data, for any number
        of labelled data; every batch needs at least one labelled datum (``labelled_per_batch`` of ``fit``). Kingma et al.
        multiply :math:`\alpha` by the number of data instead. Call this method in the model, within the data plate.

        Args:
            y: Labels, shape ``(B,)``, int64, -1 where unknown.
            logits: The classifier's output, shape ``(..., B, C)``.
        """
        self._check(y)
        if self.weight == 0:  # Pyro allows no scale of 0
            return
        known = y >= 0
        size, labelled = batch_counts(known)
        scale = self.weight * size * labelled.clamp(min=1).reciprocal()
        with poutine.mask(mask=known), poutine.scale(scale=scale):
            fn = dist.Categorical(logits=logits)
            pyro.sample("y_classified", fn, obs=y.clamp(min=0), infer={"auxiliary_loss": True})

    @property
    def relaxed(self) -> bool:
        """True if labels are relaxed in the current mode."""
        return self.temperature is not None and self.training

    def _check(self, y: Tensor) -> None:
        """If Pyro's validation is on, check the labels' dtype and range."""
        if is_validation_enabled():
            check_labels(y, self.num_classes, complete=False)

    def _unobserved(self, logits: Tensor) -> TorchDistributionMixin:
        if self.relaxed:
            temperature = self.prior.new_tensor(self.temperature)
            return LogRelaxedCategorical(temperature, logits=logits, validate_args=False)  # no support to check
        return dist.Categorical(logits=logits)

    def _chosen(self, known: Tensor, given: Tensor, drawn: Tensor) -> Tensor:
        """Return label vectors in which drawn labels replace the unknown labels."""
        vector = drawn.exp() if self.relaxed else self.one_hot[drawn]
        return torch.where(known[:, None], self.one_hot[given], vector)
