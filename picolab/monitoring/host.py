"""What the machine does beside the run: cores, memory, and GPUs where NVIDIA's library is there.

Sampled in the kernel, once a second at most, and never in a rank: psutil's questions cost more than
all that a rank tells in a step. A GPU is the machine's here; which rank it belongs to is said by
its number where each rank has one.
"""

import contextlib
from pathlib import Path

import psutil

_PRESSURE = Path("/proc/pressure/cpu")


class Host:
    """`sample()` is the data of an event of the kind "host"."""

    def __init__(self) -> None:
        psutil.cpu_percent(None)  # the first one has nothing to compare with
        self._nvml = None
        with contextlib.suppress(ImportError):
            import pynvml

            # A package without a driver is a machine without a GPU.
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._nvml = pynvml

    def sample(self) -> dict:
        memory = psutil.virtual_memory()
        found = {
            "cpu_percent": psutil.cpu_percent(None),
            "memory_available_bytes": memory.available,
            "cpu_pressure_percent": _pressure(),
        }
        return found | self._gpus()

    def _gpus(self) -> dict:
        if self._nvml is None:
            return {}
        nvml, found = self._nvml, {}
        for i in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(i)
            for name, read in (
                ("gpu_percent", lambda d: nvml.nvmlDeviceGetUtilizationRates(d).gpu),
                ("gpu_memory_bytes", lambda d: nvml.nvmlDeviceGetMemoryInfo(d).used),
                ("gpu_watts", lambda d: nvml.nvmlDeviceGetPowerUsage(d) / 1e3),
                ("gpu_celsius", lambda d: nvml.nvmlDeviceGetTemperature(d, 0)),
                ("gpu_sm_mhz", lambda d: nvml.nvmlDeviceGetClockInfo(d, 1)),
            ):
                # Not every board tells everything.
                with contextlib.suppress(nvml.NVMLError_NotSupported):
                    found.setdefault(name, {})[str(i)] = float(read(device))
        return found


def _pressure() -> float | None:
    """The share of the last ten seconds in which something waited for a core (Linux's PSI); None
    where it is not told."""
    try:
        line = _PRESSURE.read_text().split("\n")[0]
    except OSError:
        return None
    return float(line.split("avg10=")[1].split()[0])
