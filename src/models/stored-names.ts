import type { TensorSource } from "../checkpoint/index.js";
import { FormatError } from "../system/errors.js";
import type { Model } from "./architecture.js";

/** Matches the names of a checkpoint's tensors to a model's parameters. */

/** Prefixes of names. Compilers, trainers and wrappers add them, and saving a part of a model removes them. */
const PREFIX = /^(_orig_mod|module|language_model|text_model|model|transformer|gpt_neox)\./;

/** A name without its prefixes. */
export function bareName(name: string): string {
  let bare = name;
  while (PREFIX.test(bare)) bare = bare.replace(PREFIX, "");
  return bare;
}

/** Buffers that old versions of transformers wrote: they follow from the configuration. */
const BUFFER = /(^|\.)(rotary_emb\.inv_freq|attn\.(bias|masked_bias)|attention\.(bias|masked_bias))$/;

/** Other names of the head in some versions of transformers (GPT-NeoX). */
const HEAD_ALIASES: Readonly<Record<string, string>> = { "lm_head.weight": "embed_out.weight" };

export interface StoredNames {
  /** The tensor of each parameter. */
  readonly tensorOf: ReadonlyMap<string, string>;
  /** Tensors that belong to no parameter, in the order of the files. */
  readonly others: readonly string[];
  /** Layers in the files beyond those of the configuration. */
  readonly surplusLayers: readonly number[];
  /** The prefixes of the names of the model's body and of its head, for writing them again. */
  readonly prefixes: { readonly body: string; readonly head: string };
}

/** Finds the tensor of each parameter. @throws FormatError when there are two candidates for one */
export function storedNames(model: Model, tensors: TensorSource["tensors"]): StoredNames {
  const parameters = new Map(model.parameters.map(({ name }) => [bareName(name), name]));
  const tensorOf = new Map<string, string>();
  const others: string[] = [];
  const surplus = new Set<number>();
  const layers = layersName(model);
  for (const tensor of tensors.keys()) {
    const bare = bareName(tensor);
    const parameter = parameters.get(bare) ?? parameters.get(HEAD_ALIASES[bare] ?? "");
    if (parameter !== undefined) {
      const before = tensorOf.get(parameter);
      if (before !== undefined) throw new FormatError(`${before} and ${tensor} may both be ${parameter}`);
      tensorOf.set(parameter, tensor);
      continue;
    }
    const layer = bare.startsWith(`${layers}.`) ? Number(bare.slice(layers.length + 1).split(".")[0]) : Number.NaN;
    if (BUFFER.test(bare)) continue;
    if (layer >= model.layerCount) surplus.add(layer);
    else others.push(tensor);
  }
  return { tensorOf, others, surplusLayers: [...surplus].sort((a, b) => a - b), prefixes: prefixesOf(model, tensorOf) };
}

/** The first part of a layer's bare names: `layers` or `h`. */
function layersName(model: Model): string {
  const first = model.parameters.find(({ layer }) => layer === 0);
  return bareName(first?.name ?? "layers.0").split(".")[0] ?? "layers";
}

/** The prefixes of a name (`model.`). */
const prefixOf = (name: string): string => name.slice(0, name.length - bareName(name).length);

function prefixesOf(model: Model, tensorOf: ReadonlyMap<string, string>): StoredNames["prefixes"] {
  const stored = (name: string | undefined) => prefixOf(tensorOf.get(name ?? "") ?? name ?? "");
  const body = model.parameters.find(({ name }) => prefixOf(name) !== "")?.name;
  const head = model.parameters.find(({ name }) => prefixOf(name) === "")?.name;
  return { body: stored(body), head: head === undefined ? "" : stored(head) };
}

/** The name of a parameter within a wrapped model. */
export const wrappedName = (parameter: string, { body, head }: StoredNames["prefixes"]): string =>
  `${prefixOf(parameter) === "" ? head : body}${bareName(parameter)}`;
