import { mkdirSync, writeFileSync } from "node:fs";
import { totalmem } from "node:os";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { freeMemory, memoryLimit, takenInGroup } from "../../src/system/memory.js";
import { temporaryDirectory } from "../temporary.js";

describe("free memory", () => {
  it("is no more than there is", () => {
    expect(freeMemory()).toBeGreaterThan(0);
    expect(freeMemory()).toBeLessThanOrEqual(memoryLimit());
    expect(memoryLimit()).toBeLessThanOrEqual(totalmem());
  });

  it.runIf(process.platform === "linux")("of a container counts files in the cache as free", () => {
    const groups = path.join(temporaryDirectory(), "cgroup");
    mkdirSync(groups, { recursive: true });
    writeFileSync(path.join(groups, "memory.current"), "12000000000\n");
    writeFileSync(
      path.join(groups, "memory.stat"),
      "anon 2000000000\nfile 10000000000\ninactive_file 9000000000\nactive_file 500000000\nslab 1\n",
    );
    expect(takenInGroup(groups)).toBe(2_500_000_000);
  });

  it("of a system that does not say is left to Node", () => {
    expect(takenInGroup(path.join(temporaryDirectory(), "none"))).toBeUndefined();
  });
});
