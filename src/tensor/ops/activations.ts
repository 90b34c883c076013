import { ShapeError } from "../../system/errors.js";
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
  readsResult: true,
  vjp: (g, dy, { output }) => [() => mul(g, dy, sub(g, output, square(g, output)))],
});

/** cap · tanh(x / cap): numbers limited smoothly to (-cap, cap), as Gemma 2's logits. */
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
  readsResult: true,
  vjp: (g, dy, { output, attributes }) => [() => softCapBack(g, dy, output, attributes)],
});

/** dy (1 - (y / cap)²), y being the result. */
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
  /** By which the kernels know it. */
  readonly flags: number;
  /** ggml's own op for the function of a gate, times up. */
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
  /** Φ'(x), given Φ(x) as well. */
  readonly density: (g: Graph, x: Tensor, cumulative: Tensor) => Tensor;
  /** ggml's own op, where it is accurate. */
  readonly build?: OpDefinition<[x: Tensor], undefined>["build"] | undefined;
}

/** x Φ(x), Φ being the normal distribution's cumulative function, and its slope Φ(x) + x Φ'(x). */
function geluOf({ flags, cumulative, density, build }: GeluForm): Activation {
  const back: Op<[dy: Tensor, x: Tensor]> = defineOp("geluBack", 2, {
    shape: ([dy]) => dy.shape,
    kernel: () => ({ name: "gelu_back", flags }),
    composed: (g, [dy, x]) => {
      const below = cumulative(g, x);
      return mul(g, dy, add(g, below, mul(g, x, density(g, x, below))));
    },
  });
  const value: Op<[x: Tensor]> = defineOp("gelu", 1, {
    shape: ([x]) => x.shape,
    kernel: () => ({ name: "gelu", flags }),
    build,
    composed: (g, [x]) => mul(g, x, cumulative(g, x)),
    vjp: (g, dy, { inputs: [x] }) => [() => back(g, dy, x)],
  });
  return { value, back, flags };
}

/** Φ(x) ≈ sigmoid(2 √(2/π) (x + 0.044715 x³)), of which 2 √(2/π) and the factor of x³ (Hendrycks & Gimpel 2016, section 2). */
const SLOPE = 2 * Math.sqrt(2 / Math.PI);
const CUBIC = SLOPE * 0.044715;

/**
 * The tails' exponent: Φ(-|x|) = exp(-z² - ln(1 + z/2) + P(1 / (1 + z/2))) / 2 with z = |x| / √2, within 1.2e-7 of it (Press et al.
 * 1992, section 6.2, erfcc). The coefficients of P from the highest power down.
 */
const TAIL = [
  0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
  -1.26551223,
];

function normalCumulative(g: Graph, x: Tensor): Tensor {
  const logarithm = log(g, scale(g, abs(g, x), { factor: Math.SQRT1_2 / 2, bias: 1 })); // ln(1 + z/2)
  const t = exp(g, scale(g, logarithm, { factor: -1 }));
  const [highest = 0, ...others] = TAIL;
  const [next = 0, ...lower] = others;
  const polynomial = lower.reduce(
    (value, coefficient) => scale(g, mul(g, value, t), { factor: 1, bias: coefficient }),
    scale(g, t, { factor: highest, bias: next }),
  );
  const exponent = sub(g, sub(g, polynomial, scale(g, square(g, x), { factor: 0.5 })), logarithm);
  const tail = exp(g, exponent); // 2 Φ(-|x|)
  const right = step(g, x);
  return add(g, mul(g, right, scale(g, tail, { factor: -1, bias: 1 })), scale(g, tail, { factor: 0.5 }));
}

