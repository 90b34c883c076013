import path from "node:path";
import { gguf } from "../src/checkpoint/gguf.js";
import { tokenizerMetadata } from "../src/checkpoint/gguf-tokenizer.js";
import { type GgufTensor, type GgufValue, openDirectory, writeGguf } from "../src/checkpoint/index.js";
import { Random } from "../src/system/random.js";

/** GGUF files of random weights in architectures that only llama.cpp knows; keys and tensors as its loader asks for them. */

const teacher = path.resolve(import.meta.dirname, "../examples/tiny-teacher");
const { config } = openDirectory(teacher);
const vocab = Number(config.vocab_size);

/** A model's sizes: hidden channels, neurons, layers, heads, key-value heads, experts. */
export interface AnySizes {
  readonly hidden: number;
  readonly ffn: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly experts: number;
  readonly context: number;
}

const SIZES: AnySizes = { hidden: 64, ffn: 96, layers: 2, heads: 4, kvHeads: 2, experts: 4, context: 512 };

type Keys = Readonly<Record<string, GgufValue>>;
/** Shapes by name, outermost axis first. */
type Shapes = Readonly<Record<string, readonly number[]>>;

interface AnyArchitecture {
  readonly keys: (sizes: AnySizes) => Keys;
  readonly tensors: (sizes: AnySizes) => Shapes;
  readonly layer: (sizes: AnySizes, index: number) => Shapes;
}

const [ssmState, ssmRank, ssmConvolution] = [16, 8, 4];
const mambaKeys = ({ hidden }: AnySizes): Keys => ({
  "ssm.conv_kernel": gguf.uint32(ssmConvolution),
  "ssm.inner_size": gguf.uint32(2 * hidden),
  "ssm.state_size": gguf.uint32(ssmState),
  "ssm.time_step_rank": gguf.uint32(ssmRank),
  "attention.layer_norm_rms_epsilon": gguf.float32(1e-5),
});
const mambaLayer = ({ hidden }: AnySizes): Shapes => ({
  "ssm_in.weight": [4 * hidden, hidden],
  "ssm_conv1d.weight": [2 * hidden, ssmConvolution],
  "ssm_conv1d.bias": [2 * hidden],
  "ssm_x.weight": [ssmRank + 2 * ssmState, 2 * hidden],
  "ssm_dt.weight": [2 * hidden, ssmRank],
  "ssm_dt.bias": [2 * hidden],
  ssm_a: [2 * hidden, ssmState],
  ssm_d: [2 * hidden],
  "ssm_out.weight": [hidden, 2 * hidden],
});
const qkvRows = ({ hidden, heads, kvHeads }: AnySizes): number => hidden + (2 * kvHeads * hidden) / heads;
/** Of a hybrid's layers, every second one attends. */
const attends = (index: number): boolean => index % 2 === 1;

const ARCHITECTURES = {
  falcon: {
    keys: () => ({ "attention.layer_norm_epsilon": gguf.float32(1e-5) }),
    tensors: ({ hidden }) => ({ "output_norm.weight": [hidden], "output_norm.bias": [hidden] }),
    layer: (sizes) => ({
      "attn_norm.weight": [sizes.hidden],
      "attn_norm.bias": [sizes.hidden],
      "attn_qkv.weight": [qkvRows(sizes), sizes.hidden],
      "attn_output.weight": [sizes.hidden, sizes.hidden],
      "ffn_up.weight": [sizes.ffn, sizes.hidden],
      "ffn_down.weight": [sizes.hidden, sizes.ffn],
    }),
  },
  mamba: {
    keys: (sizes) => ({
      ...mambaKeys(sizes),
      "attention.head_count": gguf.uint32(0),
      "attention.head_count_kv": gguf.uint32(0),
    }),
    tensors: ({ hidden }) => ({ "output_norm.weight": [hidden] }),
    layer: (sizes) => ({ "attn_norm.weight": [sizes.hidden], ...mambaLayer(sizes) }),
  },
  dbrx: {
    keys: ({ experts }) => ({
      "attention.layer_norm_epsilon": gguf.float32(1e-5),
      "attention.clamp_kqv": gguf.float32(8),
      expert_count: gguf.uint32(experts),
      expert_used_count: gguf.uint32(2),
    }),
    tensors: ({ hidden }) => ({ "output_norm.weight": [hidden], "output.weight": [vocab, hidden] }),
    layer: (sizes) => ({
      "attn_norm.weight": [sizes.hidden],
      "attn_qkv.weight": [qkvRows(sizes), sizes.hidden],
      "attn_output.weight": [sizes.hidden, sizes.hidden],
      "attn_output_norm.weight": [sizes.hidden],
      "ffn_gate_inp.weight": [sizes.experts, sizes.hidden],
      "ffn_gate_exps.weight": [sizes.experts, sizes.ffn, sizes.hidden],
      "ffn_down_exps.weight": [sizes.experts, sizes.hidden, sizes.ffn],
      "ffn_up_exps.weight": [sizes.experts, sizes.ffn, sizes.hidden],
    }),
  },
  jamba: {
    keys: (sizes) => ({
      ...mambaKeys(sizes),
      "attention.head_count_kv": gguf.numbers(
        "uint32",
        Array.from({ length: sizes.layers }, (_, i) => (attends(i) ? sizes.kvHeads : 0)),
      ),
    }),
    tensors: ({ hidden }) => ({ "output_norm.weight": [hidden], "output.weight": [vocab, hidden] }),
    layer: (sizes, index) => ({
      "attn_norm.weight": [sizes.hidden],
      ...(attends(index)
        ? {
            "attn_q.weight": [sizes.hidden, sizes.hidden],
            "attn_k.weight": [(sizes.hidden * sizes.kvHeads) / sizes.heads, sizes.hidden],
            "attn_v.weight": [(sizes.hidden * sizes.kvHeads) / sizes.heads, sizes.hidden],
            "attn_output.weight": [sizes.hidden, sizes.hidden],
          }
        : {
            ...mambaLayer(sizes),
            "ssm_dt_norm.weight": [ssmRank],
            "ssm_b_norm.weight": [ssmState],
            "ssm_c_norm.weight": [ssmState],
          }),
      "ffn_norm.weight": [sizes.hidden],
      "ffn_gate.weight": [sizes.ffn, sizes.hidden],
      "ffn_down.weight": [sizes.hidden, sizes.ffn],
      "ffn_up.weight": [sizes.ffn, sizes.hidden],
    }),
  },
} as const satisfies Record<string, AnyArchitecture>;

