// Builds the optional kernels in C where there is a compiler. Without them everything works, more slowly.
import { existsSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { kernelFileName, writableKernelDirectory } from "../dist/ggml/kernels.js";
import { buildKernels } from "../dist/ggml/kernels-build.js";

try {
  const known = path.join(writableKernelDirectory(), kernelFileName());
  if (existsSync(known)) console.error(`kernels: ${known} is of the same source`);
  else {
    const { file, compiler } = await buildKernels();
    console.error(`kernels: built by ${compiler}: ${file}`);
  }
} catch (error) {
  console.error(`kernels: not built, ggml's own are used: ${error.message}`);
}
process.exit(0);
