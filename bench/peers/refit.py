"""A smaller Llama model by optimal brain surgeon, rotation and refit, in float64: an independent implementation of what
`src/prune/obs.ts` and `src/refit` compute, to check them against. Writes test/fixtures/refit.

    python bench/peers/refit.py test/fixtures/refit [STORIES260K_DIR]

Optimal brain surgeon: Hassibi & Stork 1993; in blocks, as in ZipLM (arXiv 2302.04089). A rotation that leaves a model's
function alone: SliceGPT (arXiv 2401.15024). A tied head stays exact because the basis takes the square root of the final
gain to both sides. Weights are [outputs, inputs]; activations are [tokens, channels].
"""
import json
import os
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

RIDGE_DAMPING = 0.1  # of the mean diagonal of X'X, toward the weights before the refit
SURGEON_DAMPING = 0.01  # of the mean diagonal of the moments
GAIN_DAMPING = 0.01
NEURONS_AT_A_TIME = 8


def damped(gram, damping):
    return gram + damping * gram.diagonal().mean() * np.eye(len(gram))


def rms(x):
    return np.sqrt(np.square(x).mean())


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


class Llama:
    """The forward pass, with what the statistics need of it. `weights` has Hugging Face's names."""

    def __init__(self, config, weights):
        self.config = config
        self.weights = dict(weights)
        self.layers = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config["num_key_value_heads"]
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.tied = config["tie_word_embeddings"]
        self.eps = config["rms_norm_eps"]

    def of(self, layer, name):
        return self.weights[self.name(layer, name)]

    @staticmethod
    def name(layer, name):
        block = "mlp" if name in ("gate", "up", "down") else "self_attn"
        if name in ("input", "post_attention"):
            return f"model.layers.{layer}.{name}_layernorm.weight"
        return f"model.layers.{layer}.{block}.{name}_proj.weight"

    @property
    def embedding(self):
        return self.weights["model.embed_tokens.weight"]

    @property
    def gain(self):
        return self.weights["model.norm.weight"]

    @property
    def head(self):
        return self.embedding if self.tied else self.weights["lm_head.weight"]

    def normalized(self, x):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.eps)

    def rotated(self, x):  # [batch, length, heads, head_dim]: channel i turns with channel i + head_dim / 2
        half = self.head_dim // 2
        theta = self.config.get("rope_theta", 10000.0)
        frequencies = theta ** (-np.arange(half) / half)
        angles = np.arange(x.shape[1])[:, None, None] * frequencies
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)

    def attention(self, q, k, v, heads):
        batch, length = q.shape[:2]
        q = self.rotated(q.reshape(batch, length, heads, -1))
        k = self.rotated(k.reshape(batch, length, self.kv_heads, -1))
        v = v.reshape(batch, length, self.kv_heads, -1)
        group = np.arange(heads) // (heads // self.kv_heads)
        scores = np.einsum("bqhd,bkhd->bhqk", q, k[:, :, group]) / self.head_dim**0.5
        future = np.triu(np.ones((length, length), dtype=bool), 1)
        shares = softmax(np.where(future, -np.inf, scores))
        return np.einsum("bhqk,bkhd->bqhd", shares, v[:, :, group]).reshape(batch, length, -1)

    def layer(self, i, x):
        """Everything that a layer computes of the stream x."""
        seen = {"in": x}
        n = self.normalized(x) * self.of(i, "input")
        seen["q"], seen["k"], seen["v"] = (n @ self.of(i, name).T for name in "qkv")
        seen["attention"] = self.attention(seen["q"], seen["k"], seen["v"], self.heads)
        seen["mid"] = x + seen["attention"] @ self.of(i, "o").T
        n = self.normalized(seen["mid"]) * self.of(i, "post_attention")
        seen["gate"], seen["up"] = n @ self.of(i, "gate").T, n @ self.of(i, "up").T
        seen["ffn"] = silu(seen["gate"]) * seen["up"]
        seen["out"] = seen["mid"] + seen["ffn"] @ self.of(i, "down").T
        return seen

    def run(self, tokens):
        x, seen = self.embedding[tokens], []
        for i in range(self.layers):
            seen.append(self.layer(i, x))
            x = seen[-1]["out"]
        return seen, x

    def logits(self, tokens):
        return (self.normalized(self.run(tokens)[1]) * self.gain) @ self.head.T

    def loss(self, tokens):
        shares = softmax(self.logits(tokens[:, :-1]))
        return -np.log(np.take_along_axis(shares, tokens[:, 1:, None], -1)).mean()


