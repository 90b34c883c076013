import { afterAll } from "vitest";
import { Backend, type BackendOptions } from "../../src/ggml/index.js";

/**
 * Opens a backend for the tests of a `describe`. Everything passed to `freeLater` is freed after all of them, and the backend last:
 * Debian's software Vulkan driver corrupts memory when buffers are freed between computations.
 */
export function openBackend(options: BackendOptions) {
  const backend = Backend.open(options);
  const resources: { free(): void }[] = [];
  afterAll(() => {
    for (const resource of resources) resource.free();
    backend.free();
  });
  return { backend, freeLater: (...more: readonly { free(): void }[]) => void resources.push(...more) };
}
