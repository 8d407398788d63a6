"""The networks that a self-supervised loss is computed with: student, predictor, and what gives the targets.

One harness for all losses, so that they can be compared: what differs between the methods is a line of `METHODS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from mce_llm.vision.models import MomentumTeacher, Predictor, Projector


@dataclass(frozen=True)
class Method:
    """What a loss is given.

    Attributes:
        predictor: Whether z is the prediction of a small network on the projection, or the projection itself.
        target: Where p comes from: `teacher`, the moving average of the student; `student`, its own projection, held
            constant (stop-gradient); `none`, there is no p.
    """

    predictor: bool
    target: str


METHODS = {
    "matrix_ssl": Method(predictor=True, target="teacher"),
    "mec": Method(predictor=True, target="teacher"),
    "sim_siam": Method(predictor=True, target="student"),
    "barlow_twins": Method(predictor=False, target="none"),
    "total_coding_rate": Method(predictor=False, target="none"),
}


class Encoded(NamedTuple):
    """What the student makes of two views of B images.

    Attributes:
        z1: (B, d) embeddings of the first view, predicted where the method has a predictor.
        z2: (B, d) of the second.
        projections: (2, B, d) before the predictor.
        features: (B, f) of the encoder for the first view, detached.
        logits: (B, classes) of the online classifier on them, or None without classes.
    """

    z1: Tensor
    z2: Tensor
    projections: tuple[Tensor, Tensor]
    features: Tensor
    logits: Tensor | None


class Student(nn.Module):
    """Encoder, projector, predictor, and a classifier that learns from detached features.

    The classifier is the online linear probe: it watches, and no gradient of it reaches the encoder. It is part of
    this module so that data parallelism keeps it the same in all processes.

    Args:
        encoder: Images (B, 3, H, W) to features (B, f).
        feature_width: f.
        method: What the loss is given.
        embedding_dim: d.
        projector_dim: Width of the projector's hidden layers.
        predictor_dim: Width of the predictor's bottleneck.
        classes: Classes of the online probe; 0 for none.
    """

    def __init__(
        self,
        encoder: nn.Module,
        feature_width: int,
        method: Method,
        *,
        embedding_dim: int,
        projector_dim: int,
        predictor_dim: int,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.online = nn.Sequential()  # what the teacher is the average of
        self.online.add_module("encoder", encoder)
        self.online.add_module("projector", Projector(feature_width, projector_dim, embedding_dim))
        self.predictor = Predictor(embedding_dim, predictor_dim) if method.predictor else None
        self.probe = nn.Linear(feature_width, classes) if classes else None

    @property
    def encoder(self) -> nn.Module:
        """The encoder, which is what pretraining is for."""
        return self.online.get_submodule("encoder")

    def forward(self, view1: Tensor, view2: Tensor) -> Encoded:
        """Encode two views; each goes through the network by itself, so that batch norms see one kind of view."""
        features = self.encoder(view1)
        projector = self.online.get_submodule("projector")
        first, second = projector(features), projector(self.encoder(view2))
        watched = features.detach()
        logits = self.probe(watched) if self.probe is not None else None
        if self.predictor is None:
            return Encoded(first, second, (first, second), watched, logits)
        return Encoded(self.predictor(first), self.predictor(second), (first, second), watched, logits)


def targets(
    method: Method, teacher: MomentumTeacher | None, encoded: Encoded, view1: Tensor, view2: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The constants p1 and p2 that the loss is given, (B, d) each, or None where the method has none."""
    if method.target == "teacher":
        assert teacher is not None
        return teacher(view1), teacher(view2)
    if method.target == "student":
        first, second = encoded.projections
        return first.detach(), second.detach()
    return None, None