def flat(x):
    return x.reshape(-1, x.shape[-1])


def second_moments(x):
    return flat(x).T @ flat(x)


def statistics(model, tokens):
    seen, last = model.run(tokens)
    streams = [layer[at] for layer in seen for at in ("in", "mid")] + [last]
    return dict(
        ffn=[second_moments(layer["ffn"]) for layer in seen],
        attention=[second_moments(layer["attention"]) for layer in seen],
        norms=[second_moments(model.normalized(x)) for x in streams],
    )


def surgeon(weight, moments, groups, at_a_time):
    """Removes groups of inputs of a matrix until none is left; returns [group, loss] in the order of removal.

    The loss of group J is tr(W_J ([H^-1]_JJ)^-1 W_J'); after a removal the others take over what they can.
    """
    w, inverse = weight, np.linalg.inv(damped(moments, SURGEON_DAMPING))
    left, order = list(range(len(groups))), []
    while left:
        losses = {
            g: np.trace(w[:, j] @ np.linalg.inv(inverse[np.ix_(j, j)]) @ w[:, j].T)
            for g in left
            for j in [groups[g]]
        }
        chosen = sorted(losses, key=losses.get)[:at_a_time]
        order += [[g, losses[g]] for g in chosen]
        left = [g for g in left if g not in chosen]
        j = np.concatenate([groups[g] for g in chosen])
        block = np.linalg.inv(inverse[np.ix_(j, j)])
        w, inverse = w - w[:, j] @ block @ inverse[j], inverse - inverse[:, j] @ block @ inverse[j]
    return order


def neuron_order(model, moments, layer):
    weight = model.of(layer, "down")
    return surgeon(weight, moments, [np.array([j]) for j in range(weight.shape[1])], NEURONS_AT_A_TIME)


def head_order(model, moments, layer):
    channels = np.arange(model.heads * model.head_dim).reshape(model.heads, -1)
    return surgeon(model.of(layer, "o"), moments, list(channels), 1)


