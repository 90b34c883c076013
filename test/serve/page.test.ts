import { existsSync } from "node:fs";
import path from "node:path";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type RunningServer, serve } from "../../src/serve/index.js";
import { temporaryDirectory } from "../temporary.js";

const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
process.env.COPPICE_CACHE = path.join(temporaryDirectory(), "cache");

/** Needs a browser: `apt-get install chromium`. */
describe.skipIf(executablePath === undefined)("the chat page in a browser", () => {
  let server: RunningServer;
  let browser: Browser;
  let page: Page;
  const problems: string[] = [];
  beforeAll(async () => {
    const directory = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
    const options = { device: "cpu", threads: 1, logLevel: "silent", slots: 1 } as const;
    server = await serve({ models: [directory], port: 0, ...options });
    browser = await chromium.launch({ executablePath: executablePath ?? "", args: ["--no-sandbox"] });
    page = await browser.newPage();
    page.on(
      "console",
      (message) =>
        message.type() === "error" && !message.text().includes("status of 400") && problems.push(message.text()),
    );
    page.on("pageerror", (error) => problems.push(`${error}`));
    page.on("request", (request) => request.url().startsWith(server.url) || problems.push(request.url()));
  }, 60_000);
  afterAll(async () => {
    await browser?.close();
    await server?.close();
  });

  it("answers as it is written, says how fast, and remembers the conversation", async () => {
    await page.goto(server.url);
    await expect.poll(() => page.getByLabel("Model").inputValue()).toBe("tiny-teacher");
    await page.getByText("Parameters").click();
    await page.getByLabel("Temperature").fill("0");
    await page.getByLabel("Most tokens").fill("20");
    await page.getByLabel("Message").fill("Tell me about a kite.");
    const asked = page.waitForRequest((request) => request.method() === "POST");
    await page.getByLabel("Message").press("Enter");
    expect((await asked).postDataJSON()).toMatchObject({ temperature: 0, max_tokens: 20, stream: true });
    await expect
      .poll(() => page.getByRole("status").textContent())
      .toMatch(/^20 tokens, [\d.]+ tokens\/s, first after/);
    const answer = await page.locator("article").nth(1).textContent();
    expect(answer?.length).toBeGreaterThan(10);
    await page.getByLabel("Message").fill("And then?");
    const next = page.waitForRequest((request) => request.method() === "POST");
    await page.getByRole("button", { name: "Send" }).click();
    expect((await next).postDataJSON().messages).toEqual([
      { role: "user", content: "Tell me about a kite." },
      { role: "assistant", content: answer },
      { role: "user", content: "And then?" },
    ]);
    await page.getByRole("button", { name: "New chat" }).click();
    expect(await page.locator("article").count()).toBe(0);
  });

  it("stops when it is told to, and shows what went wrong", async () => {
    await page.goto(server.url);
    await page.getByText("Parameters").click();
    const abort = new AbortController();
    const body = JSON.stringify({ prompt: "Once", max_tokens: 450, ignore_eos: true });
    const others = Array.from({ length: 20 }, () =>
      fetch(`${server.url}/v1/completions`, { method: "POST", body, signal: abort.signal }).catch(() => {}),
    ); // keep the only slot busy
    await page.getByLabel("Message").fill("Once");
    await page.getByLabel("Message").press("Enter");
    await page.getByRole("button", { name: "Stop" }).click();
    await expect.poll(() => page.getByRole("status").textContent()).toBe("Stopped.");
    abort.abort();
    await Promise.all(others);
    await page.getByLabel("Message").fill("long ".repeat(2000));
    await page.getByRole("button", { name: "Send" }).click();
    await expect
      .poll(() => page.locator("article.error").textContent())
      .toMatch(/maximum context length is \d+ tokens/);
  });

  it("fits a phone, and asks for nothing from elsewhere", async () => {
    await page.setViewportSize({ width: 360, height: 640 });
    await expect.poll(() => page.evaluate("document.documentElement.scrollWidth")).toBeLessThanOrEqual(360);
    await page.goto(`${server.url}/docs`);
    expect(await page.getByRole("heading", { name: "POST /v1/chat/completions" }).count()).toBe(1);
    expect(problems).toEqual([]);
  });
});
