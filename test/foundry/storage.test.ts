import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { Readable } from "node:stream";
import S3rver from "s3rver";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openStorage, type Storage } from "../../src/foundry/storage.js";
import { temporaryDirectory } from "../temporary.js";

const text = async (stream: Readable): Promise<string> => {
  let all = "";
  for await (const part of stream) all += part;
  return all;
};

describe.each(["a directory", "S3"])("files in %s", (kind) => {
  let server: S3rver | undefined;
  let open: () => Promise<Storage>;
  const root = temporaryDirectory();
  const before = { ...process.env };
  beforeAll(async () => {
    if (kind === "a directory") {
      open = () => openStorage(path.join(root, "files"), root);
      return;
    }
    server = new S3rver({
      port: 0,
      address: "127.0.0.1",
      silent: true,
      directory: path.join(root, "s3"),
      configureBuckets: [{ name: "foundry", configs: [] }],
    });
    const { port } = (await server.run()) as { port: number };
    Object.assign(process.env, {
      AWS_ENDPOINT_URL_S3: `http://127.0.0.1:${port}`,
      AWS_ACCESS_KEY_ID: "S3RVER",
      AWS_SECRET_ACCESS_KEY: "S3RVER",
    });
    let machine = 0;
    open = () => openStorage("s3://foundry/some/place", path.join(root, `machine-${machine++}`)); // with a cache of its own
  });
  afterAll(async () => {
    process.env = before;
    await server?.close();
  });

  it("are copied again when they have changed, also to as many bytes", async () => {
    const storage = await open();
    for (const content of ["one", "two", "three"]) {
      await storage.put("tenants/c/changing/x.txt", Readable.from([Buffer.from(content)]));
      const copy = path.join(await storage.local("tenants/c/changing"), "x.txt");
      expect(readFileSync(copy, "utf8")).toBe(content);
    }
  });

  it("can be removed but for one folder", async () => {
    const storage = await open();
    const put = (key: string) => storage.put(`tenants/d/jobs/${key}`, Readable.from([Buffer.from(key)]));
    for (const key of ["7/first/a.txt", "7/last/a.txt", "7/last/model/b.txt", "7/lastly/c.txt", "77/first/a.txt"])
      await put(key);
    await storage.removeAllBut("tenants/d/jobs/7", "last");
    await storage.removeAllBut("tenants/d/jobs/none", "last");
    for (const key of ["7/last/a.txt", "7/last/model/b.txt", "77/first/a.txt"])
      expect(await text(await storage.read(`tenants/d/jobs/${key}`))).toBe(key);
    for (const key of ["7/first/a.txt", "7/lastly/c.txt"])
      await expect(storage.local(`tenants/d/jobs/${key}`)).rejects.toThrow("the store has no");
  });

  it("can be read in whole and in part, and removed", async () => {
    const storage = await open();
    const content = Buffer.from("0123456789".repeat(1000));
    const stored = await storage.put("tenants/a/x.bin", Readable.from([content.subarray(0, 7), content.subarray(7)]));
    expect(stored).toEqual({ bytes: 10_000, sha256: createHash("sha256").update(content).digest("hex") });
    expect(await text(await storage.read("tenants/a/x.bin"))).toBe(content.toString());
    expect(await text(await storage.read("tenants/a/x.bin", { start: 8, end: 11 }))).toBe("8901");
    await storage.put("tenants/ab/y.bin", Readable.from([content]));
    const at = await (await open()).local("tenants/a");
    expect(readFileSync(path.join(at, "x.bin"))).toEqual(content);
    expect(readdirSync(at)).toEqual(["x.bin"]);
    const copied = path.join(await storage.local("tenants/a"), "x.bin");
    await storage.remove("tenants/a");
    expect(existsSync(copied)).toBe(false); // nor does a copy of it stay on this machine
    await expect((await open()).local("tenants/a")).rejects.toThrow("the store has no tenants/a");
    expect(await text(await storage.read("tenants/ab/y.bin"))).toHaveLength(10_000);
  });

  it("leave nothing behind when their source fails", async () => {
    const storage = await open();
    const broken = new Readable({
      read() {
        this.push("half");
        this.destroy(new Error("gone"));
      },
    });
    await expect(storage.put("tenants/c/z.bin", broken)).rejects.toThrow("gone");
    const atOnce = new Readable({
      read() {
        this.destroy(new Error("gone"));
      },
    });
    await expect(storage.put("tenants/c/z.bin", atOnce)).rejects.toThrow("gone");
    await expect(storage.local("tenants/c/z.bin")).rejects.toThrow("the store has no");
    const left = () => readdirSync(root, { recursive: true }).filter((name) => `${name}`.includes("z.bin"));
    await expect.poll(left).toEqual([]);
  });

  it("are refused under keys that lead elsewhere", async () => {
    const storage = await open();
    for (const key of ["../x", "a/../../x", "/etc/passwd", "a//b", "", "a/.hidden", "a\\b", "a\0b"])
      await expect(storage.put(key, Readable.from(["x"])), key).rejects.toThrow("is not a valid key");
  });

  it("of a workspace are found by the next worker, without deleted ones", async () => {
    const one = await (await open()).workspace("workspaces/job", 1);
    mkdirSync(path.join(one.path, "checkpoints/step-1"), { recursive: true });
    writeFileSync(path.join(one.path, "run.json"), "{}");
    writeFileSync(path.join(one.path, "checkpoints/step-1/state.json"), "1");
    await one.save();
    rmSync(path.join(one.path, "checkpoints/step-1"), { recursive: true });
    mkdirSync(path.join(one.path, "checkpoints/step-2"));
    writeFileSync(path.join(one.path, "checkpoints/step-2/state.json"), "2");
    writeFileSync(path.join(one.path, "run.json"), '{"a":1}');
    await one.save();
    const other = await (await open()).workspace("workspaces/job", 2);
    expect(readFileSync(path.join(other.path, "run.json"), "utf8")).toBe('{"a":1}');
    expect(readFileSync(path.join(other.path, "checkpoints/step-2/state.json"), "utf8")).toBe("2");
    expect(existsSync(path.join(other.path, "checkpoints/step-1/state.json"))).toBe(false);
    await other.discard();
    expect(readdirSync((await (await open()).workspace("workspaces/job", 3)).path)).toEqual([]);
  });

  it("of a workspace are safe from a worker that was taken for dead", async () => {
    const zombie = await (await open()).workspace("workspaces/other", 1);
    writeFileSync(path.join(zombie.path, "run.json"), "1");
    await zombie.save();
    const heir = await (await open()).workspace("workspaces/other", 2);
    writeFileSync(path.join(heir.path, "run.json"), "2");
    await heir.save();
    try {
      writeFileSync(path.join(zombie.path, "run.json"), "late"); // its directory on a shared disk is gone
    } catch {}
    await zombie.save().catch(() => {});
    await (await open()).workspace("workspaces/other", 1); // a worker that wakes up late
    expect(readFileSync(path.join(heir.path, "run.json"), "utf8")).toBe("2");
    const next = await (await open()).workspace("workspaces/other", 3);
    expect(readFileSync(path.join(next.path, "run.json"), "utf8")).toBe("2");
    await next.discard();
  });

  it("of an incomplete save are ignored in favour of the attempt before", async () => {
    const one = await (await open()).workspace("workspaces/part", 1);
    writeFileSync(path.join(one.path, "a.json"), "1");
    await one.save();
    if (kind === "S3") await (await open()).put("workspaces/part/attempt-2/b.json", Readable.from(["2"]));
    const next = await (await open()).workspace("workspaces/part", 3);
    expect(readdirSync(next.path)).toEqual(["a.json"]);
    expect(readFileSync(path.join(next.path, "a.json"), "utf8")).toBe("1");
    await next.discard();
  });
});
