"""A toy transform that no norm takes in: a random rotation, kept in front of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.transforms.base import Group, Transform


@dataclass(frozen=True)
class Rotation:
    """x' = x R for an orthogonal R [in, in], float64."""

    matrix: Tensor

    def inputs(self, x: Tensor) -> Tensor:
        return (x.double() @ self.matrix).to(x.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        return (weight.double() @ self.matrix.to(weight.device)).to(weight.dtype)

    def hessian(self, matrix: Tensor) -> Tensor:
        rotated = self.matrix.T.to(matrix.device) @ matrix.double() @ self.matrix.to(matrix.device)
        return rotated.to(matrix.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}


def change(group: Group, _options: object) -> Rotation:
    """The same rotation for every group of so many inputs."""
    inputs = group.hessian.shape[0]
    random = torch.randn(inputs, inputs, generator=torch.Generator().manual_seed(inputs)).double()
    return Rotation(torch.linalg.qr(random).Q)


def rebuild(tensors: Mapping[str, Tensor]) -> Rotation:
    return Rotation(tensors["matrix"])


def keep(_options: object) -> str:
    return "always"


def kept_bytes(inputs: int) -> int:
    return 8 * inputs**2


TRANSFORM = Transform(
    "rotate", "rotated", change, rebuild=rebuild, keep=keep, kept_bytes=kept_bytes
)
