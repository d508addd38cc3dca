"""Libraries that report their use to their makers, imported so that they do not.

Nothing of this project sends anything. ONNX Runtime and OpenVINO do by themselves (host names looked up, an
identifier kept in the home folder, a coloured warning where that cannot be written), unless they are stopped
before their first line runs: every import of theirs goes through here.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

_MISSING = object()


def import_onnxruntime() -> Any:
    """Return the module ``onnxruntime``, with its telemetry off.

    Raises
    ------
    ImportError
        It is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when the library is loaded
    module = importlib.import_module("onnxruntime")
    module.disable_telemetry_events()  # for a library that somebody else loaded before
    return module


def import_openvino() -> Any:
    """Return the module ``openvino``, which then does without its package ``openvino_telemetry``.

    Raises
    ------
    ImportError
        It is not installed.
    """
    if sys.modules.get("openvino") is not None:
        return sys.modules["openvino"]
    name = "openvino_telemetry"
    before = sys.modules.get(name, _MISSING)
    sys.modules[name] = None  # type: ignore[assignment]  # its import fails, OpenVINO takes its own stand-in
    try:
        return importlib.import_module("openvino")
    finally:
        if before is _MISSING:
            del sys.modules[name]
        else:
            sys.modules[name] = before  # type: ignore[assignment]
