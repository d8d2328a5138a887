"""Compiles a CUDA source to PTX by NVRTC, which needs no GPU: nvrtc.py SOURCE PTX OPTION..."""

import ctypes
import glob
import os
import sys


def load():
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        for path in glob.glob(os.path.join(folder, "libnvrtc.so.*")):
            return ctypes.CDLL(path)
    sys.exit("nvrtc.py: no libnvrtc.so in LD_LIBRARY_PATH")


def text(nvrtc, program, size, get):
    length = ctypes.c_size_t()
    getattr(nvrtc, size)(program, ctypes.byref(length))
    content = ctypes.create_string_buffer(length.value)
    getattr(nvrtc, get)(program, content)
    return content.value.decode()


def main(source, ptx, *options):
    nvrtc = load()
    program = ctypes.c_void_p()
    with open(source, "rb") as file:
        code = file.read()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, source.encode(), 0, None, None):
        sys.exit("nvrtc.py: NVRTC refuses the source")
    given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
    sys.stderr.write(text(nvrtc, program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog"))
    if failed:
        sys.exit(1)
    with open(ptx, "w") as file:
        file.write(text(nvrtc, program, "nvrtcGetPTXSize", "nvrtcGetPTX"))


if __name__ == "__main__":
    main(*sys.argv[1:])
