import { existsSync } from "node:fs";
import { availableParallelism, cpus, freemem, totalmem } from "node:os";
import { Command } from "commander";
import { cacheDirectory } from "../system/files.js";
import { formatBytes } from "../system/format.js";
import { action, example, table } from "./command.js";
import { addCommon, type CommonFlags } from "./options.js";

interface Flags extends CommonFlags {
  readonly build?: boolean | undefined;
}

/** Which kernels are in use and where they lie, or why none are. */
function kernelsRow({
  inUse,
  file,
  reason,
}: {
  inUse: string | null;
  file?: string | undefined;
  reason?: string;
}): string {
  return inUse === null ? `ggml's own are in use; ours are ${reason}` : `${inUse}, from ${file}`;
}

export const doctorCommand = example(
  addCommon(new Command("doctor").description("Say what hardware and libraries were found and what is in use"))
    .option("--build", "compile the kernels for this processor first (needs a C compiler)")
    .action(
      action(async ({ print }, flags: Flags) => {
        const { availableKernels, Backend, buildKernels, libraryDirectories, listDevices, loadKernels, loadLibrary } =
          await import("../ggml/index.js");
        if (flags.build === true) {
          const built = await buildKernels();
          process.stderr.write(`built by ${built.compiler}: ${built.file}\n`);
        }
        const library = loadLibrary(flags.device);
        const backend = Backend.open(flags);
        const chosen = backend.device.name;
        const inUse = backend.kernels?.variant ?? null;
        const file = backend.kernels?.file;
        backend.free();
        const status = loadKernels(library.functions);
        const result = {
          node: process.version,
          platform: `${process.platform} ${process.arch}`,
          cpu: cpus()[0]?.model ?? "unknown",
          cores: availableParallelism(),
          memoryBytes: totalmem(),
          freeMemoryBytes: freemem(),
          ggml: { version: library.version, commit: library.commit, directory: library.directory },
          installed: libraryDirectories("auto"),
          devices: listDevices(library).map(({ kind, name, description, memoryTotalBytes }) => ({
            kind,
            name,
            description,
            memoryTotalBytes,
          })),
          chosenDevice: chosen,
          kernels: {
            inUse,
            file,
            available: availableKernels(library.functions),
            ...(inUse === null && { reason: status.kernels === undefined ? status.reason : `${chosen} has its own` }),
          },
          cache: cacheDirectory(),
        };
        print(result, (r) =>
          [
            table(
              ["", ""],
              [
                ["Node", `${r.node} on ${r.platform}`],
                ["processor", `${r.cpu.trim()}, ${r.cores} cores`],
                ["memory", `${formatBytes(r.memoryBytes)}, ${formatBytes(r.freeMemoryBytes)} free`],
                ["ggml", `${r.ggml.version} (${r.ggml.commit})`],
                ["kernels", kernelsRow(r.kernels)],
                ["cache", `${r.cache}${existsSync(r.cache) ? "" : " (empty)"}`],
              ],
            ),
            table(
              ["device", "", "memory"],
              r.devices.map((d) => [
                `${d.name}${d.name === r.chosenDevice ? " (in use)" : ""}`,
                d.description,
                formatBytes(d.memoryTotalBytes),
              ]),
            ),
            ...(r.devices.some((d) => d.kind !== "cpu")
              ? []
              : ["No GPU was found. For NVIDIA: install its driver, and the CUDA 13 runtime with cuBLAS."]),
          ].join("\n"),
        );
      }),
    ),
  "coppice doctor --json",
  "coppice doctor --build",
);
