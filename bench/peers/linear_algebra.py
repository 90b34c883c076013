# The peer of bench/linear-algebra.ts: for each line "task type size" the seconds that SciPy (OpenBLAS) takes.
import argparse
import os
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--threads", type=int, default=2)
threads = parser.parse_args().threads
os.environ["OPENBLAS_NUM_THREADS"] = str(threads)

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh, lapack

rng = np.random.default_rng(1)


def inverse(factor):
    potri = lapack.spotri if factor[0].dtype == np.float32 else lapack.dpotri
    return potri(factor[0], lower=factor[1])


TASKS = {
    "product": lambda a, b: a @ b,
    "factor": lambda a, b: cho_factor(a, lower=True),
    "solve": lambda a, b: cho_solve(cho_factor(a, lower=True), b),
    "inverse": lambda a, b: inverse(cho_factor(a, lower=True)),
    "eigen": lambda a, b: eigh(a, driver="evd"),
}

print("ready", flush=True)
for line in sys.stdin:
    task, dtype, size = line.split()
    n = int(size)
    x = rng.standard_normal((n, n), dtype=np.float32)
    a = (x.T @ x / n + np.eye(n, dtype=np.float32)).astype(dtype)
    b = x.astype(dtype)
    started = time.perf_counter()
    TASKS[task](a, b)
    print(time.perf_counter() - started, flush=True)
