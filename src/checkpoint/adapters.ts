import { existsSync } from "node:fs";
import path from "node:path";
import { CoppiceError, UsageError } from "../system/errors.js";
import { readJsonObject } from "./json.js";

/** Which LoRA adapters a model's name asks for. */

/** Before each adapter in a model's name: `MODEL+lora:ADAPTER` or `MODEL+lora:ADAPTER=SCALE`. */
const MARK = "+lora:";
export const ADAPTER_CONFIG = "adapter_config.json";

/** A model's name and the adapters that are to be merged into it. */
export interface AdaptedName {
  readonly base: string;
  /** Each a directory or hub id, and what its change is multiplied with. */
  readonly adapters: readonly { readonly name: string; readonly scale: number }[];
}

/** Takes a model's name apart. @throws UsageError for a scale that is no number */
export function splitAdapters(name: string): AdaptedName {
  const [base = "", ...adapters] = name.split(MARK);
  return {
    base,
    adapters: adapters.map((adapter) => {
      const [, at = adapter, scale] = /^(.*)=([^=/\\]+)$/.exec(adapter) ?? [];
      if (scale !== undefined && !Number.isFinite(Number(scale)))
        throw new UsageError(`the scale of the adapter ${at} is ${scale}, which is no number`);
      return { name: at, scale: scale === undefined ? 1 : Number(scale) };
    }),
  };
}

/** Puts a model's name together again. */
export const joinAdapters = ({ base, adapters }: AdaptedName): string =>
  base + adapters.map(({ name, scale }) => MARK + name + (scale === 1 ? "" : `=${scale}`)).join("");

/** How strongly each adapter of a model's name is merged: what its files do not say of it. */
export const adapterScales = (model: string): number[] => splitAdapters(model).adapters.map(({ scale }) => scale);

/** A model's name with more adapters, each `ADAPTER` or `ADAPTER=SCALE`. */
export const withAdapters = (model: string, adapters: readonly string[] = []): string =>
  model + adapters.map((adapter) => MARK + adapter).join("");

export const isAdapter = (directory: string): boolean => existsSync(path.join(directory, ADAPTER_CONFIG));

/** What to say of an adapter where a model is wanted. */
export function notAModel(directory: string): CoppiceError {
  const { base_model_name_or_path: base } = readJsonObject(path.join(directory, ADAPTER_CONFIG));
  const model = typeof base === "string" && base !== "" ? base : "a model that its adapter_config.json does not name";
  return new CoppiceError(
    `${directory} is a LoRA adapter of ${model}, not a model: give that model, and the adapter by --lora ${directory}`,
  );
}
