"""A distillation step in PyTorch and transformers, one line of seconds for each line "step" on standard input.

    python bench/peers/distill_step.py --hidden 288 --ffn 768 --layers 6 --heads 6 --vocab 32000 \
        --batch 4 --sequence 256 --threads 2 --dtype bf16 [--compile] [--device cuda] [--low-memory]

Teacher forward, student forward and backward, clipping to a global norm of 1, fused AdamW: the step of `coppice distill`.
bf16 is autocast for the student, and bf16 weights for the teacher. Prints "ready" first, "memory BYTES" at the end.
"""
import argparse
import resource
import sys
import time

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

parser = argparse.ArgumentParser()
for name in ("hidden", "ffn", "layers", "heads", "vocab", "batch", "sequence", "threads"):
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--kv-heads", type=int)
parser.add_argument("--dtype", choices=("bf16", "f32"), required=True)
parser.add_argument("--compile", action="store_true")
parser.add_argument("--device", default="cpu")
parser.add_argument("--low-memory", action="store_true", help="recompute activations, 8-bit moments, free gradients")
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=args.vocab,
    hidden_size=args.hidden,
    intermediate_size=args.ffn,
    num_hidden_layers=args.layers,
    num_attention_heads=args.heads,
    num_key_value_heads=args.kv_heads or args.heads,
    max_position_embeddings=args.sequence,
    tie_word_embeddings=True,
    use_cache=False,
    attn_implementation="sdpa",
)
student = LlamaForCausalLM(config).to(args.device)
teacher = LlamaForCausalLM(config).to(args.device).eval().requires_grad_(False)
half = args.dtype == "bf16"
if half:
    teacher = teacher.bfloat16()
settings = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
if args.low_memory:
    from torchao.optim import AdamW8bit

    student.gradient_checkpointing_enable()
    student.train()
    optimizers = {parameter: AdamW8bit([parameter], **settings) for parameter in student.parameters()}

    def update(parameter):
        """Takes the parameter's step as soon as its gradient is there."""
        optimizers[parameter].step()
        optimizers[parameter].zero_grad(set_to_none=True)

    for parameter in student.parameters():
        parameter.register_post_accumulate_grad_hook(update)
else:
    optimizer = torch.optim.AdamW(student.parameters(), **settings, fused=True)


def loss_of(tokens):
    with torch.autocast(args.device, dtype=torch.bfloat16, enabled=half):
        with torch.no_grad():
            target = teacher(tokens).logits
        logits = student(tokens).logits
    target = F.log_softmax(target.float().view(-1, args.vocab), dim=-1)
    logits = F.log_softmax(logits.float().view(-1, args.vocab), dim=-1)
    return F.kl_div(logits, target, reduction="batchmean", log_target=True)


if args.compile:
    loss_of = torch.compile(loss_of)


def wait():
    if args.device == "cuda":
        torch.cuda.synchronize()


def step():
    tokens = torch.randint(0, args.vocab, (args.batch, args.sequence), device=args.device)
    wait()
    started = time.perf_counter()
    loss_of(tokens).backward()
    if not args.low_memory:
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    wait()
    return time.perf_counter() - started


step()
step()
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "step":
        print(step(), flush=True)
    elif line.strip() == "memory":
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
