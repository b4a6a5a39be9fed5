"""The emulated GPU in this process: what it is to be, and what it counted."""

from __future__ import annotations

import ctypes
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build" / "cuda" / "libforerun_cuda_emulated.so"
VARIABLE = "FORERUN_CUDA_LIBRARY"


class EmulatedGpu:
    """Controls of the library that FORERUN_CUDA_LIBRARY opens, which is loaded once a process."""

    def __init__(self) -> None:
        library = ctypes.CDLL(str(LIBRARY))
        self._reset = library.forerun_emulation_reset
        self._configure = library.forerun_emulation_configure
        self._configure.argtypes, self._configure.restype = [ctypes.c_char_p], ctypes.c_char_p
        self._counter = library.forerun_emulation_counter
        self._counter.argtypes, self._counter.restype = [ctypes.c_char_p], ctypes.c_int64
        self.configure()

    def configure(self, **words: float | str) -> None:
        """A GPU as cuda/emulation/emulation.h describes it, with all counters at 0."""
        text = " ".join(f"{name}={value}" for name, value in words.items())
        self._reset()
        problem = self._configure(text.encode())
        if problem is not None:
            raise ValueError(problem.decode())

    def __getattr__(self, name: str) -> int:
        """A counter."""
        value = int(self._counter(name.encode()))
        if value < 0:
            raise AttributeError(name)
        return value
