import type { Diagnosis } from "../jobs/diagnosis.js";
import { formatBytes } from "../system/format.js";
import { action } from "./action.js";
import { command } from "./command.js";
import { type CommonFlags, common } from "./options.js";
import { table } from "./table.js";

interface Flags extends CommonFlags {
  readonly build?: boolean | undefined;
}

export const doctorCommand = command("doctor", "Show which hardware and libraries were found and which are in use")
  .with(common)
  .option("--build", "compile the kernels for this processor first (needs a C compiler)")
  .examples("coppice doctor --json", "coppice doctor --build")
  .action(
    action(async ({ job, print }, flags: Flags) => {
      if (flags.build === true) {
        const { buildKernels } = await import("../ggml/index.js");
        const { file, compiler } = await buildKernels();
        process.stderr.write(`built by ${compiler}: ${file}\n`);
      }
      const { diagnose } = await import("../jobs/diagnosis.js");
      print(diagnose(job), render);
    }),
  );

const NO_GPU = "No GPU was found. For NVIDIA: install its driver, and the CUDA 13 runtime with cuBLAS.";

function render(d: Diagnosis): string {
  const machine = table(
    ["", ""],
    [
      ["Node", `${d.node} on ${d.platform}`],
      ["processor", `${d.cpu}, ${d.cores} cores`],
      ["memory", `${formatBytes(d.memoryBytes)}, ${formatBytes(d.freeMemoryBytes)} free`],
      ["ggml", `${d.ggml.version} (${d.ggml.commit})`],
      ["kernels", d.kernels.inUse ?? `ggml's own are in use; ours are ${d.kernels.reason}`],
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
  return [machine, devices, ...(d.devices.some(({ kind }) => kind !== "cpu") ? [] : [NO_GPU])].join("\n");
}
