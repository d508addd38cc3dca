"""The module `tensorrt` or `tensorrt_rtx`, imported late, with its log lines in ours."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from yonos_trt.choices import TENSORRT_MODULES
from yonos_trt.errors import EngineDeviceError, MissingExtraError

_log = logging.getLogger(__name__)


class TensorRT:
    """The module, its logger and its run time.

    Parameters
    ----------
    runtime
        "tensorrt" or "tensorrt-rtx".
    module
        The module itself, instead of importing it.

    Raises
    ------
    MissingExtraError
        It cannot be imported; the message names the pip command.
    """

    def __init__(self, runtime: str, *, module: Any = None) -> None:
        self.runtime = runtime
        if module is None:
            name, extra = TENSORRT_MODULES[runtime]
            try:
                module = importlib.import_module(name)
            except (ImportError, OSError) as error:
                raise MissingExtraError(
                    f"the runtime {runtime!r}", package=name, extra=extra, reason=str(error)
                ) from error
        self.module = module
        self.is_rtx = runtime == "tensorrt-rtx"
        self.version = str(module.__version__)
        self.messages: list[str] = []
        self.logger = _make_logger(module, self.messages)
        self._opened: Any = None

    @property
    def opened(self) -> Any:
        """The `Runtime` object, made at first use."""
        if self._opened is None:
            self._opened = self.module.Runtime(self.logger)
            if self._opened is None:
                raise EngineDeviceError(f"{self.runtime} {self.version} cannot start: {self.last_words()}")
        return self._opened

    def last_words(self) -> str:
        """What TensorRT last complained about."""
        return self.messages[-1] if self.messages else "it does not say why"


def _make_logger(module: Any, messages: list[str]) -> Any:
    severity = module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
    }

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, level: Any, text: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                messages.append(text.strip())
                del messages[:-20]
            _log.log(levels.get(level, logging.NOTSET), "%s", text)

    return Logger()
