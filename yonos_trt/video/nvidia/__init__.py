"""NVIDIA's codecs: NVDEC and NVENC, in device memory."""
