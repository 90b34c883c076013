import path from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { quantizeWithLlamaCpp } from "../../bench/peers/llama-quantize.js";
import { openGguf, readTensor } from "../../src/checkpoint/index.js";
import { exportGguf, type FileKind } from "../../src/quantize/index.js";
import { fileTypeOf } from "../../src/quantize/recipes.js";
import { type AnyName, type AnySizes, writeAnyGguf } from "../any-gguf.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();
/** Rows that fill the types' blocks, layers enough that mixtures differ. */
const SIZES: Partial<AnySizes> = { hidden: 256, ffn: 256, layers: 8, heads: 8, kvHeads: 2 };
const COMMON: readonly FileKind[] = ["q8_0", "q4_k_m", "q3_k_m", "q3_k_l"];

const cases: readonly { name: AnyName; sizes?: Partial<AnySizes>; kinds: readonly FileKind[] }[] = [
  { name: "falcon", kinds: [...COMMON, "q4_k_s", "q5_k_m", "tq2_0"] },
  { name: "falcon", sizes: { layers: 32, hidden: 64, ffn: 64 }, kinds: COMMON },
  { name: "mamba", kinds: ["f16", "q4_k_m", "mxfp4_moe"] },
  { name: "jamba", kinds: [...COMMON, "q2_k", "iq3_s"] },
  { name: "dbrx", sizes: { layers: 2 }, kinds: [...COMMON, "mxfp4_moe"] },
  { name: "dbrx", sizes: { layers: 2, experts: 8 }, kinds: [...COMMON, "mxfp4_moe", "q2_k"] },
];

describe.each(cases)(
  "a file of $name ($sizes) is llama.cpp's own, bit by bit and key by key",
  ({ name, sizes, kinds }) => {
    const file = path.join(root, `${name}-${JSON.stringify(sizes ?? {}).replace(/\W/g, "")}.gguf`);
    beforeAll(() => writeAnyGguf(file, name, { ...SIZES, ...sizes }));

    it.each(kinds)("%s", async (kind) => {
      const [ours, theirs] = [`${file}-ours-${kind}.gguf`, `${file}-theirs-${kind}.gguf`];
      await exportGguf(ours, openGguf(file), { kind, threads: 2 });
      await quantizeWithLlamaCpp(file, theirs, fileTypeOf(kind), { threads: 2 });
      const [a, b] = [openGguf(ours), openGguf(theirs)];
      const typesOf = ({ tensors }: typeof a) => [...tensors].map(([tensor, { dtype }]) => `${tensor} ${dtype}`).sort();
      expect(typesOf(a)).toEqual(typesOf(b));
      for (const tensor of a.tensors.keys())
        expect(Buffer.compare(readTensor(a, tensor), readTensor(b, tensor)), tensor).toBe(0);
      expect(new Map([...a.metadata].sort())).toEqual(new Map([...b.metadata].sort()));
    });
  },
);
