import { Command } from "commander";
import type { FitCandidate } from "../devices/index.js";
import { DEVICES, THIS_MACHINE } from "../devices/profiles.js";
import { DEVICE_KINDS, type DeviceKind } from "../ggml/device-kinds.js";
import type { DevicePlan, PlanOutcome } from "../jobs/index.js";
import { type AxisSize, describeSize } from "../prune/sizes.js";
import { UsageError } from "../system/errors.js";
import { formatBytes, formatCount } from "../system/format.js";
import { action, example, table } from "./command.js";
import {
  addCommon,
  addData,
  addTarget,
  addValidation,
  type CommonFlags,
  type DataFlags,
  dataOptions,
  parseAtLeastOne,
  parsePositive,
  type TargetFlags,
  targetOptions,
} from "./options.js";

interface Flags extends Omit<CommonFlags, "device">, DataFlags, Omit<TargetFlags, "target"> {
  readonly device: DeviceKind | "auto";
  readonly target?: string | undefined;
  readonly contextSize?: number | undefined;
  readonly speed?: number | undefined;
  readonly all?: boolean | undefined;
}

const command = addCommon(
  addTarget(
    addValidation(
      addData(
        new Command("plan").description(
          "List the smaller architectures that meet a target, ranked by loss if there is data; or weigh cuts against types for a device",
        ),
        false,
      ),
    ),
    false,
  ),
)
  .argument("<model>", "model directory, directory with a config.json, or hub id")
  .option("--context-size <n>", "tokens of prompt and answer on the device (default: the device's)", parseAtLeastOne)
  .option("--speed <n>", "least tokens per second on the device", parsePositive)
  .option("--all", "all that was weighed for a device, not only the best of each kind");
const DEVICE_IDS = [THIS_MACHINE, ...DEVICES.map(({ id }) => id)];
for (const option of command.options)
  if (option.long === "--device") {
    option.choices(["auto", ...DEVICE_KINDS, ...DEVICE_IDS]);
    option.description = `where to compute; or what to plan for: ${DEVICE_IDS.join(", ")}`;
  }

export const planCommand = example(
  command.action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const forDevice = DEVICE_IDS.find((id) => id === (flags.device as string));
      if (forDevice !== undefined) {
        const { contextSize: contextLength, speed: tokensPerSecond } = flags;
        const { space } = targetOptions({ ...flags, target: "" });
        const { device: _, ...options } = job;
        const { planForDevice } = await import("../jobs/device-plan.js");
        const made = await planForDevice({ ...options, model, forDevice, contextLength, tokensPerSecond, space });
        print(made, (plan) => renderDevicePlan(plan, flags.all === true));
        return;
      }
      const { target } = flags;
      if (target === undefined) throw new UsageError("plan needs a --target, or a device: --device phone-8gb");
      const { plan } = await import("../jobs/plan.js");
      const outcome = await plan({ ...job, ...dataOptions(flags), ...targetOptions({ ...flags, target }), model });
      print(outcome, renderPlan);
    }),
  ),
  "coppice plan ./mistral-nemo --target 8.4B",
  "coppice plan ./model --target 0.67x --axes hidden,ffn,layers --data corpus.jsonl",
  "coppice plan ./model --device phone-8gb --context-size 4096",
);

function renderPlan({ candidates, parameters, original }: PlanOutcome): string {
  const axes = Object.keys(original);
  return [
    `${formatCount(parameters)} parameters now: ${axes.map((axis) => `${axis}=${sizeText(original[axis])}`).join(", ")}`,
    table(
      [...axes, "parameters", "loss as pruned", "distilled briefly"],
      candidates.map((c) => [
        ...axes.map((axis) => sizeText(c.sizes[axis] ?? original[axis])),
        String(c.parameters),
        c.loss?.toFixed(4) ?? "-",
        c.distilledLoss?.toFixed(4) ?? "-",
      ]),
    ),
  ].join("\n");
}

const sizeText = (size: AxisSize | undefined): string => (size === undefined ? "-" : describeSize(size));

/** The Pareto front, or all; the best is marked. */
function renderDevicePlan({ device, contextLength, candidates, best, parameters }: DevicePlan, all: boolean): string {
  const shown = candidates.filter(({ onFront }) => all || onFront);
  const advice =
    best === undefined
      ? "Nothing fits: cut more (--max-width-cut), or plan for less context (--context-size)."
      : `Best: ${formatCount(best.parameters)} parameters (${describe(best)}) as ${best.kind}: coppice compress MODEL --target ${device.id === THIS_MACHINE ? best.parameters : device.id} --data ...`;
  return [
    `${device.name}: ${formatBytes(device.usableBytes)} usable, ${(device.bandwidth / 1e9).toFixed(1)} GB/s; ${formatCount(parameters)} parameters now, a context of ${contextLength} tokens`,
    table(
      [
        "parameters",
        "of all",
        "hidden",
        "ffn",
        "layers",
        "type",
        "weights",
        "cache",
        "all memory",
        "tokens/s",
        "loss more",
        "",
      ],
      shown.map((c) => [
        ...[formatCount(c.parameters), `${Math.round(100 * c.share)} %`],
        ...[c.sizes.hidden, c.sizes.ffn, c.sizes.layers].map(sizeText),
        c.kind,
        ...[c.memory.weightBytes, c.memory.cacheBytes, c.memory.totalBytes].map(formatBytes),
        ...[c.tokensPerSecond.toPrecision(3), c.expectedLoss.toPrecision(2)],
        c === best ? "best" : c.fits ? "fits" : "does not fit",
      ]),
    ),
    advice,
  ].join("\n");
}

const describe = ({ sizes }: FitCandidate): string =>
  `hidden ${sizeText(sizes.hidden)}, FFN ${sizeText(sizes.ffn)}, ${sizeText(sizes.layers)} layers`;
