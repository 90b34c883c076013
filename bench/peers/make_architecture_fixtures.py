"""Writes a small random model of every dense architecture, with the logits that Hugging Face transformers computes for
it (f32, eager attention), into test/fixtures/architectures.

    python bench/peers/make_architecture_fixtures.py [test/fixtures/architectures] [NAME ...]

Each folder holds the model as transformers saves it, expected.json with `tokens` ([2][T]) and expected.safetensors
with `logits` (f32 [2, T, vocab]). A fixture that would pass without one of its features is worthless, so a model is written only
after every feature of its row has been switched off, every tensor has been set to its neutral value, and the logits
have been seen to change.
"""
import contextlib
import copy
import json
import re
import shutil
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.phi3 import modeling_phi3

LENGTH = 44
ORIGINAL = 16  # the length that scaled rotary embeddings were "trained" on: well below LENGTH
FIRST_TOKEN, LAST_TOKEN = 3, 89  # special tokens and the image tokens of the wrappers lie outside
BYTES_LIMIT = 290_000
MATTERS = 1e-2
EPSILON = 0.1  # of the norms: large enough to be seen
THETA = 1000.0  # the default of no architecture

SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
             eos_token_id=2)
HEADS = dict(head_dim=12)  # not hidden / heads
TIED = dict(tie_word_embeddings=True)
UNTIED = dict(tie_word_embeddings=False)

SLIDING, FULL = "sliding_attention", "full_attention"
ALTERNATING = dict(num_hidden_layers=4, layer_types=[SLIDING, FULL] * 2, sliding_window=8)
TWO_KINDS = dict(num_hidden_layers=5, layer_types=[SLIDING, SLIDING, FULL, SLIDING, FULL], sliding_window=8)
NO_WINDOW = dict(sliding_window=LENGTH)

PLAIN = dict(rope_type="default", rope_theta=THETA)
LINEAR = dict(rope_type="linear", factor=8.0, rope_theta=1000000.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=ORIGINAL, rope_theta=THETA)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=ORIGINAL, rope_theta=THETA)
MINISTRAL = YARN | dict(beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1,
                        max_position_embeddings=64)
LONGROPE = dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.2], long_factor=[1.0, 2.0, 3.0], rope_theta=THETA,
                partial_rotary_factor=0.75)
NTK_ALPHA = dict(rope_type="dynamic", alpha=50.0, factor=1.0, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0,
                 rope_theta=THETA)
RMS = SMALL | dict(rms_norm_eps=EPSILON, rope_parameters=PLAIN)


def rope(parameters, **others):
    return dict(rope_parameters=parameters | others)


def rope_by_kind(sliding, full):
    return dict(rope_parameters={SLIDING: dict(sliding), FULL: dict(full)})


def half_rotation(model):
    """Pairs channels half a head apart, as Llama does, where the model pairs neighbours."""
    module = sys.modules[type(model).__module__]
    return mock.patch.object(module, "apply_rotary_pos_emb", modeling_phi3.apply_rotary_pos_emb)


def rotation_everywhere(model):
    """Rotates queries and keys in the layers that leave them as they are."""
    for layer in model.model.layers:
        layer.self_attn.is_sliding = True
    return contextlib.nullcontext()


def unscaled_embedding(model):
    model.get_input_embeddings().embed_scale.fill_(1.0)
    return contextlib.nullcontext()


def values_without_norm(model):
    for module in model.modules():
        if hasattr(module, "v_norm"):
            module.v_norm = torch.nn.Identity()
    return contextlib.nullcontext()


def keys_of_first_layers(model):
    """Shares the keys and values of the first layer of each kind instead of the last that has its own."""
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.store_full_length_kv = index < 2
    return contextlib.nullcontext()


@dataclass
class Fixture:
    model_type: str
    settings: dict
    # what makes this architecture differ: settings, or a change to the model, that switch it off
    without: dict = field(default_factory=dict)
    # of a wrapper, the settings of the vision tower and of the wrapper itself; `settings` are then the text model's
    vision: dict | None = None
    wrapper: dict | None = None
    text_type: str | None = None


