"""Quantization: observers of ranges, and calibration by them."""

from xrt.quantization.calibration import Calibration, data_digest
from xrt.quantization.observers import OBSERVERS, Observer, make_observer

__all__ = ["OBSERVERS", "Calibration", "Observer", "data_digest", "make_observer"]
