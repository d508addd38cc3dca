"""The Ray cluster a batch runs on: one that is there, or one started here for as long as the batch takes.

Nothing is sent to anybody: Ray's usage statistics are off before its first line runs, one started here
asks for a token, and keeps its files in a temporary folder that is removed. No process of it imports what
happens to lie in the current folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yonos_trt.atomic import scratch_directory
from yonos_trt.errors import ConfigError, MissingExtraError, YonosError
from yonos_trt.host import usable_cpus

_log = logging.getLogger(__name__)

_STARTS = 3
_ANSWER_S = 10  # of a machine that is there
_STORE_BYTES = 128 << 20  # names go through the object store, pictures do not
_LONGEST = 8  # of the temporary folder's path: names of sockets have at most 107 bytes
_MEMORY = 0.9  # of what Ray counts; the rest is for interpreters and libraries

_TOKEN = secrets.token_hex(32)  # Ray reads one once a process; its own would lie in the home folder

_OFF = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_DATA_USAGE_DISABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as later versions: no CUDA_VISIBLE_DEVICES for 0 GPUs
}


def import_ray() -> Any:
    """Return the module ``ray`` with ``ray.data`` loaded, and its usage statistics off.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    os.environ.update(_OFF)
    try:
        import ray
        import ray.data
    except ImportError as error:
        package = error.name if error.name in ("pyarrow", "pandas") else "ray"
        reason = None if isinstance(error, ModuleNotFoundError) and error.name == package else str(error)
        raise MissingExtraError("a batch on Ray", package=package, extra="ray", reason=reason) from error
    return ray


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Yield the module ``ray``, connected; what was started or connected here ends with the block.

    Parameters
    ----------
    address
        "auto" (the environment's ``RAY_ADDRESS``, else this machine's), ``ray://HOST:PORT`` or ``HOST:PORT``
        of a cluster that is there; None starts Ray on this machine, or stays where the process is connected
        already.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    ConfigError
        There is no cluster at the address.
    YonosError
        Ray does not start.
    """
    ray = import_ray()
    if ray.is_initialized():
        if address is not None:
            raise ConfigError(f"this process is connected to Ray already; leave the address {address!r} out")
        yield ray
        return
    if address == "auto":  # as Ray has it
        address = os.environ.get("RAY_ADDRESS") or address
    if (address or "").startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise MissingExtraError(f"the address {address}", package="grpc", extra="ray")
    if address not in (None, "auto"):
        _check_address(address)
    with contextlib.ExitStack() as stack:
        base = tempfile.gettempdir()
        if len(base) > _LONGEST and os.access("/tmp", os.W_OK):
            base = "/tmp"
        folder = stack.enter_context(scratch_directory(base))
        stack.callback(_emptied, folder)
        options: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
        if address is None or not address.startswith("ray://"):  # there, Ray leaves the folder out by itself
            options["job_config"] = _without_current_folder()
        if address is None:
            if not any(name.startswith("RAY_AUTH_") for name in os.environ):
                stack.enter_context(_environment(RAY_AUTH_MODE=None, RAY_AUTH_TOKEN=_TOKEN))
            stack.enter_context(_environment(PYTHONPATH=_absolute(os.environ.get("PYTHONPATH", ""))))
            options |= {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": usable_cpus(),
                "object_store_memory": _STORE_BYTES,
                "_temp_dir": str(folder),
            }
        else:
            options["address"] = address
            # tries, of 40 s each, to reach what answers and is no cluster; by itself 20
            stack.enter_context(_environment(RAY_gcs_server_port_wait_time_s="1"))
        stack.callback(ray.shutdown)
        with _signals_kept(), _without_reporter():
            _start(ray, options)
        _quieten()
        yield ray


@contextlib.contextmanager
def _without_reporter() -> Iterator[None]:
    """Start no server of Ray's dashboard, which without one only prepares the report of its use.

    For that it asks the addresses at which clouds answer what machine this is, also where reports are off.
    """
    from ray._private import services

    start = services.start_api_server
    services.start_api_server = lambda *_, **__: ("", None)
    try:
        yield
    finally:
        services.start_api_server = start


def _without_current_folder() -> Any:
    """Return the job's settings; with Ray's own, workers import from this process's current folder first."""
    from ray.job_config import JobConfig

    class Settings(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True  # what Ray asks before it adds the folders of script and process

    return Settings()


def _absolute(folders: str) -> str:
    """Return a ``PYTHONPATH`` without the entries that mean the current folder, or one below it."""
    return os.pathsep.join(entry for entry in folders.split(os.pathsep) if os.path.isabs(entry))


def _check_address(address: str) -> None:
    """Refuse what is no address, and one of nobody, for whom Ray would wait a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ConfigError(f"{address!r} is no address of Ray; expected auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise _nobody(address, error) from error


def _nobody(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"there is no Ray cluster at {address!r} ({one_line(error)}); start one, mend the address, or leave "
        "it out to run on this machine"
    )


def _start(ray: Any, options: dict[str, Any]) -> None:
    """Start Ray here, or connect; on a busy machine its processes may need a second try within Ray's 30 s."""
    address = options["address"]
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises plain ones
            # the client's server forks among threads of gRPC: what it forks may not live (Ray's issue 63202)
            forked = "Initialization failure from server" in str(error)
            if isinstance(error, (ConnectionError, ValueError)) and not forked:
                if address != "local":
                    raise _nobody(address, error) from error
                raise YonosError(f"Ray does not start on this machine ({one_line(error)})") from error
            ray.shutdown()
            if not (forked or address == "local") or attempt == _STARTS:
                does = "start on this machine" if address == "local" else f"connect to {address!r}"
                remedy = "; start it with GRPC_ENABLE_FORK_SUPPORT=0 in the environment" if forked else ""
                raise YonosError(f"Ray does not {does} ({one_line(error)}){remedy}") from error
            _log.info("Ray did not start (%s); trying again", one_line(error))


def _quieten() -> None:
    """Keep Ray's own log off stderr, which is the command's; its files are in the session's folder."""
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            if isinstance(handler, logging.StreamHandler):
                logger.removeHandler(handler)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def one_line(error: Exception) -> str:
    """Return what an error says, without the traceback that Ray puts into it."""
    before, traceback, after = str(error).partition("Traceback (most recent call last):")
    lines = [line for line in after.splitlines() if not line.startswith("  ")] if traceback else []
    return " ".join(" ".join([before, *lines]).split())[:300]


@contextlib.contextmanager
def _environment(**variables: str | None) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep what SIGTERM does to this process, which Ray changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _emptied(folder: Path) -> None:
    """Remove what Ray's processes leave, some of which write their last lines now."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------------
# Who gets how much


@dataclass(frozen=True, slots=True)
class Share:
    """How many workers there are, and what each gets of its node; `nodes` are those that can hold one."""

    workers: int
    cpus: int
    gpus: float
    memory_bytes: int
    nodes: tuple[str, ...]


def may_use_gpus(options: dict[str, Any]) -> bool:
    """Whether an `SR` with these options takes a GPU that is there."""
    providers = [name if isinstance(name, str) else name[0] for name in options.get("providers") or ()]
    on_gpu = options.get("runtime", "auto") in ("auto", "tensorrt", "tensorrt-rtx")
    return options.get("device", 0) >= 0 and (on_gpu or any(p != "CPUExecutionProvider" for p in providers))


def share_of(
    ray: Any,
    *,
    workers: int | None,
    cpus: int | None,
    gpus: float | None,
    memory_mb: int | None,
    on_gpu: bool,
) -> Share:
    """Divide the cluster.

    Parameters
    ----------
    workers
        None: as many as have a GPU share each; without GPUs one a node.
    cpus
        Of each worker; None: those of its node, divided among the node's workers.
    gpus
        Of each worker, parts too; None: 1 where the cluster has GPUs and `on_gpu`, else 0.
    memory_mb
        Host memory of each worker; None: as `cpus`.

    Raises
    ------
    ConfigError
        The cluster has no room for them.
    """
    alive = {
        node["NodeID"]: node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    }
    if gpus is None:
        gpus = 1.0 if on_gpu and any(r.get("GPU", 0) for r in alive.values()) else 0.0
    if gpus:
        alive = {node: r for node, r in alive.items() if r.get("GPU", 0) >= gpus}
    have = f"the cluster has {len(alive)} node{'s' * (len(alive) != 1)} for that"
    if not alive:
        raise ConfigError(
            f"a worker with {cpus or 1} CPUs and {gpus:g} GPUs fits no node of the cluster; ask for less "
            "with --threads or --gpus-per-worker"
        )
    most = {node: int(r["GPU"] / gpus) if gpus else int(r["CPU"]) for node, r in alive.items()}
    workers = workers or (sum(most.values()) if gpus else len(alive))
    each = -(-workers // len(alive))
    cpus = cpus or max(1, min(int(r["CPU"]) for r in alive.values()) // each)
    room = sum(min(most[node], int(r["CPU"]) // cpus) for node, r in alive.items())
    if workers > room:
        raise ConfigError(
            f"{workers} workers with {cpus} CPUs and {gpus:g} GPUs each were asked for, and {have} with "
            f"room for {room}; lower --workers, --threads or --gpus-per-worker"
        )
    free = min(int(r.get("memory", 0)) for r in alive.values())
    memory = (memory_mb << 20) if memory_mb else int(free / each * _MEMORY)
    return Share(workers, cpus, gpus, memory, tuple(sorted(alive)))