GEMMA3 = RMS | HEADS | TIED | TWO_KINDS | dict(query_pre_attn_scalar=20) | rope_by_kind(PLAIN, LINEAR)
GEMMA3_WITHOUT = {
    "window": NO_WINDOW,
    "query scale": dict(query_pre_attn_scalar=12),
    "linear scaling": rope_by_kind(PLAIN, LINEAR | dict(rope_type="default")),
    "theta of its own in sliding layers": rope_by_kind(PLAIN | dict(rope_theta=1000000.0), LINEAR),
    "embedding scale": unscaled_embedding,
}
MINISTRAL3 = RMS | HEADS | rope(MINISTRAL)
MINISTRAL3_WITHOUT = {
    "yarn": rope(MINISTRAL, rope_type="default"),
    "scaled queries": rope(MINISTRAL, llama_4_scaling_beta=0.0),
}
GEMMA4_ROPE = rope_by_kind(PLAIN, dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=1000000.0))
GEMMA4 = RMS | TIED | dict(head_dim=8, global_head_dim=16, sliding_window=8, final_logit_softcapping=4.0) | GEMMA4_ROPE
GEMMA4_WITHOUT = {
    "window": NO_WINDOW,
    "final cap": dict(final_logit_softcapping=None),
    "partial rotation": rope_by_kind(PLAIN, GEMMA4_ROPE["rope_parameters"][FULL] | dict(partial_rotary_factor=1.0)),
    "norm of values": values_without_norm,
    "embedding scale": unscaled_embedding,
}
GPT_NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"} | UNTIED | dict(
    layer_norm_eps=EPSILON)
PER_LAYER = dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=96)

