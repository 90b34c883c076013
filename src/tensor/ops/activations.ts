import { ShapeError } from "../../system/errors.js";
import { once } from "../gradient.js";
import type { Graph } from "../graph.js";
import { defineOp, type Op, type OpDefinition } from "../op.js";
import { describe, elementCount, sameShape, type Tensor } from "../tensor.js";
import { abs, add, exp, log, mul, scale, square, step, sub, sum } from "./elementwise.js";
import { concatRows, part } from "./shape.js";

/** max(x, 0). Its gradient at 0 is 0. */
export const relu: Op<[x: Tensor]> = defineOp("relu", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_relu(context, x.handle),
  vjp: (g, dy, { inputs: [x] }) => [() => mul(g, dy, step(g, x))],
});

/** 1 / (1 + e⁻ˣ). */
export const sigmoid: Op<[x: Tensor]> = defineOp("sigmoid", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_sigmoid(context, x.handle),
  readsOutput: true,
  vjp: (g, dy, { output }) => [() => mul(g, dy, sub(g, output, square(g, output)))],
});

/** cap · tanh(x / cap): limits numbers smoothly to (-cap, cap), as Gemma 2 its logits. */
export const softCap: Op<[x: Tensor], { readonly cap: number }> = defineOp("softCap", 1, {
  shape: ([x], { cap }) => {
    if (!(cap > 0 && cap < Number.POSITIVE_INFINITY))
      throw new ShapeError(`${describe(x)} cannot be limited to ±${cap}; a positive number is needed`);
    return x.shape;
  },
  kernel: (_, { cap }) => ({ name: "soft_cap", value: cap }),
  build: ({ f, context }, [x], { cap }) => {
    const limited = f.ggml_tanh(context, cap === 1 ? x.handle : f.ggml_scale_bias(context, x.handle, 1 / cap, 0));
    return cap === 1 ? limited : f.ggml_scale_bias(context, limited, cap, 0);
  },
  readsOutput: true,
  vjp: (g, dy, { output, attributes }) => [() => softCapBack(g, dy, output, attributes)],
});

/** dy (1 - (y / cap)²), where y is the output. */
const softCapBack: Op<[dy: Tensor, y: Tensor], { readonly cap: number }> = defineOp("softCapBack", 2, {
  shape: ([dy]) => dy.shape,
  kernel: (_, { cap }) => ({ name: "soft_cap_back", value: cap }),
  composed: (g, [dy, y], { cap }) => mul(g, dy, scale(g, square(g, y), { factor: -1 / cap ** 2, bias: 1 })),
});

/** Hyperbolic tangent. */
export const tanh = (g: Graph, x: Tensor): Tensor => softCap(g, x, { cap: 1 });

/** An activation function, and the gradient of its input. */
interface Activation {
  readonly value: Op<[x: Tensor]>;
  readonly back: Op<[dy: Tensor, x: Tensor]>;
  /** Its number in the kernels. */
  readonly flags: number;
  /** ggml's op for the activation of a gate, times up. */
  readonly gated?: OpDefinition<[gate: Tensor, up: Tensor], undefined>["build"] | undefined;
}

const siluBack: Op<[dy: Tensor, x: Tensor]> = defineOp("siluBack", 2, {
  shape: ([dy]) => dy.shape,
  build: ({ f, context }, [dy, x]) => f.ggml_silu_back(context, dy.handle, x.handle),
});

/** x · sigmoid(x). */
export const silu: Op<[x: Tensor]> = defineOp("silu", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_silu(context, x.handle),
  vjp: (g, dy, { inputs: [x] }) => [() => siluBack(g, dy, x)],
});

const SILU: Activation = {
  value: silu,
  back: siluBack,
  flags: 0,
  gated: ({ f, context }, [gate, up]) => f.ggml_swiglu_split(context, gate.handle, up.handle),
};

/** How GELU is computed: `tanh` as transformers' gelu_new and gelu_pytorch_tanh, `none` with the error function, as its gelu. */
export type GeluApproximation = "tanh" | "none";

interface GeluForm {
  readonly flags: number;
  /** Φ(x). */
  readonly cumulative: (g: Graph, x: Tensor) => Tensor;
  /** Φ'(x). @param cumulative Φ(x) */
  readonly density: (g: Graph, x: Tensor, cumulative: Tensor) => Tensor;
  /** ggml's op, where it is accurate. */
  readonly build?: OpDefinition<[x: Tensor], undefined>["build"] | undefined;
}

/** x Φ(x), where Φ is the normal distribution's cumulative function, with the slope Φ(x) + x Φ'(x). */
function geluOf({ flags, cumulative, density, build }: GeluForm): Activation {
  const back: Op<[dy: Tensor, x: Tensor]> = defineOp("geluBack", 2, {
    shape: ([dy]) => dy.shape,
    kernel: () => ({ name: "gelu_back", flags }),
    composed: (g, [dy, x]) => {
      const probability = cumulative(g, x);
      return mul(g, dy, add(g, probability, mul(g, x, density(g, x, probability))));
    },
  });
  const value: Op<[x: Tensor]> = defineOp("gelu", 1, {
    shape: ([x]) => x.shape,
    kernel: () => ({ name: "gelu", flags }),
    build,
    composed: (g, [x]) => mul(g, x, cumulative(g, x)),
    isCheap: true,
    vjp: (g, dy, { inputs: [x] }) => [() => back(g, dy, x)],
  });
  return { value, back, flags };
}

