"""The TensorRT engine: clusters built by TensorRT, or by TensorRT-RTX where that is installed."""

from xrt.engines.tensorrt.engine import TensorRTEngine, tensorrt, tensorrt_rtx

__all__ = ["TensorRTEngine", "tensorrt", "tensorrt_rtx"]
