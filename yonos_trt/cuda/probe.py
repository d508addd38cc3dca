"""Ask for the NVIDIA driver without ever hanging: libcuda is loaded and called in a child process.

Some CUDA libraries wait forever on a machine without a driver, and a broken driver can do so too, so nothing
of CUDA is touched in this process before `probe_driver` has said that devices answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

_TIMEOUT_S = 20.0

# Runs alone, isolated from site-packages. Attribute numbers: cuda.h, CUdevice_attribute.
_PROBE = r"""
import ctypes, json
out = {"version": None, "devices": [], "problem": ""}
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    out["problem"] = "no driver library: " + str(error)
else:
    version = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0:
        out["version"] = "%d.%d" % (version.value // 1000, version.value % 1000 // 10)
    code = cuda.cuInit(0)
    count = ctypes.c_int()
    if code or cuda.cuDeviceGetCount(ctypes.byref(count)):
        out["problem"] = "cuInit failed with CUDA error %d" % code
    for i in range(count.value):
        device, total, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
        major, minor = ctypes.c_int(), ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(device), i)
        cuda.cuDeviceGetName(name, 256, device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        capability = "%d.%d" % (major.value, minor.value)
        out["devices"].append([i, name.value.decode(errors="replace"), capability, total.value])
    if not count.value and not out["problem"]:
        out["problem"] = "the driver reports no device"
print(json.dumps(out))
"""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as the driver describes it."""

    index: int
    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class DriverFacts:
    """What the driver said: the CUDA version it supports, its devices, and why there are none."""

    version: str | None
    devices: tuple[Device, ...]
    problem: str


@cache
def probe_driver() -> DriverFacts:
    """Ask the driver once per process; never raises and never takes longer than 20 seconds."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _PROBE],
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return DriverFacts(None, (), f"the driver did not answer within {_TIMEOUT_S:.0f} s")
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        return DriverFacts(None, (), f"the probe of the driver failed: {error}")
    return DriverFacts(found["version"], tuple(Device(*d) for d in found["devices"]), found["problem"])
