"""What losses with their settings fixed have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from jaxtyping import Array, Bool, Float, Num

from forestgaps_jax.fields import checked
from forestgaps_jax.loss.inputs import check_shapes, logits_from_probabilities, smooth_labels
from forestgaps_jax.settings import Rate

Loss = Callable[..., Float[Array, ""]]
"""A loss with its settings fixed: ``loss(logits, targets, *, valid=None, sample_weight=None)``, a scalar.

Those here are hashable, so that a compiled function can take them as static. They say what they need:
``target`` is ``"mask"`` or ``"chm"``; with ``needs_threshold`` they are called with ``threshold=``; with
``learns`` they are called with ``params=``, which ``init()`` starts and the optimizer trains; ``arguments``
names the settings that a compiled function takes as arguments (see `split_weights`)."""


Weight = float | Float[Array, ""]
"""A weight in a loss: a number, or a scalar of a compiled function."""


def check_settings(loss: Any, apart: tuple[str, ...] = ()) -> None:
    """Hold the fields of a loss to what their annotations allow; numbers become plain Python numbers.

    Args:
        loss: a frozen dataclass that is being made.
        apart: fields that the loss checks by itself.

    Raises:
        ValueError: a setting out of range; the error names it and says what is allowed.
        TypeError: a setting of another type.
    """
    for field in fields(loss):
        if field.name not in apart:
            value = checked(field.name, getattr(loss, field.name), field.type)
            object.__setattr__(loss, field.name, value)


@dataclass(frozen=True, kw_only=True)
class GapLoss(ABC):
    """A loss of predicted gaps against the gap mask.

    Attributes:
        from_logits: whether predictions are logits; False for probabilities, see
            `logits_from_probabilities`.
        label_smoothing: share by which the mask is moved towards one half, from 0 to below 1.

    Raises:
        ValueError: a setting out of range.
        TypeError: a setting of another type.
    """

    from_logits: bool = True
    label_smoothing: Rate = 0.0

    target: ClassVar[str] = "mask"
    learns: ClassVar[bool] = False
    arguments: ClassVar[tuple[str, ...]] = ()
    _checked_apart: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_settings(self, apart=self._checked_apart)

    @property
    def needs_threshold(self) -> bool:
        """Whether the loss is called with ``threshold=``."""
        return False

    def __call__(
        self,
        logits: Float[Array, "batch ..."],
        targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
        *,
        valid: Bool[Array, "batch ..."] | None = None,
        sample_weight: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        """The loss of a batch.

        Args:
            logits: any shape with the batch first; probabilities where ``from_logits`` is False.
            targets: 1 for gap, 0 for not; of the same shape.
            valid: pixels that count; None for all.
            sample_weight: factor on each sample's terms.

        Returns:
            A float32 scalar; 0 with zero gradient where no pixel is valid.

        Raises:
            ValueError: shapes differ, or a probability lies outside [0, 1].
        """
        logits, targets = self._prepared(logits, targets, valid)
        return self._value(logits, targets, valid=valid, sample_weight=sample_weight)

    def _prepared(self, logits: Array, targets: Array, valid: Array | None) -> tuple[Array, Array]:
        check_shapes(logits, targets, valid)
        if not self.from_logits:
            logits = logits_from_probabilities(logits, valid)
        return logits, smooth_labels(targets, self.label_smoothing) if self.label_smoothing else targets

    @abstractmethod
    def _value(self, logits: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        """The loss of logits; ``pixels`` are ``valid`` and ``sample_weight``."""
