import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, symlinkSync } from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { describe, expect, it } from "vitest";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");
const main = path.join(root, "bin/coppice.cjs");
const model = path.join(root, "examples/tiny-teacher");
const env = { ...process.env, COPPICE_CACHE: path.join(temporaryDirectory(), "cache"), COPPICE_SERVE_PORT: "0" };
const flags = ["serve", model, "--device", "cpu", "--threads", "1", "--json"];

describe("coppice serve", () => {
  it("says where it listens, logs no prompt, and ends when it is told to, after what is under way", async () => {
    const child = spawn(process.execPath, [main, ...flags, "--name", "kite"], { env });
    let log = "";
    child.stderr.on("data", (chunk) => {
      log += chunk;
    });
    const [line = ""] = await new Promise<string[]>((resolve) => {
      createInterface({ input: child.stdout }).once("line", (text) => resolve([text]));
    });
    const { url } = JSON.parse(line) as { url: string };
    const models = (await (await fetch(`${url}/v1/models`)).json()) as { data: { id: string }[] };
    expect(models.data[0]?.id).toBe("kite");
    const body = JSON.stringify({ prompt: "a secret kite", max_tokens: 300 });
    const answer = fetch(`${url}/v1/completions`, { method: "POST", body, headers: { "x-request-id": "my-request" } });
    await new Promise((resolve) => setTimeout(resolve, 30));
    child.kill("SIGTERM");
    const code = await new Promise((resolve) => child.once("exit", resolve));
    expect((await answer).status).toBe(200);
    expect((await answer).headers.get("x-request-id")).toBe("my-request");
    expect(code).toBe(0);
    expect(log).toMatch(/"requestId":"my-request".*"status":200/);
    expect(log).not.toContain("secret");
  });

  it("ends when npx is told to, which hands the signal on to a shell only", async () => {
    const project = temporaryDirectory();
    mkdirSync(path.join(project, "node_modules/.bin"), { recursive: true });
    symlinkSync(root, path.join(project, "node_modules/coppice"));
    symlinkSync(main, path.join(project, "node_modules/.bin/coppice"));
    const child = spawn("npx", ["--offline", "coppice", ...flags], { env, cwd: project });
    const lines = createInterface({ input: child.stdout });
    const [line = ""] = await new Promise<string[]>((resolve) => lines.once("line", (text) => resolve([text])));
    const { url } = JSON.parse(line) as { url: string };
    const body = JSON.stringify({ prompt: "a kite", max_tokens: 300 });
    const answer = fetch(`${url}/v1/completions`, { method: "POST", body });
    // the server has this pipe open until it ends
    const ended = new Promise((resolve) => child.stderr.resume().once("end", resolve));
    await new Promise((resolve) => setTimeout(resolve, 30));
    child.kill("SIGTERM");
    expect((await answer).status).toBe(200);
    await ended;
    await expect(fetch(`${url}/v1/models`)).rejects.toThrow();
  });

  it.each([
    ["a certificate without its key", ["--tls-cert", "cert.pem"], 2, /--tls-key/],
    ["keys that are not there", ["--api-keys", "none.txt"], 2, /no file of keys none\.txt/],
    ["an address that is not its own", ["--host", "192.0.2.1"], 1, /192\.0\.2\.1/],
  ])("refuses %s", (_, args, status, message) => {
    const result = spawnSync(process.execPath, [main, ...flags, ...args], { env, encoding: "utf8" });
    expect(result.stderr).toMatch(message);
    expect(result.status).toBe(status);
  });
});
