import type { TensorSource } from "../checkpoint/index.js";
import { FormatError } from "../system/errors.js";
import type { Model } from "./architecture.js";

/** How the names of a checkpoint's tensors relate to a model's parameters. */

/** What may stand before a name: compilers, trainers and wrappers add it, saving a part of a model takes it away. */
const PREFIX = /^(_orig_mod|module|language_model|text_model|model|transformer|gpt_neox)\./;

/** A name without all that may stand before it. */
export function bareName(name: string): string {
  let bare = name;
  while (PREFIX.test(bare)) bare = bare.replace(PREFIX, "");
  return bare;
}

/** Buffers that old versions of transformers wrote: they follow from the configuration. */
const BUFFER = /(^|\.)(rotary_emb\.inv_freq|attn\.(bias|masked_bias)|attention\.(bias|masked_bias))$/;

/** Versions of transformers differ in what they call a head (GPT-NeoX). */
const HEAD_ALIASES: Readonly<Record<string, string>> = { "lm_head.weight": "embed_out.weight" };

export interface StoredNames {
  /** The tensor of each parameter. */
  readonly tensorOf: ReadonlyMap<string, string>;
  /** Tensors of no parameter, in the order of the files. */
  readonly others: readonly string[];
  /** Layers in the files beyond those of the configuration. */
  readonly surplusLayers: readonly number[];
  /** What stands before the names of the model's body and of its head, for writing them again. */
  readonly prefixes: { readonly body: string; readonly head: string };
}

/** @throws FormatError when two tensors may be the same parameter */
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

/** `layers` or `h`: what a layer's names begin with, without prefixes. */
function layersName(model: Model): string {
  const first = model.parameters.find(({ layer }) => layer === 0);
  return bareName(first?.name ?? "layers.0").split(".")[0] ?? "layers";
}

/** Where a parameter's own prefix (`model.`) ends and its bare name begins. */
const ownPrefix = (name: string): string => name.slice(0, name.length - bareName(name).length);

function prefixesOf(model: Model, tensorOf: ReadonlyMap<string, string>): StoredNames["prefixes"] {
  const stored = (name: string | undefined) => ownPrefix(tensorOf.get(name ?? "") ?? name ?? "");
  const body = model.parameters.find(({ name }) => ownPrefix(name) !== "")?.name;
  const head = model.parameters.find(({ name }) => ownPrefix(name) === "")?.name;
  return { body: stored(body), head: head === undefined ? "" : stored(head) };
}

/** The name under which a parameter is written beside the rest of a wrapped model. */
export const wrappedName = (parameter: string, { body, head }: StoredNames["prefixes"]): string =>
  `${ownPrefix(parameter) === "" ? head : body}${bareName(parameter)}`;
