"""Parts of a training step in PyTorch (oneDNN, SDPA), bf16 in and out. For each line of a kind of work, a pass and sizes on standard
input the least seconds that it takes; "gradients" is forwards and backwards.

    matmul forward|gradients n k m                             x w', x [n, k], w [m, k]
    attention forward|gradients batch length heads kvHeads dim    causal
    head forward|gradients n k m                               cross-entropy of x w'

    python bench/peers/step_parts.py --threads 2
"""
import argparse
import sys
import time

import torch
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--threads", type=int, required=True)
torch.set_num_threads(parser.parse_args().threads)
known = {}


def tensor(*sizes):
    return torch.randn(*sizes).bfloat16().requires_grad_()


def matmul(n, k, m):
    return [tensor(n, k), tensor(m, k)], lambda x, w: x @ w.t()


def attention(batch, length, heads, kv_heads, dim):
    grouped = heads != kv_heads
    inputs = [tensor(batch, each, length, dim) for each in (heads, kv_heads, kv_heads)]
    return inputs, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def head(n, k, m):
    ids = torch.randint(0, m, (n,))
    return [tensor(n, k), tensor(m, k)], lambda x, w: F.cross_entropy((x @ w.t()).float(), ids, reduction="sum")


KINDS = {"matmul": matmul, "attention": attention, "head": head}


def work(kind, of_pass, sizes):
    inputs, compute = KINDS[kind](*sizes)
    if of_pass == "forward":

        def forward():
            with torch.no_grad():
                compute(*inputs)

        return forward
    dy = torch.randn_like(compute(*inputs))
    return lambda: torch.autograd.grad(compute(*inputs), inputs, dy)


print("ready", flush=True)
for line in sys.stdin:
    if line not in known:
        kind, of_pass, *sizes = line.split()
        known[line] = work(kind, of_pass, list(map(int, sizes)))
    times = []
    # the best counts: waking threads up takes longer than a small product
    while len(times) < 2 or (len(times) < 10 and sum(times) < 0.2):
        started = time.perf_counter()
        known[line]()
        times.append(time.perf_counter() - started)
    print(min(times), flush=True)