def last_of_each_group(order, groups, kept):
    """The heads that are removed last of each key-value group."""
    size = len(order) // groups
    removed = [head for head, _ in order]
    members = [[h for h in removed if h // size == group] for group in range(groups)]
    return sorted(h for heads in members for h in heads[size - kept // groups:])


def basis(model, norms, width):
    """The map from the original's stream to the smaller one's [hidden, width], and the one for reading."""
    mean = sum(c / np.trace(c) for c in norms) / len(norms)
    hidden = len(mean)
    t = np.sqrt(np.abs(model.gain)) if model.tied else np.ones(hidden)
    own = [i for i in range(hidden) if model.tied and model.gain[i] <= 0]
    rest = [i for i in range(hidden) if i not in own]
    vectors = np.linalg.eigh((t[:, None] * mean * t)[np.ix_(rest, rest)])[1][:, ::-1][:, : width - len(own)]
    q = np.zeros((hidden, width))
    for column, channel in enumerate(own):
        q[channel, column] = 1
    q[np.ix_(rest, range(len(own), width))] = vectors
    sign = np.ones(width)
    sign[: len(own)] = -1
    return t[:, None] * q, q / t[:, None], sign


def start(model, stats, sizes, rotate):
    """The smaller model before the refit. `sizes`: hidden, ffn, heads. Returns it, the map of the stream, kept neurons and heads."""
    config = dict(model.config, hidden_size=sizes["hidden"], intermediate_size=sizes["ffn"],
                  num_attention_heads=sizes["heads"], head_dim=model.head_dim)
    hidden, width = model.config["hidden_size"], sizes["hidden"]
    weights, kept = {}, []
    if rotate:
        write, read, sign = basis(model, stats["norms"], width)
        scales = [np.sqrt(np.trace(write.T @ c @ write) / np.trace(c) * hidden / width) for c in stats["norms"]]
    else:
        write = np.eye(hidden)
    weights["model.embed_tokens.weight"] = model.embedding @ write
    weights["model.norm.weight"] = scales[-1] * sign if rotate else model.gain
    if not model.tied:
        weights["lm_head.weight"] = (model.head * model.gain) @ read if rotate else model.head
    for i in range(model.layers):
        neurons = [g for g, _ in neuron_order(model, stats["ffn"][i], i)]
        neurons = np.array(sorted(neurons[len(neurons) - sizes["ffn"]:]))
        heads = last_of_each_group(head_order(model, stats["attention"][i], i), model.kv_heads, sizes["heads"])
        channels = np.arange(model.heads * model.head_dim).reshape(model.heads, -1)[heads].flatten()
        kept.append((neurons, channels))
        rows = dict(q=channels, gate=neurons, up=neurons)
        for norm, names in (("input", "qkv"), ("post_attention", ("gate", "up"))):
            gain = model.of(i, norm)
            at = 2 * i + (norm != "input")
            weights[Llama.name(i, norm)] = np.full(width, scales[at]) if rotate else gain
            for name in names:
                w = model.of(i, name)
                w = w[rows[name]] if name in rows else w
                weights[Llama.name(i, name)] = (w * gain) @ read if rotate else w
        weights[Llama.name(i, "o")] = write.T @ model.of(i, "o")[:, channels]
        weights[Llama.name(i, "down")] = write.T @ model.of(i, "down")[:, neurons]
    return Llama(config, weights), write, kept


def ridge(x, y, w0, damping, row_weights=None):
    """argmin |X W' - Y|^2 + damping mean(diag(X'X)) |W - W0|^2, rows weighted."""
    x, y = flat(x), flat(y)
    if row_weights is not None:
        x, y = x * row_weights, y * row_weights
    gram = x.T @ x
    amount = damping * gram.diagonal().mean()
    return np.linalg.solve(damped(gram, damping), x.T @ y + amount * w0.T).T


def refit(model, student, write, kept, tokens):
    """Layer by layer, on the stream that the refitted layers before produce."""
    seen, last = model.run(tokens)
    x = student.embedding[tokens]
    for i, dense in enumerate(seen):
        neurons, channels = kept[i]

        def fit(name, inputs, targets, row_weights=None):
            at = Llama.name(i, name)
            student.weights[at] = ridge(inputs, targets, student.weights[at], RIDGE_DAMPING, row_weights)
            return inputs @ student.weights[at].T

        def row_weights(stream):
            return 1 / np.sqrt(np.square(flat(stream)).mean(-1, keepdims=True))

        n = student.normalized(x) * student.of(i, "input")
        q, k, v = fit("q", n, dense["q"][..., channels]), fit("k", n, dense["k"]), fit("v", n, dense["v"])
        a = student.attention(q, k, v, student.heads)
        x = x + fit("o", a, dense["mid"] @ write - x, row_weights(dense["mid"]))
        n = student.normalized(x) * student.of(i, "post_attention")
        gate, up = fit("gate", n, dense["gate"][..., neurons]), fit("up", n, dense["up"][..., neurons])
        m = silu(gate) * up
        x = x + fit("down", m, dense["out"] @ write - x, row_weights(dense["out"]))
    refit_head(model, student, flat(model.normalized(last) * model.gain), flat(student.normalized(x)))


def refit_head(model, student, target, n):
    gain = student.gain
    if model.tied:
        centered = student.embedding - student.embedding.mean(0)
        gram = (centered.T @ centered) * (n.T @ n)
        right = (target @ (centered.T @ model.head).T * n).sum(0)
        amount = GAIN_DAMPING * gram.diagonal().mean()
        student.weights["model.norm.weight"] = np.linalg.solve(damped(gram, GAIN_DAMPING), right + amount * gain)
    else:
        # toward the map that gave the head before the refit: head A0
        a0 = np.linalg.lstsq(model.head, student.head, rcond=None)[0]
        student.weights["lm_head.weight"] = model.head @ ridge(n * gain, target, a0, RIDGE_DAMPING)


def rescale(model, student):
    """Gains and matrices as large as the original's, the function unchanged but for eps."""
    w = student.weights

    def divide_gain(name, readers):
        c = rms(w[name]) / rms(model.weights[name])
        w[name] = w[name] / c
        for reader in readers:
            w[reader] = w[reader] * c

    for i in range(student.layers):
        divide_gain(Llama.name(i, "input"), [Llama.name(i, name) for name in "qkv"])
        divide_gain(Llama.name(i, "post_attention"), [Llama.name(i, name) for name in ("gate", "up")])
    c = rms(student.embedding) / rms(model.embedding)
    for name in ["model.embed_tokens.weight"] + [Llama.name(i, n) for i in range(student.layers) for n in ("o", "down")]:
        w[name] = w[name] / c
    if student.tied:
        w["model.norm.weight"] = w["model.norm.weight"] * c
    else:
        divide_gain("model.norm.weight", ["lm_head.weight"])


def cut(model, tokens, sizes, rotate):
    student, write, kept = start(model, statistics(model, tokens), sizes, rotate)
    refit(model, student, write, kept, tokens)
    if rotate:
        rescale(model, student)
    return student


def random_llama(tied, seed):
    """Neurons of very different sizes, so that their order is clear; gains of both signs."""
    hidden, ffn, heads, kv_heads, vocab = 32, 48, 4, 2, 64
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=vocab, hidden_size=hidden,
                  intermediate_size=ffn, num_hidden_layers=2, num_attention_heads=heads, num_key_value_heads=kv_heads,
                  head_dim=hidden // heads, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=tied,
                  hidden_act="silu", max_position_embeddings=64, torch_dtype="float32")
    random = np.random.default_rng(seed)
    # a stream whose channels are correlated: a few directions carry most of it
    mix = np.linalg.qr(random.normal(size=(hidden, hidden)))[0] * np.exp(-np.arange(hidden) / 10)

    def gains(negative):
        values = 1 + 0.3 * random.normal(size=hidden)
        values[random.choice(hidden, negative, replace=False)] *= -1
        return values

    def matrix(rows, columns, size=1.0):
        return size * random.normal(size=(rows, columns)) / np.sqrt(columns)

    weights = {"model.embed_tokens.weight": 3 * random.normal(size=(vocab, hidden)) @ mix.T, "model.norm.weight": gains(3)}
    if not tied:
        weights["lm_head.weight"] = matrix(vocab, hidden, 2)
    for i in range(config["num_hidden_layers"]):
        at = lambda name: Llama.name(i, name)
        weights[at("input")], weights[at("post_attention")] = gains(2), gains(2)
        weights[at("q")], weights[at("o")] = matrix(hidden, hidden, 2), mix @ matrix(hidden, hidden, 2)
        weights[at("k")], weights[at("v")] = matrix(hidden // 2, hidden, 2), matrix(hidden // 2, hidden)
        weights[at("gate")], weights[at("up")] = matrix(ffn, hidden, 1.5), matrix(ffn, hidden)
        weights[at("down")] = mix @ matrix(hidden, ffn, 2) * np.exp(0.7 * random.normal(size=ffn))
    return Llama(config, {name: w.astype(np.float32).astype(np.float64) for name, w in weights.items()})


def opened(directory):
    with open(os.path.join(directory, "config.json")) as file:
        config = json.load(file)
    weights = load_file(os.path.join(directory, "model.safetensors"))
    return Llama(config, {name: w.astype(np.float64) for name, w in weights.items()})


def sampled(model, sequences, length, random):
    tokens = np.ones((sequences, 1), dtype=np.int64)
    while tokens.shape[1] < length:
        shares = softmax(model.logits(tokens)[:, -1])
        tokens = np.concatenate([tokens, [[random.choice(len(p), p=p)] for p in shares]], 1)
    return tokens


def save(path, tensors):
    save_file({name: np.ascontiguousarray(x, dtype=np.float32) for name, x in tensors.items()}, path)


CUTS = {  # hidden, ffn, heads
    "ffn": (dict(hidden=32, ffn=36, heads=4), False),
    "hidden": (dict(hidden=24, ffn=36, heads=4), True),
    "heads": (dict(hidden=32, ffn=48, heads=2), False),
}


def with_huge_first_position(model, *tokens):
    """All sequences begin with a token whose embedding is a thousand times larger, as first positions of real models are."""
    embedding = model.embedding.copy()
    embedding[1] *= 1000
    huge = Llama(model.config, model.weights | {"model.embed_tokens.weight": embedding.astype(np.float32).astype(float)})
    return huge, *(np.concatenate([np.ones_like(rows[:, :1]), rows[:, 1:]], 1) for rows in tokens)


def random_fixtures(directory):
    random = np.random.default_rng(11)
    calibration, evaluation = random.integers(0, 64, (16, 32)), random.integers(0, 64, (2, 16))
    with open(os.path.join(directory, "tokens.json"), "w") as file:
        json.dump(dict(calibration=calibration.tolist(), evaluation=evaluation.tolist()), file)
    for name, tied in (("tied", True), ("untied", False)):
        model = random_llama(tied, 5 + tied)
        place = os.path.join(directory, name)
        os.makedirs(place, exist_ok=True)
        with open(os.path.join(place, "config.json"), "w") as file:
            json.dump(model.config, file, indent=2)
        save(os.path.join(place, "model.safetensors"), model.weights)
        stats = statistics(model, calibration)
        expected = {"logits": model.logits(evaluation), "moments.stream": sum(stats["norms"])}
        for i in range(model.layers):
            expected[f"moments.{i}.ffn"] = stats["ffn"][i]
            for axis, order in (("ffn", neuron_order), ("heads", head_order)):
                removed = order(model, stats["ffn" if axis == "ffn" else "attention"][i], i)
                print(name, i, axis, [f"{group}:{loss:.3g}" for group, loss in removed[:16]])
                expected[f"order.{i}.{axis}"] = [group for group, _ in removed]
                expected[f"losses.{i}.{axis}"] = np.maximum.accumulate([loss for _, loss in removed])
        for cut_name, (sizes, rotate) in CUTS.items():
            plain = start(model, stats, sizes, rotate)[0]
            student = cut(model, calibration, sizes, rotate)
            expected[f"{cut_name}.logits"] = student.logits(evaluation)
            expected |= {f"{cut_name}.{key}": w for key, w in student.weights.items()} if cut_name != "heads" else {}
            errors = [np.square(m.logits(evaluation) - model.logits(evaluation)).mean() for m in (plain, student)]
            print(name, cut_name, "mean square of logits", np.square(model.logits(evaluation)).mean(), "errors", errors)
        huge, calibration_of, evaluation_of = with_huge_first_position(model, calibration, evaluation)
        expected["huge.logits"] = cut(huge, calibration_of, *CUTS["hidden"]).logits(evaluation_of)
        save(os.path.join(place, "expected.safetensors"), expected)


def stories_fixture(directory, model):
    random = np.random.default_rng(3)
    calibration, evaluation = sampled(model, 32, 64, random), sampled(model, 8, 64, random)
    sizes = {"ffn": (dict(hidden=64, ffn=128, heads=8), False), "hidden": (dict(hidden=48, ffn=128, heads=8), True)}
    losses = {"original": model.loss(evaluation)}
    for name, (wanted, rotate) in sizes.items():
        losses[name] = cut(model, calibration, wanted, rotate).loss(evaluation)
        losses[f"{name}, not refitted"] = start(model, statistics(model, calibration), wanted, rotate)[0].loss(evaluation)
    print(losses)
    with open(os.path.join(directory, "stories260K.json"), "w") as file:
        json.dump(dict(calibration=calibration.tolist(), evaluation=evaluation.tolist(), losses=losses), file)


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    random_fixtures(sys.argv[1])
    if len(sys.argv) > 2:
        stories_fixture(sys.argv[1], opened(sys.argv[2]))
