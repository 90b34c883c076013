"""Importance scores and pruned weights of a small Llama model, by an independent implementation of the formulas of
arXiv 2407.14679 (section 2.2) and arXiv 2403.03853 (eq. 1). Writes scores, and a hash of every pruned tensor.

    python bench/peers/importance.py MODEL_DIR test/fixtures/importance-stories260K.json
"""
import hashlib
import json
import sys

import torch
from transformers import AutoModelForCausalLM

PLAN = dict(hidden=48, ffn=128, heads=4, kvHeads=2, keptLayers=[0, 1, 3, 4])


def main():
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    config = model.config
    torch.manual_seed(5)
    batch, length = 4, 64
    stream = torch.randint(3, config.vocab_size, (batch * length + 1,))
    tokens = stream[:-1].view(batch, length)

    seen = {}

    def keep(name, value):
        seen[name] = value.detach()

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda m, args, i=i: keep(f"{i}.in", args[0]))
        layer.register_forward_hook(lambda m, args, out, i=i: keep(f"{i}.out", out[0] if isinstance(out, tuple) else out))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            getattr(layer, norm).register_forward_hook(lambda m, args, out, n=f"{i}.{norm}": keep(n, out))
        layer.self_attn.o_proj.register_forward_pre_hook(lambda m, args, i=i: keep(f"{i}.o", args[0]))
        layer.mlp.down_proj.register_forward_pre_hook(lambda m, args, i=i: keep(f"{i}.down", args[0]))
    model.model.norm.register_forward_hook(lambda m, args, out: keep("norm", out))
    with torch.no_grad():
        model(tokens)

    def score(a):  # [batch, seq, channels] -> [channels]
        return a.abs().mean(dim=1).square().sum(dim=0).sqrt()

    scores = {"hidden": sum(score(v) for n, v in seen.items() if n.endswith("layernorm") or n == "norm")}
    blocks = []
    groups = config.num_key_value_heads
    for i in range(config.num_hidden_layers):
        heads = seen[f"{i}.o"].view(batch, length, config.num_attention_heads, -1).norm(dim=-1)
        scores[f"layers.{i}.heads"] = score(heads)
        scores[f"layers.{i}.kvHeads"] = scores[f"layers.{i}.heads"].view(groups, -1).sum(dim=1)
        scores[f"layers.{i}.ffn"] = score(seen[f"{i}.down"])
        blocks.append(1 - torch.cosine_similarity(seen[f"{i}.in"], seen[f"{i}.out"], dim=-1).mean())
    scores["layers"] = torch.stack(blocks)

    top = lambda s, n: s.topk(n).indices.sort().values
    hidden = top(scores["hidden"], PLAN["hidden"])
    head_dim = config.hidden_size // config.num_attention_heads
    pruned = {}
    weights = dict(model.named_parameters())
    for to, i in enumerate(PLAN["keptLayers"]):
        ffn = top(scores[f"layers.{i}.ffn"], PLAN["ffn"])
        kv = top(scores[f"layers.{i}.kvHeads"], PLAN["kvHeads"])
        size = config.num_attention_heads // groups
        per_group = PLAN["heads"] // PLAN["kvHeads"]
        heads = torch.cat([g * size + top(scores[f"layers.{i}.heads"][g * size:(g + 1) * size], per_group) for g in kv.tolist()])
        rows = lambda which: (which[:, None] * head_dim + torch.arange(head_dim)).flatten()
        w = lambda name: weights[f"model.layers.{i}.{name}.weight"]
        put = lambda name, value: pruned.__setitem__(f"model.layers.{to}.{name}.weight", value)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            put(norm, w(norm)[hidden])
        put("self_attn.q_proj", w("self_attn.q_proj")[rows(heads)][:, hidden])
        put("self_attn.k_proj", w("self_attn.k_proj")[rows(kv)][:, hidden])
        put("self_attn.v_proj", w("self_attn.v_proj")[rows(kv)][:, hidden])
        put("self_attn.o_proj", w("self_attn.o_proj")[hidden][:, rows(heads)])
        put("mlp.gate_proj", w("mlp.gate_proj")[ffn][:, hidden])
        put("mlp.up_proj", w("mlp.up_proj")[ffn][:, hidden])
        put("mlp.down_proj", w("mlp.down_proj")[hidden][:, ffn])
    pruned["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:, hidden]
    pruned["model.norm.weight"] = weights["model.norm.weight"][hidden]
    digest = lambda t: hashlib.sha256(t.detach().contiguous().numpy().tobytes()).hexdigest()
    with open(sys.argv[2], "w") as file:
        json.dump(dict(plan=PLAN, stream=stream.tolist(), scores={n: s.tolist() for n, s in scores.items()},
                       pruned={n: digest(t) for n, t in sorted(pruned.items())}), file)


if __name__ == "__main__":
    main()
