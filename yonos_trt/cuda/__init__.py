"""CUDA without a CUDA package: the driver through ctypes, device arrays in and out, our tile kernels.

Nothing here touches a driver on import, and `yonos_trt.cuda.probe` looks for one without risking a hang.
"""
