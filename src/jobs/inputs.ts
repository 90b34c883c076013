import { existsSync, statSync } from "node:fs";
import path from "node:path";
import { namedTemplateFiles } from "../checkpoint/chat-templates.js";
import { adapterScales, HUB_PREFIX, splitAdapters } from "../checkpoint/index.js";
import { findDataFiles } from "../data/index.js";
import type { Checkpoint } from "../models/index.js";
import { cacheDirectory, hashBytes, hashFile } from "../system/files.js";
import { contentIdentity } from "../system/identity.js";
import { type Input, liesInside, realPath } from "../system/places.js";
import type { DataOptions } from "./open-data.js";

/** Files beside a model's weights that describe it. */
const DESCRIPTIVE_FILES = [
  "config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "generation_config.json",
  "chat_template.jinja",
  "chat_template.json",
  "special_tokens_map.json",
] as const;

/** A model's weights, and the directory of the files that describe it; a GGUF file describes itself. */
type ModelFiles = Pick<Checkpoint, "files"> & { readonly directory?: string | undefined };

/** All existing files of a model. */
export const modelFiles = ({ files, directory }: ModelFiles): string[] =>
  [...files, ...(directory === undefined ? [] : describingFiles(directory))].filter((file) => existsSync(file));

const describingFiles = (directory: string): string[] =>
  [...DESCRIPTIVE_FILES, ...namedTemplateFiles(directory)].map((name) => path.join(directory, name));

/** A model that a job reads, as its inputs. */
export const modelInput = (what: string, model: ModelFiles & Pick<Checkpoint, "path">): Input[] =>
  [splitAdapters(model.path).base, ...modelFiles(model)].map((file) => ({ what, path: file }));

/** Data that a job reads, as its inputs: each path as it was named, and every file that it stands for. Hub data is not local. */
export async function dataInputs({ data = [], validation = [] }: Partial<DataOptions>): Promise<Input[]> {
  const inputs: Input[] = [];
  for (const [what, names] of [
    ["the data", data],
    ["the validation data", validation],
  ] as const)
    for (const name of names.filter((each) => !each.startsWith(HUB_PREFIX))) {
      if (existsSync(name)) inputs.push({ what, path: name });
      for (const file of await findDataFiles([name])) inputs.push({ what, path: file });
    }
  return inputs;
}

/** A file or directory that a job reads, as its inputs: none if it was not named or does not exist. */
export const fileInput = (what: string, file: string | undefined): Input[] =>
  file !== undefined && existsSync(file) ? [{ what, path: file }] : [];

/** The same for a file that may also be one of the run's own: those are not inputs. */
export const outsideInput = (out: string, what: string, file: string | undefined): Input[] =>
  file !== undefined && liesInside(realPath(file), realPath(out)) ? [] : fileInput(what, file);

/** Identifies the content of a file of scores. */
export const scoresIdentity = (file: string): Promise<string> => hashFile(file);

/** Identifies a model's content: equal texts mean equal models, wherever their files are. */
export async function modelIdentity(
  checkpoint: Pick<Checkpoint, "files" | "directory"> & { readonly path?: string | undefined },
  cacheDir?: string,
): Promise<string> {
  const identities: [string, string][] = [];
  for (const file of modelFiles(checkpoint))
    identities.push([path.basename(file), await contentIdentity(file, cacheDirectory(cacheDir))]);
  const scales = adapterScales(checkpoint.path ?? "");
  return hashBytes(JSON.stringify([...identities.sort(), ...scales])).slice(0, 32);
}

/** Identifies the content of data, and how it is read. */
export async function dataIdentity(job: Partial<DataOptions>, inputs: readonly Input[]): Promise<string> {
  const { data, validation, field, separator } = job;
  const contents: [use: string, content: string][] = [];
  for (const { what, path: file } of inputs)
    if (statSync(file).isFile()) contents.push([what, await contentIdentity(file, cacheDirectory(job.cacheDir))]);
  const onHub = [data, validation].map((names) => names?.filter((name) => name.startsWith(HUB_PREFIX)));
  return hashBytes(JSON.stringify([contents, onHub, field, separator])).slice(0, 32);
}
