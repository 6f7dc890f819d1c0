"""The optimizers of ai.onnx.preview.training, one step each."""

from __future__ import annotations

import functools

import numpy as np

from xrt.kernels.host.registry import kernel
from xrt.kernels.portable import optimizers

kernel("ai.onnx.preview.training::Adagrad")(functools.partial(optimizers.adagrad, np))
kernel("ai.onnx.preview.training::Adam")(functools.partial(optimizers.adam, np))
kernel("ai.onnx.preview.training::Momentum")(functools.partial(optimizers.momentum, np))
