#!/usr/bin/env python3
"""Compiles the .cu files beside this script to PTX with NVRTC, which needs neither a GPU nor CUDA:

    pip download --no-deps 'nvidia-cuda-nvrtc-cu12==12.9.*' && python3 -m zipfile -e nvidia_cuda_nvrtc_cu12-*.whl nvrtc
    LD_LIBRARY_PATH=nvrtc/nvidia/cuda_nvrtc/lib python3 compile.py libnvrtc.so.12 [FILE.cu ...]
"""

import ctypes
import pathlib
import sys

ARCHITECTURES = {"hopper.cu": b"compute_90a"}


def compile_ptx(nvrtc, path):
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), path.read_bytes(), path.name.encode(), 0, None, None)
    architecture = ARCHITECTURES.get(path.name, b"compute_80")
    options = (ctypes.c_char_p * 1)(b"--gpu-architecture=" + architecture)
    status = nvrtc.nvrtcCompileProgram(program, len(options), options)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if status != 0:
        sys.exit(f"{path.name}: {log.value.decode()}")
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.value


def main():
    nvrtc = ctypes.CDLL(sys.argv[1])
    here = pathlib.Path(__file__).parent
    for path in [pathlib.Path(name) for name in sys.argv[2:]] or sorted(here.glob("*.cu")):
        path.with_suffix(".ptx").write_bytes(compile_ptx(nvrtc, path))


main()
