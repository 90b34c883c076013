import path from "node:path";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type RunningServer, serve } from "../../src/serve/index.js";
import { browserPath, lookAt, openPage } from "../pages.js";
import { temporaryDirectory } from "../temporary.js";

process.env.COPPICE_CACHE = path.join(temporaryDirectory(), "cache");

describe.skipIf(browserPath === undefined)("the chat page in a browser", () => {
  let server: RunningServer;
  let browser: Browser;
  let page: Page;
  let problems: string[];
  beforeAll(async () => {
    const directory = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
    const options = { device: "cpu", threads: 1, logLevel: "silent", slots: 1 } as const;
    server = await serve({ models: [directory], port: 0, ...options });
    ({ browser, page, problems } = await openPage(server.url));
  });
  afterAll(async () => {
    await browser?.close();
    await server?.close();
  });

  it("streams answers, shows their speed, and keeps the conversation", async () => {
    await page.goto(server.url);
    await expect.poll(() => page.getByLabel("Model").inputValue()).toBe("tiny-teacher");
    await page.getByText("Parameters").click();
    await page.getByLabel("Temperature").fill("0");
    await page.getByLabel("Max tokens").fill("20");
    await page.getByLabel("Message").fill("Tell me about a kite.");
    const request = page.waitForRequest((request) => request.method() === "POST");
    await page.getByLabel("Message").press("Enter");
    expect((await request).postDataJSON()).toMatchObject({ temperature: 0, max_tokens: 20, stream: true });
    await expect
      .poll(() => page.getByRole("status").textContent())
      .toMatch(/^20 tokens, [\d.]+ tokens\/s, first token after/);
    await lookAt(page, "chat/1-answered");
    const answer = await page.evaluate("JSON.parse(sessionStorage['coppice-chat']).turns[1].content");
    expect(`${answer}`.length).toBeGreaterThan(10);
    await page.getByLabel("Message").fill("And then?");
    const next = page.waitForRequest((request) => request.method() === "POST");
    await page.getByRole("button", { name: "Send" }).click();
    expect((await next).postDataJSON().messages).toEqual([
      { role: "user", content: "Tell me about a kite." },
      { role: "assistant", content: answer },
      { role: "user", content: "And then?" },
    ]);
    await page.getByRole("button", { name: "New chat" }).click();
    await expect.poll(() => page.locator("article").count()).toBe(0);
  });

  it("stops an answer, and shows errors", async () => {
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
    const failed = page.locator("article.error").last();
    await expect.poll(() => failed.textContent()).toMatch(/maximum context length is \d+ tokens/);
    await lookAt(page, "chat/2-refused");
    // the failed message stays, can be retried, and is no part of the next request
    const again = page.waitForRequest((request) => request.method() === "POST");
    await page.getByRole("button", { name: "Retry" }).click();
    expect((await again).postDataJSON().messages.at(-1).content).toMatch(/^long long/);
    await expect.poll(() => failed.textContent()).toMatch(/maximum context length/);
    // stopped while the answer is awaited, however fast the model is
    await page.route("**/v1/chat/completions", () => {});
    await page.getByLabel("Message").fill("Something short");
    const request = page.waitForRequest((request) => request.method() === "POST");
    await page.getByLabel("Message").press("Enter");
    expect((await request).postDataJSON().messages).toEqual([{ role: "user", content: "Something short" }]);
    await page.keyboard.press("Escape");
    await expect.poll(() => page.getByRole("status").textContent()).toBe("Stopped.");
    // a new chat, started while an answer is awaited, stays empty
    await page.getByLabel("Message").fill("Something else");
    await page.getByLabel("Message").press("Enter");
    await expect.poll(() => page.locator("article").count()).toBeGreaterThan(1);
    await page.getByRole("button", { name: "New chat" }).click();
    await expect.poll(() => page.getByRole("button", { name: "Send" }).count()).toBe(1);
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))");
    expect(await page.locator("article").count()).toBe(0);
    await page.unroute("**/v1/chat/completions");
  });

  it("shows Markdown without anything harmful, and edits and keeps the conversation", async () => {
    const markdown = [
      "A **list**:\n\n- one\n- two\n\n```js\nconst tree = '<b>';\n```",
      '<img src=x onerror="document.title=1"> [here](javascript:alert(1)) ![tracker](https://example.org/x.png)',
      "| a | b |\n| - | - |\n| 1 | 2 |",
    ].join("\n\n");
    const turns = [
      { role: "user", content: "Show me <i>all</i>" },
      { role: "assistant", content: markdown },
    ];
    await page.goto(`${server.url}/docs`); // of the same origin; leaving the chat would store its own turns
    await page.evaluate(`sessionStorage.setItem("coppice-chat", ${JSON.stringify(JSON.stringify({ turns }))})`);
    await page.goto(server.url);
    const answer = page.locator("article").nth(1);
    await expect.poll(() => answer.locator("li").count()).toBe(2);
    expect(await page.locator("article").first().textContent()).toContain("<i>all</i>");
    expect(await answer.locator("pre").textContent()).toBe("const tree = '<b>';\n");
    expect(await answer.locator("table td").allTextContents()).toEqual(["1", "2"]);
    expect(await answer.locator("img, a[href^='javascript']").count()).toBe(0);
    expect(await answer.textContent()).toContain("<img src=x onerror=");
    await lookAt(page, "chat/3-markdown");
    await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
    await answer.locator("button", { hasText: "Copy" }).first().click();
    await expect.poll(() => page.evaluate("navigator.clipboard.readText()")).toBe("const tree = '<b>';\n");
    // as on a page loaded over plain HTTP from another machine
    await page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })");
    await answer.getByRole("button", { name: "Copy" }).last().click();
    await page.getByLabel("Message").press("Control+v");
    expect(await page.getByLabel("Message").inputValue()).toBe(markdown);
    await page.evaluate("delete navigator.clipboard");
    await page.getByRole("button", { name: "Edit" }).click();
    expect(await page.getByLabel("Message").inputValue()).toBe("Show me <i>all</i>");
    expect(await page.locator("article").count()).toBe(0);
    await page.getByLabel("Message").fill("Once upon a time");
    const request = page.waitForRequest((request) => request.method() === "POST");
    await page.getByRole("button", { name: "Send" }).click();
    expect((await request).postDataJSON().messages).toEqual([{ role: "user", content: "Once upon a time" }]);
    await expect.poll(() => page.getByRole("button", { name: "Retry" }).count()).toBe(1);
    await page.reload();
    await expect.poll(() => page.locator("article").count()).toBe(2);
  });

  it("documents the API, and loads nothing from elsewhere", async () => {
    await page.goto(`${server.url}/docs`);
    expect(await page.getByRole("heading", { name: "POST /v1/chat/completions" }).count()).toBe(1);
    await lookAt(page, "chat/4-docs");
    expect(problems.filter((problem) => !problem.includes("status of 400"))).toEqual([]); // refused on purpose
  });
});
