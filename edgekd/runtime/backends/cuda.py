"""The part of CUDA's driver that one session needs, through ctypes: boards have no CUDA package for Python.

*Not verified on hardware*: no NVIDIA GPU was at hand.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import DeviceError
from edgekd.runtime.measure.machine import power_mode

if TYPE_CHECKING:
    from edgekd.runtime.session import Array


#: What is written of a fact that a machine does not have.
ABSENT = "none"

_LIBRARY = "libcuda.so.1"
_NAME_BYTES = 256


class Gpu:
    """The first GPU, with its primary context, one stream, and memory. Close it.

    The primary context is the one that TensorRT, which uses CUDA's runtime library, works in as well.

    Attributes:
        name: The driver's name of it, e.g. "Orin".
        stream: The handle of the stream that :meth:`upload` and :meth:`download` use.

    Raises:
        DeviceError: there is no driver or no GPU, or it does not work.
    """

    def __init__(self) -> None:
        try:
            self._driver = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise DeviceError(f"this needs an NVIDIA GPU and its driver: {error}") from error
        self._call("cuInit", c_uint(0))
        count, device, context, stream = c_int(), c_int(), c_void_p(), c_void_p()
        self._call("cuDeviceGetCount", byref(count))
        if count.value == 0:
            raise DeviceError("this needs an NVIDIA GPU, and the driver finds none here")
        self._call("cuDeviceGet", byref(device), c_int(0))
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, c_int(_NAME_BYTES), device)
        self.name = name.value.decode(errors="replace")
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._device = device
        self._context: c_void_p | None = context
        self._memory: set[int] = set()
        self._events: list[c_void_p] = []
        self.activate()
        self._call("cuStreamCreate", byref(stream), c_uint(0))
        self.stream = stream.value or 0

    def activate(self) -> None:
        """Make the GPU current in this thread, which each thread needs for itself."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` bytes of device memory."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(max(size, 1)))  # CUDA refuses to allocate nothing
        self._memory.add(address.value)
        return address.value

    def upload(self, address: int, array: Array) -> None:
        """Start copying a contiguous array to the device; keep the array until :meth:`synchronize`."""
        self._copy("cuMemcpyHtoDAsync_v2", c_uint64(address), c_void_p(array.ctypes.data), array)

    def download(self, array: Array, address: int) -> None:
        """Start copying from the device into a contiguous array; it is filled after :meth:`synchronize`."""
        self._copy("cuMemcpyDtoHAsync_v2", c_void_p(array.ctypes.data), c_uint64(address), array)

    def synchronize(self) -> None:
        """Wait until the stream has done everything that it was given."""
        self._call("cuStreamSynchronize", c_void_p(self.stream))

    def mark(self, index: int) -> None:
        """Record the time at which the stream comes to this point; ``index`` 0 or 1 names the mark."""
        while len(self._events) <= index:
            event = c_void_p()
            self._call("cuEventCreate", byref(event), c_uint(0))
            self._events.append(event)
        self._call("cuEventRecord", self._events[index], c_void_p(self.stream))

    def between_ns(self) -> int:
        """Return the time in ns from mark 0 to mark 1, after :meth:`synchronize`; CUDA's resolution is 0.5 us."""
        ms = c_float()
        self._call("cuEventElapsedTime", byref(ms), self._events[0], self._events[1])
        return round(ms.value * 1e6)

    def close(self) -> None:
        """Free all memory, the events, the stream and the context."""
        if self._context is None:
            return
        self.activate()
        for event in self._events:
            self._call("cuEventDestroy_v2", event)
        self._events.clear()
        for address in self._memory:
            self._call("cuMemFree_v2", c_uint64(address))
        self._memory.clear()
        self._call("cuStreamDestroy_v2", c_void_p(self.stream))
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)
        self._context = None

    def _copy(self, function: str, to: object, source: object, array: Array) -> None:
        if not array.flags.c_contiguous:
            raise ValueError("only contiguous arrays are copied")
        if array.nbytes:
            self._call(function, to, source, c_size_t(array.nbytes), c_void_p(self.stream))

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._driver, function)(*arguments)
        if status:
            text = c_char_p()
            self._driver.cuGetErrorString(c_int(status), byref(text))
            reason = (text.value or b"unknown error").decode()
            raise DeviceError(f"the NVIDIA driver failed: {function}: {reason} ({status})")


def gpu_name() -> str:
    """Return the first GPU's name, or "none" where none works."""
    try:
        gpu = Gpu()
    except DeviceError:
        return ABSENT
    gpu.close()
    return gpu.name


def nvidia_facts() -> dict[str, str]:
    """Return the GPU's name, the release of its system or driver, and a Jetson's power mode; "none" for what is absent.

    Together with the processor these decide what an engine on the GPU does, and how fast.
    """
    release = _first_line(Path("/etc/nv_tegra_release")) or _first_line(Path("/proc/driver/nvidia/version"))
    return {"gpu": gpu_name(), "system": release or ABSENT, "power_mode": power_mode() or ABSENT}


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""
