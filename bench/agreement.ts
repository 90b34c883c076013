/**
 * Compares our evaluation of a model with what lm-evaluation-harness and transformers made of it (bench/peers/harness.py):
 * prompts, log-likelihoods, generated texts and scores. test/evaluate/agreement.test.ts does the same on the references that
 * are kept with the tests.
 *
 *   npx tsx bench/agreement.ts MODEL DATA REFERENCE.json
 */
import { createHash } from "node:crypto";
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { evaluate } from "../src/jobs/index.js";

interface Reference {
  readonly maxGenToks: number | null;
  readonly tasks: readonly {
    readonly task: string;
    readonly shots: number;
    readonly limit: number | null;
    readonly scores: Readonly<Record<string, Readonly<Record<string, number>>>>;
    /** By task: of each document the hash of each request, and the replies: [log-likelihood, is greedy] or a hash. */
    readonly samples: Readonly<
      Record<
        string,
        readonly { readonly prompts: readonly string[]; readonly replies: readonly (string | number[])[] }[]
      >
    >;
  }[];
}

/** How far a task's results are from the reference's. */
export interface Agreement {
  readonly task: string;
  readonly documents: number;
  readonly prompts: { readonly equal: number; readonly of: number };
  /** Largest difference of a log-likelihood, in nats, and of those in how many another token is the most probable. */
  readonly likelihoods: { readonly largest: number; readonly greedyDiffers: number; readonly of: number };
  readonly generations: { readonly equal: number; readonly of: number };
  /** Largest difference of a score or standard error, relative where above 1. */
  readonly scores: { readonly largest: number; readonly of: number };
}

interface SampleLine {
  readonly doc_id: number;
  readonly arguments: Readonly<Record<string, { readonly arg_0: string; readonly arg_1?: string }>>;
  readonly resps: readonly (readonly [string | readonly [string, string]])[];
}

const digest = (...parts: string[]): string => createHash("sha256").update(parts.join("\0")).digest("hex").slice(0, 12);

export async function agreement(model: string, data: string, file: string, cacheDir?: string): Promise<Agreement[]> {
  const reference = JSON.parse(readFileSync(file, "utf8")) as Reference;
  const results: Agreement[] = [];
  for (const { task, shots, limit, scores, samples } of reference.tasks) {
    const out = mkdtempSync(path.join(tmpdir(), "agreement-"));
    try {
      const outcome = await evaluate({
        models: [model],
        tasks: [`${task}:${shots}`],
        data,
        out,
        limit: limit ?? 1e9,
        device: "cpu",
        ...(reference.maxGenToks !== null && { maxTokens: reference.maxGenToks }),
        ...(cacheDir !== undefined && { cacheDir }),
      });
      const [folder = ""] = readdirSync(out).filter((name) => !name.includes("."));
      const files = readdirSync(path.join(out, folder));
      const written = files.find((name) => name.startsWith("results_")) ?? "";
      const ours = JSON.parse(readFileSync(path.join(out, folder, written), "utf8")) as {
        readonly results: Record<string, Record<string, number | string>>;
      };
      const compared = Object.entries(samples).map(([name, documents]) => {
        const lines = files.find((one) => one.startsWith(`samples_${name}_2`)) ?? "";
        return compareSamples(documents, readSamples(path.join(out, folder, lines)));
      });
      const sum = (of: (one: (typeof compared)[number]) => number) =>
        compared.reduce((total, one) => total + of(one), 0);
      results.push({
        task: `${task} (${shots})`,
        documents: outcome.models[0]?.tasks.reduce((total, one) => total + one.documents.measured, 0) ?? 0,
        prompts: { equal: sum((one) => one.promptsEqual), of: sum((one) => one.prompts) },
        likelihoods: {
          largest: Math.max(0, ...compared.map((one) => one.largest)),
          greedyDiffers: sum((one) => one.greedyDiffers),
          of: sum((one) => one.likelihoods),
        },
        generations: { equal: sum((one) => one.generationsEqual), of: sum((one) => one.generations) },
        scores: compareScores(scores, ours.results),
      });
    } finally {
      rmSync(out, { recursive: true });
    }
  }
  return results;
}

/** Samples by document; of several filters the first. */
function readSamples(file: string): Map<number, SampleLine> {
  const found = new Map<number, SampleLine>();
  for (const line of readFileSync(file, "utf8").split("\n")) {
    if (line === "") continue;
    const sample = JSON.parse(line) as SampleLine;
    if (!found.has(sample.doc_id)) found.set(sample.doc_id, sample);
  }
  return found;
}

function compareSamples(documents: Reference["tasks"][number]["samples"][string], ours: Map<number, SampleLine>) {
  const result = {
    prompts: 0,
    promptsEqual: 0,
    likelihoods: 0,
    largest: 0,
    greedyDiffers: 0,
    generations: 0,
    generationsEqual: 0,
  };
  documents.forEach(({ prompts, replies }, id) => {
    const sample = ours.get(id);
    const requests = Object.values(sample?.arguments ?? {});
    prompts.forEach((expected, i) => {
      const request = requests[i];
      const reply = replies[i];
      const own = sample?.resps[i]?.[0];
      const likelihood = typeof reply !== "string";
      const parts =
        request === undefined
          ? []
          : likelihood && request.arg_1 !== undefined
            ? [request.arg_0, request.arg_1]
            : [request.arg_0];
      result.prompts++;
      if (digest(...parts) === expected) result.promptsEqual++;
      else if (process.env.SHOW) appendFileSync("/dev/stderr", `${id} ${JSON.stringify(parts)}\n`);
      if (likelihood) {
        result.likelihoods++;
        const [value = Number.NaN, greedy] = reply ?? [];
        const difference = Math.abs(value - Number(own?.[0]));
        result.largest = Math.max(result.largest, Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference);
        if (greedy !== undefined && (greedy === 1) !== (own?.[1] === "True")) result.greedyDiffers++;
      } else {
        result.generations++;
        if (typeof own === "string" && digest(own) === reply) result.generationsEqual++;
      }
    });
  });
  return result;
}

function compareScores(
  expected: Reference["tasks"][number]["scores"],
  ours: Record<string, Record<string, number | string>>,
): Agreement["scores"] {
  let largest = 0;
  let count = 0;
  for (const [task, values] of Object.entries(expected))
    for (const [key, value] of Object.entries(values)) {
      if (!key.includes(",") || !Number.isFinite(value)) continue;
      const own = Number(ours[task]?.[key]);
      const difference = Math.abs(own - value) / Math.max(1, Math.abs(value));
      count++;
      if (!(difference <= largest)) largest = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
    }
  return { largest, of: count };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const [, , model = "", data = "", file = "", cache] = process.argv;
  for (const one of await agreement(model, data, file, cache))
    console.log(
      `${one.task.padEnd(22)} ${String(one.documents).padStart(6)} documents; prompts equal ${one.prompts.equal} of ${one.prompts.of}; log-likelihoods: largest difference ${one.likelihoods.largest.toExponential(1)} of ${one.likelihoods.of}, greedy differs ${one.likelihoods.greedyDiffers}; generations equal ${one.generations.equal} of ${one.generations.of}; scores: largest difference ${one.scores.largest.toExponential(1)} of ${one.scores.of}`,
    );
}