FIXTURES = {
    "qwen3": Fixture("qwen3", RMS | HEADS | TIED | rope(PLAIN, rope_theta=1000000.0)),
    "qwen3-yarn": Fixture("qwen3", RMS | HEADS | UNTIED | rope(YARN), {
        "yarn": rope(YARN, rope_type="default"),
        "attention factor": rope(YARN, attention_factor=1.0),
    }),
    "qwen2": Fixture("qwen2", RMS | TIED),
    "qwen2-window": Fixture("qwen2", RMS | UNTIED | dict(
        num_hidden_layers=4, use_sliding_window=True, sliding_window=8, max_window_layers=2,
    ), {"window": NO_WINDOW, "full lower layers": dict(layer_types=[SLIDING] * 4)}),
    "gemma3_text": Fixture("gemma3_text", GEMMA3, GEMMA3_WITHOUT),
    "gemma3": Fixture(
        "gemma3", GEMMA3 | ALTERNATING, GEMMA3_WITHOUT, text_type="gemma3_text",
        vision=dict(model_type="siglip_vision_model", hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                    num_attention_heads=2, image_size=16, patch_size=4, vision_use_head=False),
        wrapper=TIED | dict(mm_tokens_per_image=4, image_token_index=95, boi_token_index=94, eoi_token_index=93)),
    "llama": Fixture("llama", RMS | HEADS | rope(LLAMA3), {"llama3 scaling": rope(LLAMA3, rope_type="default")}),
    "mistral": Fixture("mistral", RMS | HEADS | dict(sliding_window=8), {"window": NO_WINDOW}),
    "ministral": Fixture("ministral", RMS | HEADS | ALTERNATING, {
        "window": NO_WINDOW, "full layers": dict(layer_types=[SLIDING] * 4),
    }),
    "ministral3": Fixture("ministral3", MINISTRAL3 | UNTIED, MINISTRAL3_WITHOUT),
    "mistral3": Fixture(
        "mistral3", MINISTRAL3 | TIED, MINISTRAL3_WITHOUT, text_type="ministral3",
        vision=dict(model_type="pixtral", hidden_size=16, intermediate_size=24, num_hidden_layers=1, head_dim=8,
                    num_attention_heads=2, image_size=16, patch_size=4),
        wrapper=TIED | dict(image_token_index=95, spatial_merge_size=2)),
    "phi3": Fixture("phi3", RMS | UNTIED | dict(sliding_window=8), {"window": NO_WINDOW}),
    "phi3-longrope-partial": Fixture(
        "phi3", RMS | TIED | rope(LONGROPE) | dict(original_max_position_embeddings=ORIGINAL), {
            "long factors": rope(LONGROPE, long_factor=LONGROPE["short_factor"]),
            "attention factor": rope(LONGROPE, attention_factor=1.0),
            "partial rotation": rope(LONGROPE, partial_rotary_factor=1.0, short_factor=[1.0, 1.1, 1.2, 1.2],
                                     long_factor=[1.0, 2.0, 3.0, 3.0]),
        }),
    "granite": Fixture("granite", RMS | TIED | dict(
        embedding_multiplier=6.0, residual_multiplier=0.4, attention_multiplier=0.2, logits_scaling=1.5,
    ), {name: {name: 1.0} for name in
        ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")}),
    "olmo2": Fixture("olmo2", RMS | UNTIED),
    "olmo3": Fixture("olmo3", RMS | UNTIED | TWO_KINDS | rope_by_kind(PLAIN, YARN), {
        "window": NO_WINDOW,
        "yarn in full layers": rope_by_kind(PLAIN, PLAIN),
        "no yarn in sliding layers": rope_by_kind(YARN, YARN),
    }),
    "smollm3": Fixture("smollm3", RMS | TIED | dict(num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0]), {
        "layers without rotation": dict(no_rope_layers=[1, 1, 1, 1]),
    }),
    "gemma2": Fixture("gemma2", RMS | HEADS | TIED | ALTERNATING | dict(
        query_pre_attn_scalar=20, attn_logit_softcapping=5.0, final_logit_softcapping=4.0,
    ), {
        "window": NO_WINDOW,
        "query scale": dict(query_pre_attn_scalar=12),
        "attention cap": dict(attn_logit_softcapping=None),
        "final cap": dict(final_logit_softcapping=None),
        "embedding scale": unscaled_embedding,
    }),
    "glm4": Fixture("glm4", RMS | HEADS | UNTIED | dict(attention_bias=True) | rope(PLAIN, partial_rotary_factor=0.5), {
        "partial rotation": rope(PLAIN, partial_rotary_factor=1.0),
        "rotation of neighbours": half_rotation,
    }),
    "exaone4": Fixture("exaone4", RMS | TIED | rope(LLAMA3) | dict(
        sliding_window=None, sliding_window_pattern=None, layer_types=[FULL] * 2,
    ), {"llama3 scaling": rope(LLAMA3, rope_type="default")}),
    "exaone4-window": Fixture("exaone4", RMS | UNTIED | ALTERNATING | dict(sliding_window_pattern=2), {
        "window": NO_WINDOW,
        "full layers without rotation": rotation_everywhere,
    }),
    "hunyuan_v1_dense": Fixture("hunyuan_v1_dense", RMS | HEADS | TIED | rope(NTK_ALPHA), {
        "base stretched by alpha": rope(NTK_ALPHA, rope_type="default"),
    }),
    "ernie4_5": Fixture("ernie4_5", RMS | HEADS | TIED, {"rotation of neighbours": half_rotation}),
    "nemotron": Fixture("nemotron", SMALL | HEADS | UNTIED | rope(PLAIN, partial_rotary_factor=0.5) | dict(
        norm_eps=EPSILON,
    ), {
        "partial rotation": rope(PLAIN, partial_rotary_factor=1.0),
        "squared ReLU": dict(hidden_act="relu"),
    }),
    "arcee": Fixture("arcee", RMS | HEADS | UNTIED | rope(YARN), {
        "yarn": rope(YARN, rope_type="default"),
        "squared ReLU": dict(hidden_act="relu"),
    }),
    "apertus": Fixture("apertus", RMS | UNTIED | rope(LLAMA3), {"llama3 scaling": rope(LLAMA3, rope_type="default")}),
    "starcoder2": Fixture("starcoder2", SMALL | TIED | rope(PLAIN) | dict(
        sliding_window=8, norm_epsilon=EPSILON,
    ), {"window": NO_WINDOW}),
    "gpt_neox": Fixture("gpt_neox", GPT_NEOX | rope(PLAIN, partial_rotary_factor=0.5), {
        "partial rotation": rope(PLAIN, partial_rotary_factor=1.0),
        "parallel blocks": dict(use_parallel_residual=False),
    }),
    "gpt_neox-sequential": Fixture("gpt_neox", GPT_NEOX | rope(PLAIN, partial_rotary_factor=1.0) | dict(
        use_parallel_residual=False,
    ), {"sequential blocks": dict(use_parallel_residual=True)}),
    "gpt2": Fixture("gpt2", TIED | dict(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, layer_norm_epsilon=EPSILON,
    )),
    # like E2B: embeddings per layer; the last layers take the keys and values of earlier ones and have a wider FFN
    "gemma4_text": Fixture("gemma4_text", GEMMA4 | PER_LAYER | dict(
        num_hidden_layers=6, layer_types=[SLIDING, FULL] * 3, intermediate_size=32, num_kv_shared_layers=2,
        use_double_wide_mlp=True, num_key_value_heads=1,
    ), GEMMA4_WITHOUT | {"keys and values of the last layers": keys_of_first_layers}),
    # like E4B: the same FFN in every layer
    "gemma4": Fixture(
        "gemma4", GEMMA4 | PER_LAYER | dict(
            num_hidden_layers=4, layer_types=[SLIDING, FULL] * 2, intermediate_size=48, num_kv_shared_layers=2),
        GEMMA4_WITHOUT, text_type="gemma4_text",
        vision=dict(model_type="gemma4_vision", hidden_size=16, intermediate_size=24, num_hidden_layers=1, head_dim=8,
                    num_attention_heads=2, num_key_value_heads=2, patch_size=4, position_embedding_size=16),
        wrapper=TIED | dict(audio_config=None, image_token_id=95, boi_token_id=94, eoi_token_id=93, video_token_id=92,
                            audio_token_id=91, boa_token_id=90, eoa_token_index=90)),
    # like 12B: the keys of full layers are their values, with heads of their own number
    "gemma4_unified_text": Fixture("gemma4_unified_text", GEMMA4 | dict(
        num_hidden_layers=4, layer_types=[SLIDING, FULL] * 2, attention_k_eq_v=True, num_global_key_value_heads=1,
    ), GEMMA4_WITHOUT),
}


def configuration(fixture, changes=None):
    # a configuration keeps and changes the dictionaries it is given
    text = copy.deepcopy(fixture.settings | (changes or {}))
    if fixture.text_type is None:
        return AutoConfig.for_model(fixture.model_type, **text)
    return AutoConfig.for_model(fixture.model_type, text_config=text | dict(model_type=fixture.text_type),
                                vision_config=dict(fixture.vision), **fixture.wrapper)


def auto_class(config):
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def create(config):
    return auto_class(config).from_config(config, attn_implementation="eager", dtype=torch.float32).eval()


def constants(model):
    """What transformers initialises to one value: gains, biases, and the few scalars stored beside the weights."""
    stored = model.state_dict()
    named = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n in stored}}
    return {name: tensor for name, tensor in named.items()
            if tensor.is_floating_point() and tensor.min() == tensor.max() and not name.endswith("act_fn.eps")}


