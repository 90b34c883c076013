"""Matrix products in PyTorch (oneDNN), bf16 in and out. For each line "n k m" on standard input: the least
seconds that x w', dy w and dy' x take together, x [n, k], w [m, k], dy [n, m].

    python bench/peers/matmul.py --threads 2
"""
import argparse
import sys
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--threads", type=int, required=True)
torch.set_num_threads(parser.parse_args().threads)
known = {}


def products(x, w, dy):
    return x @ w.t(), dy @ w, dy.t() @ x


print("ready", flush=True)
for line in sys.stdin:
    n, k, m = shape = tuple(map(int, line.split()))
    if shape not in known:
        known[shape] = [torch.randn(*size).bfloat16() for size in ((n, k), (m, k), (n, m))]
    times = []
    # the best counts: waking threads up takes longer than a small product
    while len(times) < 2 or (len(times) < 10 and sum(times) < 0.2):
        started = time.perf_counter()
        products(*known[shape])
        times.append(time.perf_counter() - started)
    print(min(times), flush=True)
