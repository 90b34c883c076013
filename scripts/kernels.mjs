// Builds the optional kernels in C where there is a compiler. Without them everything works, more slowly.
import process from "node:process";
import { buildKernels } from "../dist/ggml/kernels-build.js";

try {
  const { file, compiler } = await buildKernels();
  console.error(`kernels: built by ${compiler}: ${file}`);
} catch (error) {
  console.error(`kernels: not built, ggml's own are used: ${error.message}`);
}
process.exit(0);
