import { existsSync } from "node:fs";
import path from "node:path";
import { CoppiceError, UsageError } from "../system/errors.js";
import { readJsonObject } from "./json.js";

/** LoRA adapters in a model's name. */

/** Precedes each adapter in a model's name: `MODEL+lora:ADAPTER` or `MODEL+lora:ADAPTER=SCALE`. */
const MARK = "+lora:";
export const ADAPTER_CONFIG = "adapter_config.json";

/** A model's name and the adapters to merge into it. */
export interface AdaptedName {
  readonly base: string;
  /** Each a directory or hub id, and the factor of its change. */
  readonly adapters: readonly { readonly name: string; readonly scale: number }[];
}

/** Splits a model's name. @throws UsageError for a scale that is not a number */
export function splitAdapters(name: string): AdaptedName {
  const [base = "", ...adapters] = name.split(MARK);
  return {
    base,
    adapters: adapters.map((adapter) => {
      const [, directory = adapter, scale] = /^(.*)=([^=/\\]+)$/.exec(adapter) ?? [];
      if (scale !== undefined && !Number.isFinite(Number(scale)))
        throw new UsageError(`the scale of the adapter ${directory} is ${scale}, which is not a number`);
      return { name: directory, scale: scale === undefined ? 1 : Number(scale) };
    }),
  };
}

/** The name that {@link splitAdapters} splits. */
export const joinAdapters = ({ base, adapters }: AdaptedName): string =>
  base + adapters.map(({ name, scale }) => MARK + name + (scale === 1 ? "" : `=${scale}`)).join("");

/** The scale of each adapter in a model's name: the one part of the merge that is not in files. */
export const adapterScales = (model: string): number[] => splitAdapters(model).adapters.map(({ scale }) => scale);

/** A model's name with adapters added, each `ADAPTER` or `ADAPTER=SCALE`. */
export const withAdapters = (model: string, adapters: readonly string[] = []): string =>
  model + adapters.map((adapter) => MARK + adapter).join("");

export const isAdapter = (directory: string): boolean => existsSync(path.join(directory, ADAPTER_CONFIG));

/** The error for an adapter where a model is expected. */
export function notAModel(directory: string): CoppiceError {
  const { base_model_name_or_path: base } = readJsonObject(path.join(directory, ADAPTER_CONFIG));
  const model = typeof base === "string" && base !== "" ? base : "a model that its adapter_config.json does not name";
  return new CoppiceError(
    `${directory} is a LoRA adapter of ${model}, not a model: give that model, and the adapter by --lora ${directory}`,
  );
}