/** ggml's own GELU by tanh looks its values up in a table of half precision, so it is not used. */
const GELU: Readonly<Record<GeluApproximation, Activation>> = {
  tanh: geluOf({
    flags: 1,
    cumulative: (g, x) => sigmoid(g, mul(g, x, scale(g, square(g, x), { factor: CUBIC, bias: SLOPE }))),
    density: (g, x, below) =>
      mul(g, sub(g, below, square(g, below)), scale(g, square(g, x), { factor: 3 * CUBIC, bias: SLOPE })),
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
  /** The gradients of gate and up, one after the other. */
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
    vjp: (g, dy, { inputs: [gate, up] }) => {
      if (g.backend.kernels === undefined)
        return [() => back(g, mul(g, dy, up), gate), () => mul(g, dy, value(g, gate))];
      let both: Tensor | undefined;
      const half = (which: number) => () => {
        both ??= bothGradients(g, dy, gate, up);
        return part(g, both, { offset: which * elementCount(gate.shape), to: gate.shape });
      };
      return [half(0), half(1)];
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
    const below = relu(g, scale(g, x, { factor: -1 })); // max(-x, 0)
    // min(x, epsilon) = -(max(-x + epsilon, 0) - epsilon)
    const limited = scale(g, sub(g, relu(g, add(g, below, epsilon)), epsilon), { factor: -1 });
    return mul(g, notPositive(g, x), add(g, expMinusOne(g, limited), below));
  },
  vjp: (g, dy, { inputs: [x, epsilon] }) => [
    () => {
      const below = relu(g, scale(g, x, { factor: -1 }));
      const power = mul(g, step(g, add(g, below, epsilon)), exp(g, scale(g, below, { factor: -1 }))); // 0 from epsilon on
      return mul(g, dy, sub(g, power, notPositive(g, x)));
    },
    null, // a constant
  ],
});

type XieluInputs = [x: Tensor, rising: Tensor, falling: Tensor, settings: Tensor];

/** In one pass. rising, falling: [1]; settings: beta and epsilon. */
const fusedXielu: Op<XieluInputs> = defineOp("xielu", 4, {
  shape: ([x]) => x.shape,
  kernel: () => ({ name: "xielu" }),
  vjp: (g, dy, { inputs: [x, rising, falling, settings] }) => {
    let all: Tensor | undefined;
    const result = () => {
      all ??= fusedXieluBack(g, dy, x, rising, falling, settings);
      return all;
    };
    const count = elementCount(x.shape);
    const ofAlpha = (which: number) => () =>
      sum(g, part(g, result(), { offset: count + which * XIELU_PARTS, to: [XIELU_PARTS] }));
    return [() => part(g, result(), { offset: 0, to: x.shape }), ofAlpha(0), ofAlpha(1), null];
  },
});

/** In how many parts the kernel sums the gradients of what xIELU is shaped by. */
const XIELU_PARTS = 64;

/** The gradient of x, and after it parts of the sums that are those of `rising` and `falling`. */
const fusedXieluBack: Op<[dy: Tensor, ...XieluInputs]> = defineOp("xieluBack", 5, {
  shape: ([, x]) => [elementCount(x.shape) + 2 * XIELU_PARTS],
  kernel: () => ({ name: "xielu_back" }),
});

/**
 * xIELU (Huang & Schlag 2024), Apertus' activation: a x² + beta x where x > 0, b (e^min(x, epsilon) - 1 - x) + beta x elsewhere, with
 * a = softplus(alphaPositive) and b = beta + softplus(alphaNegative). Each number: [1]; epsilon is negative, and has no gradient.
 */
export function xielu(g: Graph, x: Tensor, numbers: XieluNumbers): Tensor {
  for (const number of Object.values<Tensor>({ ...numbers }))
    if (elementCount(number.shape) !== 1)
      throw new ShapeError(`${describe(number)} is not one number to shape xIELU by`);
  const { alphaPositive, alphaNegative } = numbers;
  // constants, though checkpoints store them: they are not trained
  const [beta, epsilon] = [numbers.beta, numbers.epsilon].map((constant) => ({ ...constant, requiresGrad: false })) as [
    Tensor,
    Tensor,
  ];
  const rising = softplus(g, alphaPositive);
  const falling = add(g, softplus(g, alphaNegative), beta);
  if (g.backend.kernels !== undefined) return fusedXielu(g, x, rising, falling, concatRows(g, [beta, epsilon]));
  const curves = add(g, mul(g, square(g, relu(g, x)), rising), mul(g, xieluTail(g, x, epsilon), falling));
  return add(g, curves, mul(g, x, beta));
}

export interface XieluNumbers {
  readonly alphaPositive: Tensor;
  readonly alphaNegative: Tensor;
  readonly beta: Tensor;
  readonly epsilon: Tensor;
}
