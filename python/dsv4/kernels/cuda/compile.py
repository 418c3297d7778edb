"""CUDA C++ to machine code at run time: NVRTC, which comes with torch, through ctypes; cubins are kept on disk."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dsv4.errors import Violation

HERE = Path(__file__).parent
HEADERS = ("machine.cuh", "products.cuh")
FLAGS = ("--std=c++20", "--fmad=false")


def cache_folder() -> Path:
    """Where compiled kernels stay: $DSV4_KERNEL_CACHE, or a folder of the user's cache."""
    users = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    base = Path(os.environ.get("DSV4_KERNEL_CACHE") or users / "dsv4" / "kernels")
    base.mkdir(parents=True, exist_ok=True)
    return base


def sources(source: Path) -> list[str]:
    """The text of a kernel and of the headers that it may include: the machine's, and those beside it."""
    return [path.read_text() for path in (source, *(HERE / name for name in HEADERS), *beside(source))]


def beside(source: Path) -> list[Path]:
    """Headers in the folder of a kernel."""
    return sorted(source.parent.glob("*.cuh"))


def _folders() -> list[Path]:
    """Folders that hold libraries of NVIDIA's packages, as torch's wheels bring them."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    return sorted(folder for root in roots for folder in (*root.glob("cu*/lib"), *root.glob("cuda_nvrtc/lib")))


def with_builtins(nvrtc: Path) -> ctypes.CDLL:
    """NVRTC with what it opens by name while it compiles, and would not find beside itself (13.0)."""
    for path in sorted(nvrtc.parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(path))
    return ctypes.CDLL(str(nvrtc))


def find_nvrtc() -> ctypes.CDLL:
    """NVRTC from torch's packages, or the system's. Raises Violation if there is none."""
    for folder in _folders():
        for path in sorted(folder.glob("libnvrtc.so.*")):
            return with_builtins(path)
    for name in ("libnvrtc.so.13", "libnvrtc.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Violation("there is no NVRTC, neither in a package of NVIDIA's nor in the system")


class Nvrtc:
    """The compiler: a C++ source in, a cubin out."""

    def __init__(self) -> None:
        self._lib = find_nvrtc()
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "version")
        self.version = f"{major.value}.{minor.value}"

    def _check(self, status: int, what: str) -> None:
        if status:
            self._lib.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise Violation(f"NVRTC {what}: {self._lib.nvrtcGetErrorString(status).decode()}")

    def _log(self, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self._lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._lib.nvrtcGetProgramLog(program, log)
        return log.value.decode(errors="replace")

    def cubin(self, source: Path, arch: str, defines: Sequence[str] = ()) -> tuple[bytes, str]:
        """Machine code of a source for `arch`, and what the compiler said. Raises Violation where it failed."""
        program = ctypes.c_void_p()
        text, name = source.read_bytes(), source.name.encode()
        self._check(self._lib.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None), "create")
        try:
            options = [f"--gpu-architecture={arch}", f"-I{HERE}", f"-I{source.parent}", "--ptxas-options=-v", *FLAGS]
            options += [f"-D{name}" for name in defines]
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._lib.nvrtcCompileProgram(program, len(options), given)
            log = self._log(program)
            if status:
                raise Violation(f"NVRTC {self.version} on {source.name}: {log[-2000:]}")
            size = ctypes.c_size_t()
            self._check(self._lib.nvrtcGetCUBINSize(program, ctypes.byref(size)), "size")
            code = ctypes.create_string_buffer(size.value)
            self._check(self._lib.nvrtcGetCUBIN(program, code), "cubin")
        finally:
            self._lib.nvrtcDestroyProgram(ctypes.byref(program))
        return code.raw, log


class Nvcc:
    """The toolkit's compiler, where NVRTC is missing: slower to start, the same code."""

    def __init__(self) -> None:
        found = shutil.which("nvcc")
        if found is None:
            raise Violation("there is neither NVRTC, in a package of NVIDIA's or in the system, nor nvcc")
        self._path = found
        told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
        release = re.search(r"release (\d+\.\d+)", told)
        self.version = f"nvcc {release[1] if release else 'unknown'}"

    def cubin(self, source: Path, arch: str, defines: Sequence[str] = ()) -> tuple[bytes, str]:
        """As Nvrtc's."""
        target = f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}"
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "out.cubin"
            command = [self._path, target, "-cubin", f"-I{HERE}", "-Xptxas=-v", *FLAGS, "-o", str(made), str(source)]
            command += [f"-D{name}" for name in defines]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode:
                raise Violation(f"{self.version} on {source.name}: {done.stderr[-2000:]}")
            return made.read_bytes(), done.stderr


def compiler() -> Nvrtc | Nvcc:
    """NVRTC if there is one, else nvcc. Raises Violation if there is neither."""
    try:
        return Nvrtc()
    except Violation:
        return Nvcc()


def cubin(source: Path, arch: str = "sm_90a") -> bytes:
    """Machine code of a source, from disk if this compiler has made it before."""
    made_by = compiler()
    key = hashlib.sha256("\0".join((arch, made_by.version, *FLAGS, *sources(source))).encode()).hexdigest()[:16]
    path = cache_folder() / f"{source.stem}-{arch}-{key}.cubin"
    if path.exists():
        return path.read_bytes()
    code, _ = made_by.cubin(source, arch)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as made:
        made.write(code)
    Path(made.name).rename(path)  # whole or not there
    return code