/** The factors of x and x³ in Φ(x) ≈ sigmoid(2 √(2/π) (x + 0.044715 x³)) (Hendrycks & Gimpel 2016, section 2). */
const SLOPE = 2 * Math.sqrt(2 / Math.PI);
const CUBIC = SLOPE * 0.044715;

/**
 * The tails' exponent: Φ(-|x|) = exp(-z² - ln(1 + z/2) + P(1 / (1 + z/2))) / 2 with z = |x| / √2, within 1.2e-7 of it (Press et al.
 * 1992, section 6.2, erfcc). The coefficients of P from the highest power down.
 */
const TAIL = [
  0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
  -1.26551223,
] as const;

function normalCumulative(g: Graph, x: Tensor): Tensor {
  const logarithm = log(g, scale(g, abs(g, x), { factor: Math.SQRT1_2 / 2, bias: 1 })); // ln(1 + z/2)
  const t = exp(g, scale(g, logarithm, { factor: -1 }));
  const [highest, next, ...lower] = TAIL;
  const polynomial = lower.reduce<Tensor>(
    (value, coefficient) => scale(g, mul(g, value, t), { factor: 1, bias: coefficient }),
    scale(g, t, { factor: highest, bias: next }),
  );
  const exponent = sub(g, sub(g, polynomial, scale(g, square(g, x), { factor: 0.5 })), logarithm);
  const tail = exp(g, exponent); // 2 Φ(-|x|)
  const right = step(g, x);
  return add(g, mul(g, right, scale(g, tail, { factor: -1, bias: 1 })), scale(g, tail, { factor: 0.5 }));
}

/** ggml's GELU by tanh is not used: it looks values up in a table of half precision. */
const GELU: Readonly<Record<GeluApproximation, Activation>> = {
  tanh: geluOf({
    flags: 1,
    cumulative: (g, x) => sigmoid(g, mul(g, x, scale(g, square(g, x), { factor: CUBIC, bias: SLOPE }))),
    density: (g, x, probability) =>
      mul(g, sub(g, probability, square(g, probability)), scale(g, square(g, x), { factor: 3 * CUBIC, bias: SLOPE })),
  }),
  none: geluOf({
    flags: 2,
    cumulative: normalCumulative,
    density: (g, x) =>
      scale(g, exp(g, scale(g, square(g, x), { factor: -0.5 })), { factor: 1 / Math.sqrt(2 * Math.PI) }),
    build: ({ f, context }, [x]) => f.ggml_gelu_erf(context, x.handle),
  }),
};

/** Gaussian error linear unit: x Φ(x) (Hendrycks & Gimpel 2016). */
export const gelu = (g: Graph, x: Tensor, { approximation }: { readonly approximation: GeluApproximation }): Tensor =>
  GELU[approximation].value(g, x);

/** An activation of the gate, times up (Shazeer 2020, section 2). */
function gated(name: string, { value, back, flags, gated: build }: Activation): Op<[gate: Tensor, up: Tensor]> {
  /** The gradients of gate and up, concatenated. */
  const bothGradients: Op<[dy: Tensor, gate: Tensor, up: Tensor]> = defineOp(`${name}Back`, 3, {
    shape: ([, gate]) => [2 * elementCount(gate.shape)],
    kernel: () => ({ name: "gated_back", flags }),
  });
  return defineOp(name, 2, {
    shape: ([gate, up]) => {
      if (!sameShape(gate.shape, up.shape))
        throw new ShapeError(`${describe(gate)} gates ${describe(up)}: shapes differ`);
      return gate.shape;
    },
    kernel: () => ({ name: "gated", flags }),
    build,
    composed: (g, [gate, up]) => mul(g, value(g, gate), up),
    isCheap: true,
    vjp: (g, dy, { inputs: [gate, up] }) => {
      if (g.backend.kernels === undefined)
        return [() => back(g, mul(g, dy, up), gate), () => mul(g, dy, value(g, gate))];
      const both = once(() => bothGradients(g, dy, gate, up));
      return [
        () => part(g, both(), { offset: 0, to: gate.shape }),
        () => part(g, both(), { offset: elementCount(gate.shape), to: gate.shape }),
      ];
    },
  });
}

/** silu(gate) · up, the gated FFN activation of the Llama family (Shazeer 2020, eq. 6). */
export const swiglu = gated("swiglu", SILU);

const GEGLU = { tanh: gated("geglu", GELU.tanh), none: gated("geglu", GELU.none) };

/** gelu(gate) · up, Gemma's (Shazeer 2020, eq. 6). */
export const geglu = (
  g: Graph,
  gate: Tensor,
  up: Tensor,
  { approximation }: { readonly approximation: GeluApproximation },
): Tensor => GEGLU[approximation](g, gate, up);

