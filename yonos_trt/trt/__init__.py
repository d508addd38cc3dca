"""The data path on TensorRT and TensorRT-RTX: `yonos_trt.trt.backend.TrtBackend` and its parts.

Importing the parts loads NumPy only; the TensorRT package is loaded when an engine is opened.
"""
