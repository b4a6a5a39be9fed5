"""What a GPU's memory gives: a large copy within it, timed by the GPU, through its driver alone."""

from __future__ import annotations

import ctypes
import statistics
from typing import Any

COPY_BYTES = 1 << 30
NUM_COPIES = 20
DRIVER = "libcuda.so.1"


class Driver:
    """Calls of CUDA's driver API on the first GPU; an error ends the program with its number."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self("cuInit", ctypes.c_uint(0))
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self("cuCtxSetCurrent", self._context)

    def __call__(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise SystemExit(f"{name}: error {code}")

    def allocate(self, num_bytes: int) -> ctypes.c_uint64:
        address = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        return address

    def event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
        return event

    def copy_ms(self, target: ctypes.c_uint64, source: ctypes.c_uint64, num_bytes: int) -> float:
        """Milliseconds of a copy on the device, as its events say."""
        begin, end, stream = self.event(), self.event(), ctypes.c_void_p(None)
        self("cuEventRecord", begin, stream)
        self("cuMemcpyDtoDAsync_v2", target, source, ctypes.c_size_t(num_bytes), stream)
        self("cuEventRecord", end, stream)
        self("cuEventSynchronize", end)
        ms = ctypes.c_float()
        self("cuEventElapsedTime", ctypes.byref(ms), begin, end)
        return ms.value


def measure_bandwidth(library: Any = None) -> float:
    """Bytes a second that copies read and write together: the median of some copies."""
    driver = Driver(ctypes.CDLL(DRIVER) if library is None else library)
    source, target = driver.allocate(COPY_BYTES), driver.allocate(COPY_BYTES)
    driver.copy_ms(target, source, COPY_BYTES)
    times = [driver.copy_ms(target, source, COPY_BYTES) for _ in range(NUM_COPIES)]
    for address in (source, target):
        driver("cuMemFree_v2", address)
    return 2e3 * COPY_BYTES / statistics.median(times)


if __name__ == "__main__":
    print(measure_bandwidth())
