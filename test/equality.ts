import { expect } from "vitest";

/** Compares buffers and typed arrays that have the same bytes at once: one number after another takes seconds for a model. */
expect.addEqualityTesters([
  (a: unknown, b: unknown): true | undefined => {
    if (!ArrayBuffer.isView(a) || !ArrayBuffer.isView(b) || a.constructor !== b.constructor) return undefined;
    const [left, right] = [a, b].map((view) => Buffer.from(view.buffer, view.byteOffset, view.byteLength));
    return left!.equals(right!) ? true : undefined;
  },
]);
