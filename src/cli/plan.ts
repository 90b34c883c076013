import type { FitCandidate } from "../devices/index.js";
import { DEVICES, THIS_MACHINE } from "../devices/profiles.js";
import { DEVICE_KINDS, type DeviceKind } from "../ggml/device-kinds.js";
import type { DevicePlan, JobOptions, PlanOutcome } from "../jobs/index.js";
import { type AxisSize, describeSize } from "../prune/sizes.js";
import { UsageError } from "../system/errors.js";
import { formatBytes, formatCount } from "../system/format.js";
import { action } from "./action.js";
import { command, type OptionGroup } from "./command.js";
import {
  adapters,
  type CommonFlags,
  common,
  type DataFlags,
  dataOptions,
  memory,
  optionalData,
  optionalTarget,
  type TargetFlags,
  targetOptions,
  validation,
} from "./options.js";
import { parseAtLeastOne, parsePositive } from "./parse.js";
import { table } from "./table.js";

interface Flags extends Omit<CommonFlags, "device">, DataFlags, Omit<TargetFlags, "target"> {
  readonly device: DeviceKind | "auto";
  readonly target?: string | undefined;
  readonly contextSize?: number | undefined;
  readonly speed?: number | undefined;
  readonly all?: boolean | undefined;
}

const DEVICE_IDS = [THIS_MACHINE, ...DEVICES.map(({ id }) => id)];

/** Lets `--device` also name what to plan for. */
const plannedDevices: OptionGroup = (command) => {
  for (const option of command.options)
    if (option.long === "--device") {
      option.choices(["auto", ...DEVICE_KINDS, ...DEVICE_IDS]);
      option.description = `where to compute; or what to plan for: ${DEVICE_IDS.join(", ")}`;
    }
};

export const planCommand = command(
  "plan",
  "List the smaller architectures that meet a target, ranked by loss if there is data; or weigh cuts against types for a device",
)
  .with(optionalData, validation, optionalTarget, common, memory, plannedDevices, adapters)
  .argument("<model>", "model directory, directory with a config.json, or hub id")
  .option("--context-size <n>", "tokens of prompt and answer on the device (default: the device's)", parseAtLeastOne)
  .option("--speed <n>", "least tokens per second on the device", parsePositive)
  .option("--all", "list everything weighed for a device, not only the best of each kind")
  .examples(
    "coppice plan ./mistral-nemo --target 8.4B",
    "coppice plan ./model --target 0.67x --axes hidden,ffn,layers --data corpus.jsonl",
    "coppice plan ./model --device phone-8gb --context-size 4096",
  )
  .action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const forDevice = DEVICE_IDS.find((id) => id === (flags.device as string));
      refuseUnused(flags, forDevice);
      if (forDevice !== undefined)
        return print(await planFor(forDevice, model, flags, job), (plan) => renderDevicePlan(plan, model, flags));
      const { target } = flags;
      if (target === undefined) throw new UsageError("plan needs a --target, or a device: --device phone-8gb");
      const { plan } = await import("../jobs/plan.js");
      const outcome = await plan({ ...job, ...dataOptions(flags), ...targetOptions({ ...flags, target }), model });
      print(outcome, renderPlan);
    }),
  );

/** What a plan for a device makes no use of, and what only that does. */
const WITHOUT_DEVICE = [
  "target",
  "bits",
  "data",
  "validation",
  "start",
  "refitSamples",
  "perLayer",
  "candidates",
  "searchTokens",
  "samples",
  "scores",
  "depth",
  "field",
  "separator",
  "devices",
  "memory",
];
const WITH_DEVICE = ["contextSize", "speed", "all"];

