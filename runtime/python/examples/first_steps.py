"""Matrix products on any device: python first_steps.py [DEVICE]"""

import sys

import numpy as np

import ropeway

device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
print(ropeway.devices())  # what there is, and why the rest is missing

rng = np.random.default_rng(1)
x = rng.standard_normal((8, 256)).astype(np.float32)
weight = rng.standard_normal((512, 256)).astype(np.float32)
bias = np.zeros(512, np.float32)

# Arrays in, an array out; on the cpu device all of them are used where they lie, the transpose too.
y = ropeway.gemm(x, weight.T, bias=bias, activation="gelu", device=device)
print(device, y.shape, y.dtype)

# A weight that stays on the device between calls. The result is of the first operand's kind: an array again.
session = ropeway.Session(device)
on_device = session.tensor(weight)
for rows in (1, 4, 8):
    out = np.empty((rows, 512), np.float32)
    ropeway.gemm(x[:rows], on_device.mT, bias=bias, activation="gelu", out=out)
    print(f"{rows} rows, greatest {out.max():.3f}")

try:
    ropeway.gemm(x, on_device)
except ropeway.InvalidArgumentError as error:
    print(error)