def randomise(model):
    """Draws what the initialisation leaves constant, around that constant. Returns the neutral values by name."""
    neutral = {}
    for name, tensor in constants(model).items():
        if model.config.model_type == "nemotron" and name.endswith("norm.weight"):
            tensor.data.zero_()  # its gains are stored less one, yet initialised to one
        neutral[name] = tensor.detach().clone()
        tensor.data += 0.3 * torch.randn_like(tensor)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx] = 0.3 * torch.randn(module.embedding_dim)
    return neutral


def logits_of(model, tokens):
    with torch.no_grad():
        return model(tokens, use_cache=False).logits.contiguous()


def difference(changed, expected):
    return ((changed - expected).norm() / expected.norm()).item()


def check(name, feature, change):
    if not change > MATTERS:
        raise SystemExit(f"{name}: without {feature} the logits change by only {change:.1e}, not by {MATTERS:.0e}")


def common_features(settings):
    """What every row can switch off: the base of its rotary embedding and the epsilon of its norms."""
    features = {key: {key: 1e-6} for key in settings if key.endswith(("_eps", "_epsilon"))}
    rope_parameters = settings.get("rope_parameters")
    if rope_parameters is not None:
        changed = copy.deepcopy(rope_parameters)
        for parameters in [changed[kind] for kind in (SLIDING, FULL) if kind in changed] or [changed]:
            parameters["rope_theta"] *= 20
        features["rope_theta"] = dict(rope_parameters=changed)
    return features


