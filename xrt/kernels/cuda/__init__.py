"""CUDA for the engines and the runtime, through NVIDIA's cuda-core, on the primary context.

    device      which GPU there is, or why none; the packages; free memory
    streams     the streams of a thread, and streams of other libraries
    array       device arrays, shared with torch, JAX, CuPy and pycuda without a copy
    staging     pinned memory, and NumPy arrays on their way to the device and back
    graph       work that was captured once, launched again as one
    source      CUDA sources, compiled at run time
    custom      kernels of users

Importing this package imports neither cuda-core nor a driver: the first use does.
"""
