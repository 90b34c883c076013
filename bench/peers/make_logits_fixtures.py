"""Writes small random models of every variant of the Llama family, with the logits that Hugging Face transformers computes
for them (f32), into test/fixtures/models. Also the logits of a model directory given as an argument.

    python bench/peers/make_logits_fixtures.py [test/fixtures/models] [MODEL_DIR NAME]
"""
import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=64, initializer_range=0.3)


def rope(**parameters):
    return dict(rope_parameters=dict(rope_theta=10000.0, **parameters))


VARIANTS = {
    # name: (class, configuration, sequence length, how it is saved)
    "llama-1": (LlamaConfig, dict(), 24, {}),
    "llama-2-tied-gqa": (LlamaConfig, dict(num_key_value_heads=2, tie_word_embeddings=True), 24, {}),
    "llama-biases": (LlamaConfig, dict(num_key_value_heads=1, attention_bias=True, mlp_bias=True), 24, {}),
    "llama-rope-linear": (LlamaConfig, rope(rope_type="linear", factor=4.0), 24, {}),
    "llama-rope-dynamic": (LlamaConfig, rope(rope_type="dynamic", factor=2.0) | dict(max_position_embeddings=16), 40, {}),
    "llama-rope-yarn": (LlamaConfig, rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16), 40, {}),
    "llama-rope-longrope-short": (LlamaConfig, rope(rope_type="longrope", factor=4.0, short_factor=[1.0, 1.1, 1.2, 1.3],
                                  long_factor=[1.0, 2.0, 3.0, 4.0], original_max_position_embeddings=32), 24, {}),
    "llama-rope-longrope-long": (LlamaConfig, rope(rope_type="longrope", factor=4.0, short_factor=[1.0, 1.1, 1.2, 1.3],
                                 long_factor=[1.0, 2.0, 3.0, 4.0], original_max_position_embeddings=16), 40, {}),
    "llama-3-bf16-sharded": (LlamaConfig, rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                             original_max_position_embeddings=16) | dict(num_key_value_heads=2), 40,
                             dict(dtype=torch.bfloat16, max_shard_size="20KB")),
    "mistral-window": (MistralConfig, dict(num_key_value_heads=2, sliding_window=8), 24, {}),
    "mistral-nemo-f16": (MistralConfig, dict(num_key_value_heads=2, head_dim=12, sliding_window=None), 24, dict(dtype=torch.float16)),
}


def logits_of(model, tokens):
    with torch.no_grad():
        return model.float()(tokens).logits.contiguous()


def write_expected(directory, tokens, logits):
    save_file({"logits": logits.float()}, directory / "expected-logits.safetensors")
    (directory / "expected.json").write_text(json.dumps({"transformers": transformers.__version__, "tokens": tokens.tolist()}))


def main():
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "test/fixtures/models")
    for index, (name, (config_class, settings, length, saving)) in enumerate(VARIANTS.items()):
        torch.manual_seed(index)
        config = config_class(**(SMALL | settings))
        model = (LlamaForCausalLM if config_class is LlamaConfig else MistralForCausalLM)(config).eval()
        model.set_attn_implementation("eager")
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data = 1 + 0.3 * torch.randn_like(parameter)
        dtype = saving.get("dtype", torch.float32)
        model = model.to(dtype)
        directory = target / name
        shutil.rmtree(directory, ignore_errors=True)
        model.save_pretrained(directory, **({"max_shard_size": saving["max_shard_size"]} if "max_shard_size" in saving else {}))
        tokens = torch.randint(0, config.vocab_size, (2, length))
        # reloaded, because casting a whole module also rounds its rotary frequencies
        stored = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        write_expected(directory, tokens, logits_of(stored, tokens))
    if len(sys.argv) > 3:
        model = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32).eval()
        directory = target / sys.argv[3]
        directory.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(99)
        tokens = torch.randint(0, model.config.vocab_size, (2, 48))
        write_expected(directory, tokens, logits_of(model, tokens)[:, ::8].contiguous())


if __name__ == "__main__":
    main()