/** ln(1 + eˣ), computed so that it does not overflow. */
export const softplus: Op<[x: Tensor]> = defineOp("softplus", 1, {
  shape: ([x]) => x.shape,
  composed: (g, [x]) => {
    const small = exp(g, scale(g, abs(g, x), { factor: -1 }));
    return add(g, relu(g, x), log(g, scale(g, small, { factor: 1, bias: 1 })));
  },
  vjp: (g, dy, { inputs: [x] }) => [() => mul(g, dy, sigmoid(g, x))],
});

/** eˣ - 1, accurate near 0. */
const expMinusOne: Op<[x: Tensor]> = defineOp("expMinusOne", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_expm1(context, x.handle),
  composed: (g, [x]) => mul(g, tanh(g, scale(g, x, { factor: 0.5 })), scale(g, exp(g, x), { factor: 1, bias: 1 })),
});

const notPositive = (g: Graph, x: Tensor): Tensor => scale(g, step(g, x), { factor: -1, bias: 1 });

/** Where x ≤ 0, e^min(x, epsilon) - 1 - x; 0 elsewhere. Its slope is eˣ - 1 where x < epsilon, and -1 from there to 0. */
const xieluTail: Op<[x: Tensor, epsilon: Tensor]> = defineOp("xieluTail", 2, {
  shape: ([x]) => x.shape,
  composed: (g, [x, epsilon]) => {
    const negated = relu(g, scale(g, x, { factor: -1 })); // max(-x, 0)
    // min(x, epsilon) = -(max(-x + epsilon, 0) - epsilon)
    const limited = scale(g, sub(g, relu(g, add(g, negated, epsilon)), epsilon), { factor: -1 });
    return mul(g, notPositive(g, x), add(g, expMinusOne(g, limited), negated));
  },
  vjp: (g, dy, { inputs: [x, epsilon] }) => [
    () => {
      const negated = relu(g, scale(g, x, { factor: -1 }));
      const power = mul(g, step(g, add(g, negated, epsilon)), exp(g, scale(g, negated, { factor: -1 }))); // 0 from epsilon on
      return mul(g, dy, sub(g, power, notPositive(g, x)));
    },
    null, // a constant
  ],
});

type XieluInputs = [x: Tensor, rising: Tensor, falling: Tensor, settings: Tensor];

/** xIELU in one pass. rising, falling: [1]; settings: beta and epsilon, [2]. */
const fusedXielu: Op<XieluInputs> = defineOp("xielu", 4, {
  shape: ([x]) => x.shape,
  kernel: () => ({ name: "xielu" }),
  vjp: (g, dy, { inputs: [x, rising, falling, settings] }) => {
    const all = once(() => fusedXieluBack(g, dy, x, rising, falling, settings));
    const count = elementCount(x.shape);
    return [
      () => part(g, all(), { offset: 0, to: x.shape }),
      () => sum(g, part(g, all(), { offset: count, to: [XIELU_PARTS] })),
      () => sum(g, part(g, all(), { offset: count + XIELU_PARTS, to: [XIELU_PARTS] })),
      null,
    ];
  },
});

/** How many partial sums the kernel computes for the gradients of `rising` and of `falling`. */
const XIELU_PARTS = 64;

/** The gradient of x, followed by partial sums of the gradients of `rising` and `falling`. */
const fusedXieluBack: Op<[dy: Tensor, ...XieluInputs]> = defineOp("xieluBack", 5, {
  shape: ([, x]) => [elementCount(x.shape) + 2 * XIELU_PARTS],
  kernel: () => ({ name: "xielu_back" }),
});

/**
 * xIELU (Huang & Schlag 2024), Apertus' activation: a x² + beta x where x > 0, b (e^min(x, epsilon) - 1 - x) + beta x elsewhere, with
 * a = softplus(alphaPositive) and b = beta + softplus(alphaNegative). beta and epsilon, which is negative, have no gradient.
 */
export function xielu(g: Graph, x: Tensor, parameters: XieluParameters): Tensor {
  const { alphaPositive, alphaNegative } = parameters;
  for (const parameter of [alphaPositive, alphaNegative, parameters.beta, parameters.epsilon])
    if (elementCount(parameter.shape) !== 1)
      throw new ShapeError(`${describe(parameter)} is not a parameter of xIELU: it must be one number`);
  // constants, although checkpoints store them: they are not trained
  const beta: Tensor = { ...parameters.beta, requiresGrad: false };
  const epsilon: Tensor = { ...parameters.epsilon, requiresGrad: false };
  const rising = softplus(g, alphaPositive);
  const falling = add(g, softplus(g, alphaNegative), beta);
  if (g.backend.kernels !== undefined) return fusedXielu(g, x, rising, falling, concatRows(g, [beta, epsilon]));
  const curves = add(g, mul(g, square(g, relu(g, x)), rising), mul(g, xieluTail(g, x, epsilon), falling));
  return add(g, curves, mul(g, x, beta));
}

/** xIELU's parameters, each of shape [1]. */
export interface XieluParameters {
  readonly alphaPositive: Tensor;
  readonly alphaNegative: Tensor;
  readonly beta: Tensor;
  readonly epsilon: Tensor;
}
