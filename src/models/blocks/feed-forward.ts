import { type Graph, ops, type Tensor } from "../../tensor/index.js";
import type { Axis } from "../dimensions.js";
import { type Block, FREE, linear, type Parameter, type Scope } from "./block.js";

/** Activations of a gate, by the names that configurations use. */
const GATES = {
  silu: (g: Graph, gate: Tensor, up: Tensor) => ops.swiglu(g, gate, up),
  gelu_pytorch_tanh: (g: Graph, gate: Tensor, up: Tensor) => ops.geglu(g, gate, up, { approximation: "tanh" }),
  gelu: (g: Graph, gate: Tensor, up: Tensor) => ops.geglu(g, gate, up, { approximation: "none" }),
};
export type Gate = keyof typeof GATES;
export const isGate = (name: string): name is Gate => name in GATES;

/** A gated feed-forward network. */
export interface GatedOptions {
  /** Channels between the matrices. */
  readonly size: number;
  readonly activation: Gate;
  readonly bias?: boolean | undefined;
  /** Gate and up in one matrix, `gate_up_proj` (Phi-3, GLM-4). */
  readonly fused?: boolean | undefined;
}

const matrix = (axes: Parameter["axes"], input: string, name: string, transposed?: boolean): Parameter => ({
  axes,
  input,
  transposed,
  gguf: { name },
});
const biasOf = (axis: Parameter["axes"][number], name: string): Parameter => ({
  axes: [axis],
  initialization: "zeros",
  gguf: { name, kind: "bias" },
});

const scores = [{ dimension: "ffn", tap: "down_proj.input" }];

/** down(activation(gate x) · up x) (Shazeer 2020, eq. 5 and 6). */
export function gatedFeedForward({ size, activation, bias = false, fused = false }: GatedOptions): Block {
  const both = { concat: ["ffn", "ffn"] };
  const matrices: Record<string, Parameter> = fused
    ? { "gate_up_proj.weight": matrix([both, "hidden"], "input", "ffn_up") }
    : {
        "gate_proj.weight": matrix(["ffn", "hidden"], "input", "ffn_gate"),
        "up_proj.weight": matrix(["ffn", "hidden"], "input", "ffn_up"),
      };
  const biases: Record<string, Parameter> = bias
    ? {
        "gate_proj.bias": biasOf("ffn", "ffn_gate"),
        "up_proj.bias": biasOf("ffn", "ffn_up"),
        "down_proj.bias": biasOf("hidden", "ffn_down"),
      }
    : {};
  return {
    dimensions: { ffn: { size, prunable: true } },
    parameters: {
      ...matrices,
      "down_proj.weight": matrix(["hidden", "ffn"], "down_proj.input", "ffn_down"),
      ...biases,
    },
    scores,
    metadata: { feed_forward_length: size },
    cost: () => FREE,
    forward: (scope, x) => {
      const { g } = scope;
      const [gate, up] = fused
        ? ops.splitLast(g, linear(scope, x, "gate_up_proj", bias), [size, size])
        : [linear(scope, x, "gate_proj", bias), linear(scope, x, "up_proj", bias)];
      const gated = GATES[activation](g, gate as Tensor, up as Tensor);
      scope.tap("down_proj.input", gated);
      return linear(scope, gated, "down_proj", bias);
    },
  };
}

/** Activations without a gate, by the names that configurations use. */
const ACTIVATIONS = {
  relu2: ({ g }: Scope, x: Tensor) => ops.square(g, ops.relu(g, x)),
  gelu: ({ g }: Scope, x: Tensor) => ops.gelu(g, x, { approximation: "none" }),
  gelu_new: ({ g }: Scope, x: Tensor) => ops.gelu(g, x, { approximation: "tanh" }),
  gelu_fast: ({ g }: Scope, x: Tensor) => ops.gelu(g, x, { approximation: "tanh" }),
  gelu_pytorch_tanh: ({ g }: Scope, x: Tensor) => ops.gelu(g, x, { approximation: "tanh" }),
  relu: ({ g }: Scope, x: Tensor) => ops.relu(g, x),
  xielu: ({ g, weight }: Scope, x: Tensor) =>
    ops.xielu(g, x, {
      alphaPositive: weight("act_fn.alpha_p"),
      alphaNegative: weight("act_fn.alpha_n"),
      beta: weight("act_fn.beta"),
      epsilon: weight("act_fn.eps"),
    }),
};
export type ActivationName = keyof typeof ACTIVATIONS;
export const isActivation = (name: string): name is ActivationName => name in ACTIVATIONS;

/** A scalar of an activation, which GGUF files list for all layers. @param initial value, as in transformers */
const scalar = (name: string, initial: number, axes: Parameter["axes"], fixed = false): Parameter => ({
  axes,
  initialization: { constant: initial },
  fixed,
  gguf: { name: `xielu.${name}`, kind: "listed" },
});

/** An axis of one element: an empty product. */
const ONE: Axis = { product: [] };

/** The softplus of alpha_p is 0.8, and so is that of alpha_n plus beta (arXiv 2411.13010, section 4). beta and eps are constants. */
const XIELU: Readonly<Record<string, Parameter>> = {
  "act_fn.alpha_p": scalar("alpha_p", Math.log(Math.expm1(0.8)), [ONE]),
  "act_fn.alpha_n": scalar("alpha_n", Math.log(Math.expm1(0.8 - 0.5)), [ONE]),
  "act_fn.beta": scalar("beta", 0.5, [], true),
  "act_fn.eps": scalar("eps", -1e-6, [], true),
};

/** A feed-forward network of two matrices. */
export interface PlainOptions {
  /** Channels between the matrices. */
  readonly size: number;
  readonly activation: ActivationName;
  readonly bias?: boolean | undefined;
  /** Names of the two matrices in checkpoints; `up_proj` and `down_proj` by default. */
  readonly names?: { readonly up: string; readonly down: string } | undefined;
  readonly transposed?: boolean | undefined;
}

/** down(activation(up x)). */
export function plainFeedForward({ size, activation, bias = false, names, transposed }: PlainOptions): Block {
  const { up, down } = names ?? { up: "up_proj", down: "down_proj" };
  const biases: Record<string, Parameter> = bias
    ? { [`${up}.bias`]: biasOf("ffn", "ffn_up"), [`${down}.bias`]: biasOf("hidden", "ffn_down") }
    : {};
  return {
    dimensions: { ffn: { size, prunable: true } },
    parameters: {
      [`${up}.weight`]: matrix(["ffn", "hidden"], "input", "ffn_up", transposed),
      [`${down}.weight`]: matrix(["hidden", "ffn"], "down_proj.input", "ffn_down", transposed),
      ...biases,
      ...(activation === "xielu" ? XIELU : {}),
    },
    scores,
    metadata: { feed_forward_length: size },
    cost: () => FREE,
    forward: (scope, x) => {
      const activated = ACTIVATIONS[activation](scope, linear(scope, x, up, bias));
      scope.tap("down_proj.input", activated);
      return linear(scope, activated, down, bias);
    },
  };
}
