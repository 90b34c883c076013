"""Opens model directories with Hugging Face transformers (f32, eager attention) and writes the logits of given tokens.

    python bench/peers/open_with_transformers.py DIR --tokens TOKENS.json --out LOGITS.safetensors [DIR ...]

TOKENS holds `tokens` ([batch][T]); LOGITS gets `logits` (f32 [batch, T, vocab]). Several directories can be opened
in one start: give each its own --out, and each its own --tokens or one for all. transformers only warns of weights that
are missing or unexpected; here they fail the directory, as does a weight of another shape. Exits with 1 if a directory
failed.
"""
import argparse
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

WRONG = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def open_model(directory):
    """Raises ValueError if the stored tensors are not exactly those of the model that config.json describes."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    auto_class = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText
    model, info = auto_class.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True,
        ignore_mismatched_sizes=True,  # named below with the others, instead of ending the first look
    )
    wrong = {kind: sorted(map(str, info[kind])) for kind in WRONG if info[kind]}
    if wrong:
        raise ValueError("; ".join(f"{kind}: {', '.join(names)}" for kind, names in wrong.items()))
    return model.eval()


def write_logits(directory, tokens_file, out):
    model = open_model(directory)
    tokens = torch.tensor(json.loads(pathlib.Path(tokens_file).read_text())["tokens"])
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits.float().contiguous()
    if not logits.isfinite().all():
        raise ValueError("the logits are not finite")
    save_file({"logits": logits}, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", metavar="DIR")
    parser.add_argument("--tokens", action="append", required=True, metavar="FILE")
    parser.add_argument("--out", action="append", required=True, metavar="FILE")
    arguments = parser.parse_intermixed_args()
    directories, tokens, outs = arguments.directories, arguments.tokens, arguments.out
    if len(outs) != len(directories) or len(tokens) not in (1, len(directories)):
        parser.error(f"{len(directories)} directories, {len(tokens)} --tokens and {len(outs)} --out do not match")
    if len(tokens) == 1:
        tokens = tokens * len(directories)

    failed = False
    for directory, tokens_file, out in zip(directories, tokens, outs):
        try:
            write_logits(directory, tokens_file, out)
            print(f"{directory}: ok", flush=True)
        except Exception as error:  # whatever a broken directory makes transformers raise
            failed = True
            print(f"{directory}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
