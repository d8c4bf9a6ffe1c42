"""What a distillation loss is: one object with all that is to be known of it.

Recipe checks, the recipe's schema and its help are derived from these objects. This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

LossKind = Literal["logits", "embeddings", "maps", "pairs", "gram"]


class LossOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a loss's options: a field each, with its type, its default and a description.

    A subclass is written ``class MyOptions(LossOptions, frozen=True): delta: float = 1.0``. Limits and descriptions are
    given as in any recipe section: ``delta: Annotated[float, msgspec.Meta(gt=0, description="...")] = 1.0``.
    """


@dataclass(frozen=True)
class Loss:
    """A loss that a recipe can add to cross entropy and KD.

    Which samples lack a modality is taken care of: ``function`` is given those that have it, two at least.

    Attributes:
        name: Name by which recipes call it.
        kind: What ``function`` is called with, beside its options:

            - ``"logits"``: ``(student [B, C], teacher [B, C], labels [B])``, once a batch. An option ``temperature``
              that is None becomes the ``temperature`` of the recipe's loss.
            - ``"embeddings"``: ``(student [B, D], teacher [B, D'])`` of one modality. The loss is the mean over
              modalities and teachers.
            - ``"maps"``: the same with feature maps ``[B, C, N]``, whose modules the recipe names in the tables
              ``student`` and ``teacher``; N counts all positions.
            - ``"pairs"``: ``((student [B, D], student [B, D]), (teacher [B, D'], teacher [B, D']))`` of two modalities.
              The loss is the mean over pairs and teachers.
            - ``"gram"``: ``(student, teachers, present, pairs)``, once a batch: for each modality ``[B, D]``, the same
              of each teacher, a mask ``[B, M]`` of the modalities that samples have (None where all have all), and the
              pairs ``"a-b"`` to compare (empty for all).
        function: Returns the loss as a scalar tensor with a gradient; options are passed as keyword arguments.
        options: The options that it takes beside those that every loss has.
        summary: What it does, in one line.
        projection: For embeddings and maps: makes, of the student's and the teacher's width, a module that is learned
            with the student and applied to its side; None where the function compares any widths.
        between: Whether it compares modalities with each other: then the embeddings of one network must share a width,
            and the recipe may choose ``pairs``.
        least_modalities: The fewest modalities that it can be computed of.
    """

    name: str
    kind: LossKind
    function: Callable[..., Tensor]
    options: type[LossOptions] = LossOptions
    summary: str = ""
    projection: Callable[[int, int], nn.Module] | None = None
    between: bool = False
    least_modalities: int = 1
