import { afterAll, beforeAll, vi } from "vitest";
import type { BackendOptions } from "../../src/ggml/index.js";
import { Graph, TensorStore } from "../../src/tensor/index.js";
import { openBackend } from "../tensor/backend.js";

/**
 * Opens a backend, as test/tensor/backend.ts does. Linear algebra frees its own graphs and stores between computations, which
 * Debian's software Vulkan driver does not survive: there they are freed after all tests.
 */
export function openAlgebraBackend(options: BackendOptions) {
  const opened = openBackend(options);
  if (options.device !== "vulkan") return opened;
  const freed = new Set<Graph | TensorStore>();
  function defer(this: Graph | TensorStore): void {
    freed.add(this);
  }
  beforeAll(() => {
    vi.spyOn(Graph.prototype, "free").mockImplementation(defer);
    vi.spyOn(TensorStore.prototype, "free").mockImplementation(defer);
  });
  afterAll(() => {
    vi.restoreAllMocks();
    for (const resource of freed) resource.free();
  });
  return opened;
}
