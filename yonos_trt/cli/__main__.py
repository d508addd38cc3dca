"""``python -m yonos_trt.cli``: the same as the console script."""

from yonos_trt.console import yonos

yonos()
