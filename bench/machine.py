"""One line about the machine, and how busy it is: figures mean nothing without it."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Processor, cores, memory, kernel, Python, Open vSwitch, and the load when asked."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(_memory_kib() / 2**20, 1),
        "system": _system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ovs": ovs_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def line(machine: dict[str, Any]) -> str:
    """For people."""
    return (
        f"{machine['cores']} x {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Linux {machine['kernel']}, Python {machine['python']}, Open vSwitch {machine['ovs']}; "
        f"load before: {machine['load']}"
    )


def ovs_version() -> str:
    """Of ovs-vswitchd; "none" where there is none."""
    binary = shutil.which("ovs-vswitchd")
    if binary is None:
        return "none"
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\(Open vSwitch\) (\S+)", done.stdout)
    return found[1] if found else "unknown"


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _memory_kib() -> int:
    found = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
