/**
 * What a distillation step asks of a GPU: its kernels, the bytes that they move if nothing stays in a cache, and its operations, beside
 * the limits of a card. Nothing is computed, so that a software driver of Vulkan will do.
 *
 *     GGML_VK_VISIBLE_DEVICES=0 npx tsx bench/gpu-step.ts [--device vulkan] [--shapes 110M,135M] [--card H200]
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { Sequences, TokenStream } from "../src/data/index.js";
import { DISTILLATION_DEFAULTS, defaultTrainOptions, distillationObjective, Trainer } from "../src/distill/index.js";
import { VIEW } from "../src/ggml/device.js";
import { Backend, type DeviceKind, type Pointer } from "../src/ggml/index.js";
import { countParameters, initialize, modelFromConfig } from "../src/models/index.js";
import koffi from "../src/system/ffi.js";
import type { Graph } from "../src/tensor/index.js";
import { markdown } from "./lines.js";

const { values } = parseArgs({
  options: {
    device: { type: "string", default: "vulkan" },
    shapes: { type: "string", default: "110M,135M" },
    card: { type: "string", default: "H200" },
  },
});

/** Batches that fill a card's units, at sequences of 1024. */
const SHAPES: Readonly<Record<string, { readonly batch: number; readonly config: Readonly<Record<string, number>> }>> =
  {
    "15M": {
      batch: 4,
      config: {
        hidden_size: 288,
        intermediate_size: 768,
        num_hidden_layers: 6,
        num_attention_heads: 6,
        vocab_size: 32000,
      },
    },
    "110M": {
      batch: 4,
      config: {
        hidden_size: 768,
        intermediate_size: 2048,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        vocab_size: 32000,
      },
    },
    "135M": {
      batch: 4,
      config: {
        ...{ hidden_size: 576, intermediate_size: 1536, num_hidden_layers: 30, num_attention_heads: 9 },
        ...{ num_key_value_heads: 3, vocab_size: 49152 },
      },
    },
  };
const LENGTH = 1024;

/** Of the makers' data sheets: operations of dense bf16 products and bytes a second. A kernel takes about as long to begin everywhere. */
const CARDS: Readonly<Record<string, { readonly flops: number; readonly bandwidth: number }>> = {
  H200: { flops: 989e12, bandwidth: 4.8e12 },
  A100: { flops: 312e12, bandwidth: 2.0e12 },
  "RTX 4090": { flops: 165e12, bandwidth: 1.01e12 },
};
const KERNEL_SECONDS = 3e-6;

interface Kernel {
  readonly op: string;
  readonly bytes: number;
}

/** The kernels of a graph, with what they read and write. Which tensors a node reads, ggml tells only in its drawing of a graph. */
function kernelsOf(g: Graph): Kernel[] {
  const f = g.functions;
  const handle = g["compiled"]?.handle as Pointer;
  const folder = mkdtempSync(path.join(tmpdir(), "coppice-step-"));
  const file = path.join(folder, "graph.dot");
  koffi.load(null).func("ggml_graph_dump_dot", "void", ["intptr_t", "intptr_t", "str"])(handle, handle, file);
  const sources = new Map<bigint, bigint[]>();
  for (const [, from = "", to = ""] of readFileSync(file, "utf8").matchAll(/"(0x[0-9a-f]+)"[^"\n]*-> "(0x[0-9a-f]+)"/g))
    sources.set(BigInt(to), [...(sources.get(BigInt(to)) ?? []), BigInt(from)]);
  rmSync(folder, { recursive: true });
  return Array.from({ length: g.nodeCount }, (_, i) => f.ggml_graph_node(handle, i)).flatMap((node) => {
    const op = f.ggml_op_desc(node).toLowerCase();
    if (VIEW.test(op)) return [];
    const read = (sources.get(node) ?? []).reduce((sum, source) => sum + f.ggml_nbytes(source as Pointer), 0);
    return [{ op, bytes: read + f.ggml_nbytes(node) }];
  });
}

const card = CARDS[values.card];
if (card === undefined) throw new Error(`--card is one of ${Object.keys(CARDS).join(", ")}`);
const backend = Backend.open({ device: values.device as DeviceKind });
for (const name of values.shapes.split(",")) {
  const shape = SHAPES[name];
  if (shape === undefined) throw new Error(`--shapes are of ${Object.keys(SHAPES).join(", ")}`);
  const model = modelFromConfig({
    model_type: "llama",
    tie_word_embeddings: true,
    max_position_embeddings: LENGTH,
    ...shape.config,
  });
  const student = initialize(backend, model, 1);
  const teacher = initialize(backend, model, 2, { dtype: "bf16", trainable: false });
  const sequences = new Sequences(TokenStream.of(new Uint32Array(2 * shape.batch * LENGTH + 1), "zeros"), LENGTH);
  const options = {
    ...defaultTrainOptions(shape.config.hidden_size ?? 0, 1e6, LENGTH, shape.batch),
    computeType: "bf16" as const,
  };
  const objective = distillationObjective({ kind: "online", weights: teacher }, DISTILLATION_DEFAULTS);
  const trainer = new Trainer({ backend, student, objective, sequences, options });
  const kernels = trainer.graphs.flatMap(kernelsOf);
  trainer.free();
  student.free();
  teacher.free();

  const tokens = shape.batch * LENGTH;
  const flops = 8 * countParameters(model.parameters, model.sizes) * tokens;
  const bytes = kernels.reduce((sum, kernel) => sum + kernel.bytes, 0);
  const parts = {
    operations: flops / card.flops,
    bytes: bytes / card.bandwidth,
    kernels: kernels.length * KERNEL_SECONDS,
  };
  console.log(`\n${name}, ${shape.batch} x ${LENGTH} tokens, on ${values.card}\n`);
  const milliseconds = (seconds: number) => `${(1e3 * seconds).toFixed(2)} ms`;
  console.log(
    markdown(
      ["", "a step", "at the card's limit"],
      [
        ["operations of products", `${(flops / 1e12).toFixed(2)} T`, milliseconds(parts.operations)],
        ["bytes", `${(bytes / 1e9).toFixed(1)} GB`, milliseconds(parts.bytes)],
        ["kernels", String(kernels.length), milliseconds(parts.kernels)],
      ],
    ),
  );
  const byOp = new Map<string, { count: number; bytes: number }>();
  for (const { op, bytes } of kernels) {
    const { count, bytes: before } = byOp.get(op) ?? { count: 0, bytes: 0 };
    byOp.set(op, { count: count + 1, bytes: before + bytes });
  }
  const rows = [...byOp].map(([op, sums]) => ({ op, ...sums }));
  console.log(
    markdown(
      ["kernel", "count", "GB"],
      rows
        .sort((a, b) => b.bytes - a.bytes)
        .slice(0, 12)
        .map((row) => [row.op, String(row.count), (row.bytes / 1e9).toFixed(2)]),
    ),
  );
}
process.exit(0); // a software driver may fail where memory is freed
