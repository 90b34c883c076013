import { mkdirSync, renameSync } from "node:fs";
import path from "node:path";
import { expect, it } from "vitest";
import { Stages } from "../../src/jobs/stages.js";
import { temporaryDirectory } from "../temporary.js";

it("finished stages are not run again, and their results name files where their directory is now", async () => {
  const root = temporaryDirectory();
  const [before, after] = [path.join(root, "before"), path.join(root, "after")];
  mkdirSync(before);
  const result = (directory: string) => ({
    files: [path.join(directory, "gguf/a.gguf")],
    other: "/elsewhere/b",
    loss: 1.5,
  });
  const first = new Stages(path.join(before, "stages.json"));
  expect(await first.once("gguf", async () => result(before))).toEqual(result(before));
  await first.once("empty", async () => undefined);
  renameSync(before, after);
  const again = new Stages(path.join(after, "stages.json"));
  const never = async () => Promise.reject(new Error("done before"));
  expect(await again.once("gguf", never)).toEqual(result(after));
  expect(await again.once("empty", never)).toBeNull();
  expect(again.all.map(({ name }) => name)).toEqual(["gguf", "empty"]);
});
