import { spawn } from "node:child_process";
import { mkdirSync, symlinkSync } from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { describe, expect, it } from "vitest";
import { temporaryDirectory } from "../temporary.js";
import { coppice } from "./command-line.js";

const root = path.resolve(import.meta.dirname, "../..");
const main = path.join(root, "bin/coppice.cjs");
const model = path.join(root, "examples/tiny-teacher");
process.env.COPPICE_CACHE = path.join(temporaryDirectory(), "cache");
process.env.COPPICE_SERVE_PORT = "0";
const flags = ["serve", model, "--device", "cpu", "--threads", "1", "--json"];

/** A streamed answer of which the beginning has come. */
function begunAnswer(url: string, prompt: string, headers: Record<string, string> = {}): Promise<Response> {
  const body = JSON.stringify({ prompt, max_tokens: 300, stream: true });
  return fetch(`${url}/v1/completions`, { method: "POST", body, headers });
}

describe("coppice serve", () => {
  it("says where it listens, logs no prompt, and ends when it is told to, after what is under way", async () => {
    const child = spawn(process.execPath, [main, ...flags, "--name", "kite"]);
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
    const answer = await begunAnswer(url, "a secret kite", { "x-request-id": "my-request" });
    const exited = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGTERM");
    expect(answer.status).toBe(200);
    expect(answer.headers.get("x-request-id")).toBe("my-request");
    expect(await answer.text()).toMatch(/data: \[DONE\]\s*$/);
    const code = await exited;
    expect(code).toBe(0);
    expect(log).toMatch(/"requestId":"my-request".*"status":200/);
    expect(log).not.toContain("secret");
  });

  it("ends when npx is told to, which hands the signal on to a shell only", async () => {
    const project = temporaryDirectory();
    mkdirSync(path.join(project, "node_modules/.bin"), { recursive: true });
    symlinkSync(root, path.join(project, "node_modules/coppice"));
    symlinkSync(main, path.join(project, "node_modules/.bin/coppice"));
    const child = spawn("npx", ["--offline", "coppice", ...flags], { cwd: project });
    const lines = createInterface({ input: child.stdout });
    const [line = ""] = await new Promise<string[]>((resolve) => lines.once("line", (text) => resolve([text])));
    const { url } = JSON.parse(line) as { url: string };
    const answer = await begunAnswer(url, "a kite");
    // the server has this pipe open until it ends
    const ended = new Promise((resolve) => child.stderr.resume().once("end", resolve));
    child.kill("SIGTERM");
    expect(answer.status).toBe(200);
    expect(await answer.text()).toMatch(/data: \[DONE\]\s*$/);
    await ended;
    await expect(fetch(`${url}/v1/models`)).rejects.toThrow();
  });

  it.each([
    ["a certificate without its key", ["--tls-cert", "cert.pem"], 2, /--tls-key/],
    ["keys that are not there", ["--api-keys", "none.txt"], 2, /no file of keys none\.txt/],
    ["an address that is not its own", ["--host", "192.0.2.1"], 1, /192\.0\.2\.1/],
  ])("refuses %s", async (_, args, status, message) => {
    const result = await coppice(...flags, ...args);
    expect(result.stderr).toMatch(message);
    expect(result.status).toBe(status);
  });
});
