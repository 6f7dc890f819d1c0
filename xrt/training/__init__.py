"""Training: forward pass, backward pass and update of a model as one executable."""

from xrt.training.compile import compile_training
from xrt.training.trainer import Trainer

__all__ = ["Trainer", "compile_training"]
