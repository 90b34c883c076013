import path from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { quantizeWithLlamaCpp } from "../../bench/peers/llama-quantize.js";
import { openGguf, readTensor } from "../../src/checkpoint/index.js";
import { exportGguf, FILE_KINDS, type FileKind } from "../../src/quantize/index.js";
import { fileTypeOf } from "../../src/quantize/recipes.js";
import { type AnyName, type AnySizes, writeAnyGguf } from "../any-gguf.js";
import { randomModel } from "../random-model.js";
import { temporaryDirectory } from "../temporary.js";

/** Kinds that llama.cpp's quantizer has too. */
const SHARED = FILE_KINDS.filter((kind) => !["f32", "mxfp4", "nvfp4"].includes(kind));
const NEED_IMPORTANCE: readonly FileKind[] = [
  "iq1_s",
  "iq1_m",
  "iq2_xxs",
  "iq2_xs",
  "iq2_s",
  "iq2_m",
  "iq3_xxs",
  "iq3_xs",
  "q2_k_s",
];

/** Quantizing to these searches lattices: seconds for a million weights. */
const SLOW: readonly FileKind[] = ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_xs"];

/** Models whose files have each kind in other places, and the kinds that are possible there. */
const casesIn = (root: string) => [
  {
    name: "with importances",
    model: randomModel(root, "grouped", {}),
    weighted: true,
    kinds: SHARED.filter((kind) => !SLOW.includes(kind)),
  },
  { name: "of few layers", model: randomModel(root, "shallow", { num_hidden_layers: 2 }), weighted: true, kinds: SLOW },
  {
    name: "without importances, tied, ungrouped",
    model: randomModel(root, "tied", { tie_word_embeddings: true, num_key_value_heads: 8, num_hidden_layers: 3 }),
    weighted: false,
    kinds: SHARED.filter((kind) => !NEED_IMPORTANCE.includes(kind)),
  },
  {
    name: "where rows do not fill the blocks",
    model: randomModel(root, "odd", { hidden_size: 96, intermediate_size: 288, num_hidden_layers: 2 }),
    weighted: true,
    kinds: SHARED.filter((kind) => !["q1_0", "nvfp4"].includes(kind)),
  },
];

/**
 * Quantizes by us and by llama.cpp's quantizer and compares the files, bit by bit.
 * @param sample the kinds to try; else every kind
 */
export function expectLlamaCppsBits(sample?: readonly FileKind[]): void {
  const root = temporaryDirectory();
  const cases = casesIn(root)
    .map(({ kinds, ...rest }) => ({
      ...rest,
      kinds: kinds.filter((kind) => sample === undefined || sample.includes(kind)),
    }))
    .filter(({ kinds }) => kinds.length > 0);
  describe.each(cases)("a file $name is llama.cpp's own, bit by bit", ({ name, model, weighted, kinds }) => {
    const { checkpoint, importance, named } = model;
    const f32 = path.join(root, `${path.basename(checkpoint.path)}-f32.gguf`);

    beforeAll(async () => {
      await exportGguf(f32, checkpoint, { kind: "f32" });
    });

    it.each(kinds)("%s", async (kind) => {
      const [ours, theirs] = ["ours", "theirs"].map((who) => path.join(root, `${who}-${name.length}-${kind}.gguf`)) as [
        string,
        string,
      ];
      await exportGguf(ours, checkpoint, { kind, importance: weighted ? importance : undefined });
      await quantizeWithLlamaCpp(f32, theirs, fileTypeOf(kind), {
        threads: 2,
        importance: weighted ? named : undefined,
      });
      const [a, b] = [openGguf(ours), openGguf(theirs)];
      expect(typesOf(a)).toEqual(typesOf(b));
      for (const tensor of a.tensors.keys())
        expect(Buffer.compare(readTensor(a, tensor), readTensor(b, tensor)), tensor).toBe(0);
      expect(a.metadata.get("general.file_type")).toEqual(b.metadata.get("general.file_type"));
    });
  });
}

const typesOf = ({ tensors }: ReturnType<typeof openGguf>) =>
  Object.fromEntries([...tensors].map(([tensor, { dtype }]) => [tensor, dtype]).sort());

/** Rows that fill the types' blocks, layers enough that mixtures differ. */
const ANY_SIZES: Partial<AnySizes> = { hidden: 256, ffn: 256, layers: 8, heads: 8, kvHeads: 2 };

export interface AnyCase {
  readonly name: AnyName;
  readonly sizes?: Partial<AnySizes>;
  readonly kinds: readonly FileKind[];
}

/** The same for files of architectures that only llama.cpp knows, and key by key. */
export function expectLlamaCppsBitsOfAny(cases: readonly AnyCase[]): void {
  const root = temporaryDirectory();
  describe.each(cases)(
    "a file of $name ($sizes) is llama.cpp's own, bit by bit and key by key",
    ({ name, sizes, kinds }) => {
      const file = path.join(root, `${name}-${JSON.stringify(sizes ?? {}).replace(/\W/g, "")}.gguf`);
      beforeAll(() => writeAnyGguf(file, name, { ...ANY_SIZES, ...sizes }));

      it.each(kinds)("%s", async (kind) => {
        const [ours, theirs] = [`${file}-ours-${kind}.gguf`, `${file}-theirs-${kind}.gguf`];
        await exportGguf(ours, openGguf(file), { kind, threads: 2 });
        await quantizeWithLlamaCpp(file, theirs, fileTypeOf(kind), { threads: 2 });
        const [a, b] = [openGguf(ours), openGguf(theirs)];
        expect(typesOf(a)).toEqual(typesOf(b));
        for (const tensor of a.tensors.keys())
          expect(Buffer.compare(readTensor(a, tensor), readTensor(b, tensor)), tensor).toBe(0);
        expect(new Map([...a.metadata].sort())).toEqual(new Map([...b.metadata].sort()));
      });
    },
  );
}
