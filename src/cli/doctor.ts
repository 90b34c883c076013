import type { BugReport } from "../jobs/bug-report.js";
import type { Diagnosis } from "../jobs/diagnosis.js";
import { UsageError } from "../system/errors.js";
import { writeJson } from "../system/files.js";
import { formatBytes } from "../system/format.js";
import { checkWritable, statOf } from "../system/places.js";
import { action } from "./action.js";
import { command } from "./command.js";
import { type CommonFlags, common } from "./options.js";
import { table } from "./table.js";

interface Flags extends CommonFlags {
  readonly build?: boolean | undefined;
  readonly bundle?: string | undefined;
}

export const doctorCommand = command("doctor", "Show which hardware and libraries were found and which are in use")
  .with(common)
  .option("--build", "compile the kernels for this processor first (needs a C compiler)")
  .option(
    "--bundle <file>",
    "also write what a bug report needs: versions, hardware, settings; no data, no secrets, ~ for your home",
  )
  .examples("coppice doctor --json", "coppice doctor --build", "coppice doctor --bundle coppice-report.json")
  .action(
    action(async ({ job, print }, flags: Flags) => {
      if (flags.build === true) {
        const { buildKernels } = await import("../ggml/index.js");
        const { file, compiler } = await buildKernels();
        process.stderr.write(`built by ${compiler}: ${file}\n`);
      }
      const { diagnose } = await import("../jobs/diagnosis.js");
      const diagnosis = await diagnose(job);
      if (flags.bundle === undefined) return print(diagnosis, render);
      const report = await writeBundle(flags.bundle, diagnosis);
      print(report, () => `${JSON.stringify(report, null, 2)}\nwritten to ${flags.bundle}: read it before you send it`);
    }),
  );

/** Writes what a bug report needs. @throws UsageError when the file is there already */
async function writeBundle(file: string, diagnosis: Diagnosis): Promise<BugReport> {
  const { bugReport } = await import("../jobs/bug-report.js");
  checkWritable(file, "--bundle");
  if (statOf(file) !== undefined) throw new UsageError(`${file} is there already: choose another --bundle`);
  const report = bugReport(diagnosis);
  writeJson(file, report);
  return report;
}

const NO_GPU = "No GPU was found. For NVIDIA: install its driver, and the CUDA 13 runtime with cuBLAS.";

const kernelsRow = ({ inUse, file, reason }: Diagnosis["kernels"]): string =>
  inUse === null ? `ggml's own are in use; ours are ${reason}` : `${inUse}, from ${file}`;

/** How many are used, and what was measured for that. */
function threadsRow({ inUse, milliseconds }: Diagnosis["threads"]): string {
  const times = Object.entries(milliseconds ?? {}).sort(([a], [b]) => Number(b) - Number(a));
  if (times.length === 0) return `${inUse}`;
  return `${inUse}; the same work took ${times.map(([threads, time]) => `${time.toFixed(1)} ms with ${threads}`).join(", ")}`;
}

/** The variants of the kernels beside each other; nothing where there is no choice. */
function kernelsTable({ times, inUse }: Diagnosis["kernels"]): string[] {
  if (times === undefined) return [];
  const best = times.milliseconds[times.chosen] ?? Number.NaN;
  const rows = Object.entries(times.milliseconds).map(([variant, milliseconds]) => [
    `${variant}${variant === inUse ? " (in use)" : ""}`,
    `${milliseconds.toFixed(1)} ms`,
    (best / milliseconds).toFixed(2),
  ]);
  return [table(["kernels", "part of a training step", "speed"], rows)];
}

function render(d: Diagnosis): string {
  const machine = table(
    ["", ""],
    [
      ["Node", `${d.node} on ${d.platform}`],
      ["processor", `${d.cpu}, ${d.cores} cores`],
      ["memory", `${formatBytes(d.memoryBytes)}, ${formatBytes(d.freeMemoryBytes)} free`],
      ["ggml", `${d.ggml.version} (${d.ggml.commit})`],
      ["kernels", kernelsRow(d.kernels)],
      ["threads", threadsRow(d.threads)],
      ["cache", `${d.cache}${d.cacheExists ? "" : " (empty)"}`],
    ],
  );
  const devices = table(
    ["device", "", "memory"],
    d.devices.map(({ name, description, memoryTotalBytes }) => [
      `${name}${name === d.chosenDevice ? " (in use)" : ""}`,
      description,
      formatBytes(memoryTotalBytes),
    ]),
  );
  return [
    machine,
    ...kernelsTable(d.kernels),
    devices,
    ...(d.devices.some(({ kind }) => kind !== "cpu") ? [] : [NO_GPU]),
  ].join("\n");
}
