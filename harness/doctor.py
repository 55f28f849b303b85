"""`bitsweep doctor`: what this machine has, and what a run would lack."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

from harness.config.help import conf_dir
from harness.errors import BitsweepError
from harness.extras import ABOUT, EXTRAS, missing, pip_command
from harness.records.busyness import NOT_KNOWN, Usage, Watch, free_threads, said_busy
from harness.records.environment import commit, machine, package_versions

SUPPORTED = ((3, 11), (3, 13))  # Hydra 1.3 does not run on 3.14


def examine() -> bool:
    """Print one line per finding; return False if a run would lack something."""
    watch = Watch()  # what others do while this imports and looks
    lines = [*_python(), *_software(), *_hardware(), *_kernels(), *_files()]
    lines.append(_others(watch.usage(), _threads()))
    width = max(len(name) for _, name, _ in lines)
    for good, name, text in lines:
        print(f"{_mark(good, text):<8}{name:<{width}}  {text}")
    return all(good for good, _, _ in lines)


Finding = tuple[bool, str, str]


def _mark(good: bool, text: str) -> str:
    if not good:
        return "MISSING"
    return "-" if text.startswith(("no ", "not ")) else "ok"


def _python() -> list[Finding]:
    low, high = SUPPORTED
    good = low <= sys.version_info[:2] <= high
    needed = "" if good else f": install {low[0]}.{low[1]} to {high[0]}.{high[1]}"
    return [(good, "python", platform.python_version() + needed)]


def _software() -> list[Finding]:
    found = package_versions()
    needed = ("torch", "transformers", "safetensors")
    lines = [(n in found, n, found.get(n, "not installed: pip install bitsweep")) for n in needed]
    lines += [(True, name, found[name]) for name in ("lm-eval", "hydra-core") if name in found]
    lines += [_extra(name) for name in EXTRAS]
    here = commit()
    where = "installed package" if here is None else f"checkout at {here['id'][:12]}"
    changed = " with local changes" if here is not None and here["dirty"] else ""
    return [(True, "bitsweep", f"{found.get('bitsweep', '?')}, {where}{changed}"), *lines]


def _extra(name: str) -> Finding:
    """An extra of the distribution; only `harness` is required."""
    absent = missing(name)
    if not absent:
        return True, f"[{name}]", ABOUT[name]
    said = f"not installed ({', '.join(absent)}), for {ABOUT[name]}: {pip_command(name)}"
    return name != "harness", f"[{name}]", said


def _hardware() -> list[Finding]:
    import torch

    lines: list[Finding] = []
    if not missing("harness"):  # psutil is in this extra
        here = machine()
        size = f"{here['cores']} cores, {here['memory_gib']} GiB"
        lines.append((True, "processor", f"{here['cpu']}, {size}"))
    lines += [
        (True, "threads", f"{_threads()} (runtime.threads changes it)"),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            size = f"{gpu.total_memory / 2**30:.0f} GiB"
            lines.append((True, f"cuda:{index}", f"{gpu.name}, {size}, CUDA {torch.version.cuda}"))
    else:
        lines.append((True, "cuda", "no device (only runtime=cuda needs one)"))
    return lines


def _threads() -> int:
    """The threads that torch would use."""
    import torch

    return torch.get_num_threads()


def _others(usage: Usage | None, configured: int) -> Finding:
    """What others do here now, and how many threads a measurement would use."""
    if usage is None:
        return True, "other work", NOT_KNOWN
    threads = f"a measurement would use {free_threads(configured, usage)} of {configured} threads"
    busy = said_busy(usage)
    if busy:
        return True, "other work", f"busy ({busy}): {threads}, and timings are marked"
    return True, "other work", f"{usage.others:.1f} of {usage.cores:g} cores: {threads}"


def _kernels() -> list[Finding]:
    import torch

    from cuda_ext import build, packed, toolchain
    from cuda_ext.ops import resolve_kernel, why_unavailable

    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines: list[Finding] = [(True, "kernel auto", f"{resolve_kernel('auto', device)} on {device}")]
    for name in ("cpu", "cuda"):
        if reason := why_unavailable(torch.device(name)):
            text = f"not here: {reason}"
        elif name == "cpu":  # asking for the instruction set loads the library
            text = f"instruction set {packed.cpu_isa()}"
        else:
            text = "float16 and bfloat16"
        lines.append((True, f"kernel {name}", text))
    lines.append((True, "kernel reference", "plain PyTorch"))
    found, driver = build.status(), toolchain.driver()
    lines += [
        (True, "compiler", found.compiler),
        (True, "nvcc", found.nvcc),
        (True, "driver", f"CUDA {driver}" if driver else "no NVIDIA driver (libcuda.so.1)"),
    ]
    if found.library is None:
        return [*lines, (True, "library", found.reason)]
    architectures = ", ".join(found.library.architectures)
    code = architectures or f"CPU alone: {found.library.without_cuda}"
    return [*lines, (True, "library", str(found.library.path.parent)), (True, "built for", code)]


def _files() -> list[Finding]:
    lines: list[Finding] = [(True, "conf", f"{len(list(conf_dir().rglob('*.yaml')))} files")]
    if not missing("harness"):
        lines.append(_embedded_model())
    offline = os.environ.get("HF_HUB_OFFLINE", "")
    lines.append((True, "hub", "switched off (HF_HUB_OFFLINE)" if offline else "asked when needed"))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    lines.append((free > 1, "disk", f"{free:.0f} GiB free here"))
    return lines


def _embedded_model() -> Finding:
    from harness.config.schema import ModelConfig
    from harness.models.model import find_model

    try:
        find_model(ModelConfig(name="embedded", source="embedded"))
    except BitsweepError as error:
        return False, "embedded model", str(error)
    return True, "embedded model", "complete"