/** @throws UsageError naming an option that would change nothing */
function refuseUnused(flags: Flags, forDevice: string | undefined): void {
  const given: Readonly<Record<string, unknown>> = { ...flags };
  const unused = (forDevice === undefined ? WITH_DEVICE : WITHOUT_DEVICE).find((name) => given[name] !== undefined);
  if (unused === undefined) return;
  const option = `--${unused.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
  throw new UsageError(
    forDevice === undefined
      ? `${option} is for a plan for a device (--device phone-8gb), and would change nothing here`
      : `${option} would change nothing: a plan for ${forDevice} weighs cuts against types without it`,
  );
}

async function planFor(forDevice: string, model: string, flags: Flags, job: JobOptions): Promise<DevicePlan> {
  const { contextSize: contextLength, speed: tokensPerSecond } = flags;
  const { space } = targetOptions({ ...flags, target: "" });
  const { device: _, ...options } = job; // it computes nothing
  const { planForDevice } = await import("../jobs/device-plan.js");
  return planForDevice({ ...options, model, forDevice, contextLength, tokensPerSecond, space });
}

function renderPlan({ candidates, parameters, original }: PlanOutcome): string {
  const axes = Object.keys(original);
  return [
    `${formatCount(parameters)} parameters now: ${axes.map((axis) => `${axis}=${sizeText(original[axis])}`).join(", ")}`,
    table(
      [...axes, "parameters", "of all", "loss as pruned", "refitted", "distilled briefly"],
      candidates.map((c) => [
        ...axes.map((axis) => sizeText(c.sizes[axis] ?? original[axis])),
        String(c.parameters),
        `${((100 * c.parameters) / parameters).toFixed(1)} %`,
        c.loss?.toFixed(4) ?? "-",
        c.refittedLoss?.toFixed(4) ?? "-",
        c.distilledLoss?.toFixed(4) ?? "-",
      ]),
    ),
  ].join("\n");
}

const sizeText = (size: AxisSize | undefined): string => (size === undefined ? "-" : describeSize(size));

/** The Pareto front, or all; the best is marked. */
function renderDevicePlan(plan: DevicePlan, model: string, flags: Flags): string {
  const { device, contextLength, candidates, best, parameters } = plan;
  const all = flags.all === true;
  const head = ["parameters", "of all", "hidden", "ffn", "layers", "type"];
  const costs = ["weights", "cache", "all memory", "tokens/s", "loss added", ""];
  return [
    `${device.name}: ${formatBytes(device.usableBytes)} usable, ${(device.bandwidth / 1e9).toFixed(1)} GB/s; ${formatCount(parameters)} parameters now, a context of ${contextLength} tokens`,
    table(
      [...head, ...costs],
      candidates.filter(({ onFront }) => all || onFront).map((candidate) => fitRow(candidate, best)),
    ),
    best === undefined
      ? "Nothing fits: cut more (--max-width-cut), or plan for less context (--context-size)."
      : `Best: ${formatCount(best.parameters)} parameters (${describe(best)}) as ${best.kind}: ${commandFor(plan, best, model, flags)}`,
  ].join("\n");
}

/** Options that decide on what is weighed. */
const WEIGHED = ["contextSize", "speed", "axes", "divisors", "maxWidthCut", "maxDepthCut", "tolerance"];

/** The command that makes what is planned: compress knows the device, but weighs other contexts, speeds and cuts otherwise. */
function commandFor({ device }: DevicePlan, best: FitCandidate, model: string, flags: Flags): string {
  const { sizes, kind, share } = best;
  if (share === 1) return `coppice quantize ${model} --type ${kind} --out FILE.gguf`;
  const given: Readonly<Record<string, unknown>> = { ...flags };
  const isKnown = device.id !== THIS_MACHINE && WEIGHED.every((name) => given[name] === undefined);
  const named = Object.entries(sizes).map(([axis, size]) => `${axis}=${sizeText(size)}`);
  const target = isKnown ? `--target ${device.id}` : `--target ${named.join(",")} --gguf ${kind}`;
  return `coppice compress ${model} ${target} --data ...`;
}

function fitRow(candidate: FitCandidate, best: FitCandidate | undefined): string[] {
  const { parameters, share, sizes, kind, memory, tokensPerSecond, expectedLoss, fits } = candidate;
  return [
    formatCount(parameters),
    `${Math.round(100 * share)} %`,
    sizeText(sizes.hidden),
    sizeText(sizes.ffn),
    sizeText(sizes.layers),
    kind,
    formatBytes(memory.weightBytes),
    formatBytes(memory.cacheBytes),
    formatBytes(memory.totalBytes),
    tokensPerSecond < 100 ? tokensPerSecond.toPrecision(3) : formatCount(tokensPerSecond),
    expectedLoss.toPrecision(2),
    candidate === best ? "best" : fits ? "fits" : "does not fit",
  ];
}

const describe = ({ sizes }: FitCandidate): string =>
  `hidden ${sizeText(sizes.hidden)}, FFN ${sizeText(sizes.ffn)}, ${sizeText(sizes.layers)} layers`;