export type AnyName = keyof typeof ARCHITECTURES;
export const ANY_NAMES = Object.keys(ARCHITECTURES) as readonly AnyName[];

export interface AnyOptions extends Partial<AnySizes> {
  /** Added to the keys, or in their place; undefined leaves one out. Without the architecture's name. */
  readonly keys?: Readonly<Record<string, GgufValue | undefined>>;
  /** Whole keys, such as the tokenizer's. */
  readonly metadata?: Keys;
  /** `general.architecture`; the name of the model's by default. */
  readonly says?: string;
}

/** Writes such a file, f32. The tokenizer is the demo teacher's. */
export async function writeAnyGguf(file: string, name: AnyName, options: AnyOptions = {}): Promise<string> {
  const sizes: AnySizes = { ...SIZES, ...options };
  const architecture: AnyArchitecture = ARCHITECTURES[name];
  const said = options.says ?? name;
  const keys: Readonly<Record<string, GgufValue | undefined>> = {
    context_length: gguf.uint32(sizes.context),
    embedding_length: gguf.uint32(sizes.hidden),
    feed_forward_length: gguf.uint32(sizes.ffn),
    block_count: gguf.uint32(sizes.layers),
    "attention.head_count": gguf.uint32(sizes.heads),
    "attention.head_count_kv": gguf.uint32(sizes.kvHeads),
    ...architecture.keys(sizes),
    ...options.keys,
  };
  const metadata = new Map<string, GgufValue>([
    ["general.architecture", gguf.string(said)],
    ["general.file_type", gguf.uint32(0)],
    ...Object.entries(keys).flatMap(([key, value]): [string, GgufValue][] =>
      value === undefined ? [] : [[`${said}.${key}`, value]],
    ),
    ...tokenizerMetadata(teacher, config, vocab).entries,
    ...Object.entries(options.metadata ?? {}),
  ]);
  const shapes = new Map<string, readonly number[]>([
    ["token_embd.weight", [vocab, sizes.hidden]],
    ...Object.entries(architecture.tensors(sizes)),
    ...Array.from({ length: sizes.layers }, (_, i) =>
      Object.entries(architecture.layer(sizes, i)).map(([tensor, shape]) => [`blk.${i}.${tensor}`, shape] as const),
    ).flat(),
  ]);
  await writeGguf(file, metadata, [...shapes].map(randomTensor));
  return file;
}

const random = new Random(11, 1);

/** Gains near one, Mamba's decays negative, all else small. */
function randomTensor([name, shape]: readonly [string, readonly number[]]): GgufTensor {
  const count = shape.reduce((a, b) => a * b, 1);
  const base = /_norm\.weight$|ssm_d$/.test(name) ? 1 : name.endsWith("ssm_a") ? -1 : 0;
  const values = Float32Array.from({ length: count }, () => base + 0.1 * random.normal());
  return { name, dtype: "f32", shape, chunks: () => [new Uint8Array(values.buffer)] };
}