def check_features(fixture, model, tokens, expected):
    report = {}
    for feature, change in (common_features(fixture.settings) | fixture.without).items():
        other = create(configuration(fixture, change if isinstance(change, dict) else None))
        other.load_state_dict(model.state_dict())
        with contextlib.nullcontext() if isinstance(change, dict) else change(other):
            report[feature] = difference(logits_of(other, tokens), expected)
    return report


def check_tensors(model, neutral, tokens, expected):
    """Sets each tensor, in all layers at once, to its neutral value, or to zero."""
    groups = {}
    for name in model.state_dict():
        if not re.search("vision|projector|embed_vision|act_fn.eps", name):
            groups.setdefault(re.sub(r"\.\d+\.", ".N.", name), []).append(name)
    stored, report = model.state_dict(), {}
    for group, names in groups.items():
        kept = {name: stored[name].clone() for name in names}
        for name in names:
            stored[name].copy_(neutral.get(name, torch.zeros(())))
        report[group] = difference(logits_of(model, tokens), expected)
        for name in names:
            stored[name].copy_(kept[name])
    return report


def write(name, fixture, directory):
    torch.manual_seed(zlib.crc32(name.encode()))
    model = create(configuration(fixture))
    neutral = randomise(model)
    tokens = torch.randint(FIRST_TOKEN, LAST_TOKEN + 1, (2, LENGTH))
    expected = logits_of(model, tokens)

    report = check_features(fixture, model, tokens, expected) | check_tensors(model, neutral, tokens, expected)
    for feature, change in report.items():
        check(name, feature, change)
    assert torch.equal(logits_of(model, tokens), expected)

    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory)
    stored = auto_class(model.config).from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    change = difference(logits_of(stored.eval(), tokens), expected)
    assert change == 0, f"{name}: opened again, the logits differ by {change:.1e}"
    save_file({"logits": expected}, directory / "expected.safetensors",
              metadata={"transformers": transformers.__version__})
    (directory / "expected.json").write_text(json.dumps({"tokens": tokens.tolist()}))
    size = sum(file.stat().st_size for file in directory.iterdir())
    assert size < BYTES_LIMIT, f"{name}: {size} bytes"
    noise = difference(logits_of(stored.double(), tokens).float(), expected)
    least = min(report, key=report.get)
    print(f"{name}: {size} bytes, logits {expected.std():.2f} on average and {expected.abs().max():.1f} at most, "
          f"{noise:.0e} from f64; of {len(report)} features the least is {least}, {report[least]:.2f}", flush=True)


def main():
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "test/fixtures/architectures")
    torch.set_num_threads(1)
    for name in sys.argv[2:] or FIXTURES:
        write(name, FIXTURES[name], target / name)


if __name__ == "__main__":
    main()
