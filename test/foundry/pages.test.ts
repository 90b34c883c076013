import { cpSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { gunzipSync } from "node:zlib";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGguf } from "../../src/checkpoint/index.js";
import { type RunningFoundry, startFoundry } from "../../src/foundry/index.js";
import { browserPath, lookAt, openPage } from "../pages.js";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");

describe.skipIf(browserPath === undefined)("the foundry's pages in a browser", () => {
  let foundry: RunningFoundry;
  let browser: Browser;
  let page: Page;
  let problems: string[];
  beforeAll(async () => {
    const options = { port: 0, workers: 1, device: "cpu", threads: 1, logLevel: "silent" } as const;
    foundry = await startFoundry({ data: temporaryDirectory(), ...options });
    ({ browser, page, problems } = await openPage(foundry.url));
  });
  afterAll(async () => {
    await browser?.close();
    await foundry?.close();
  });
  const look = (name: string) => lookAt(page, `foundry/${name}`);
  const goTo = (place: string) => page.goto(`${foundry.url}/#/${place}`);
  const selectedModel = () =>
    page
      .getByLabel(/^Model/)
      .locator("option:checked")
      .textContent();
  const heading = () => page.getByRole("heading", { level: 1 }).textContent();

  it("make the embedded model smaller for a phone, and run it in the tab", async () => {
    await page.goto(foundry.url);
    await expect.poll(selectedModel).toContain("Tiny teacher");
    const stories = gunzipSync(readFileSync(path.join(root, "examples/corpus/stories.txt.gz"))).subarray(0, 60_000);
    const corpus = path.join(temporaryDirectory(), "my stories.txt");
    writeFileSync(corpus, stories);
    await page.getByLabel("Upload data").setInputFiles(corpus);
    await expect
      .poll(() => page.getByLabel(/^Data/).locator("option:checked").textContent())
      .toContain("my stories.txt");
    await page.getByLabel(/^Device/).selectOption("phone-4gb");
    await expect.poll(() => page.locator(".chart .point").count()).toBeGreaterThan(20);
    // another candidate of the list by keyboard, then one in the chart by mouse
    const chosen = page.getByRole("radio", { checked: true });
    await chosen.focus();
    const before = await page.locator(".choice").textContent();
    await page.keyboard.press("ArrowUp");
    await expect.poll(() => page.locator(".choice").textContent()).not.toBe(before);
    const cut = page.locator(".point", { hasText: /^6\d\d K parameters \(7\d%\) as f16/ }).first();
    const { x, y, width, height } = (await cut.boundingBox())!;
    await page.mouse.click(x + width / 2, y + height / 2);
    await expect.poll(() => page.locator(".choice").textContent()).toMatch(/6\d\d K parameters \(7\d%\) as f16/);
    // the same cut in 8 bits takes as much memory as in 6 here: the two lie on each other in the chart
    const inList = page.locator("label.check", { hasText: /^6\d\d K parameters \(7\d%\) as q8_0/ }).first();
    await inList.getByRole("radio").check();
    await expect.poll(() => page.locator(".choice").textContent()).toMatch(/6\d\d K parameters \(7\d%\) as q8_0/);
    await expect.poll(() => chosen.count()).toBe(1);
    await page.getByText("More options").click();
    await page.getByLabel("Tokens to distill on").fill("10000");
    await look("1-new-job");
    await page.getByRole("button", { name: "Start" }).click();
    await expect.poll(() => page.getByTestId("state").textContent()).toMatch(/queued|running|done/);
    await expect.poll(() => page.getByLabel(/^Loss by tokens/).count()).toBe(1);
    await look("2-job-running");
    await expect.poll(() => page.getByTestId("state").textContent()).toBe("done");
    await expect.poll(() => page.getByRole("rowheader", { name: "student" }).count()).toBe(1);
    expect(await page.locator("article").textContent()).toMatch(/Predicted on the device: .* about \d+ tokens\/s/);
    // the GGUF file is measured too, and the chart shows the values under the pointer
    await expect.poll(() => page.getByRole("rowheader", { name: "q8_0" }).count()).toBe(1);
    const over = page.locator(".u-over");
    await over.hover();
    await expect.poll(() => page.locator(".u-legend").textContent()).toMatch(/teacher's loss\s*\d\.\d{4}/);
    await look("3-job-done");

    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.getByRole("button", { name: /\.gguf$/ }).click(),
    ]);
    const file = path.join(temporaryDirectory(), "student.gguf");
    await download.saveAs(file);
    expect(openGguf(file).tensors.size).toBeGreaterThan(10);

    await page.getByRole("link", { name: "Run in the browser" }).click();
    await expect.poll(() => page.getByTestId("engine").textContent()).toMatch(/^Ready/);
    const requests: string[] = [];
    page.on("request", (request) => requests.push(request.url()));
    await page.getByLabel("Text to continue").fill("Once upon a time");
    await page.getByRole("button", { name: "Continue" }).click();
    await expect.poll(() => page.getByTestId("engine").textContent()).toMatch(/tokens\/s on this device/);
    expect((await page.getByTestId("answer").textContent())?.length).toBeGreaterThan("Once upon a time".length);
    expect(requests.filter((url) => url.startsWith("http"))).toEqual([]); // nothing leaves the device
    await look("4-run-here");
  });

  it("show the answers of teacher and student side by side", async () => {
    await goTo("models");
    await page.getByRole("link", { name: "Compare" }).nth(1).click();
    await expect
      .poll(() =>
        page
          .getByLabel(/^First/)
          .locator("option")
          .count(),
      )
      .toBe(2);
    await page.getByRole("button", { name: "Run both" }).click();
    const answers = page.locator(".two .answer");
    const prompt = "Tom had a red";
    await expect
      .poll(async () => Math.min(...(await answers.allTextContents()).map((text) => text.length)))
      .toBeGreaterThan(prompt.length + 20);
    await look("5-compare");
  });

  it("upload a model, and chat with the smaller one in the tab", async () => {
    const directory = temporaryDirectory();
    cpSync(path.join(root, "examples/tiny-teacher"), directory, { recursive: true });
    const settings = path.join(directory, "tokenizer_config.json");
    const template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}assistant:";
    const known = JSON.parse(readFileSync(settings, "utf8")) as object;
    writeFileSync(settings, JSON.stringify({ ...known, chat_template: template }));
    await goTo("");
    await page
      .getByLabel("Upload a model")
      .setInputFiles(readdirSync(directory).map((name) => path.join(directory, name)));
    await expect.poll(selectedModel).toMatch(/^Model /); // until then, the plan is for the embedded model
    await expect.poll(() => page.locator(".choice").textContent()).toContain("Nothing needs to be cut");
    await expect.poll(() => page.getByRole("button", { name: "Start" }).isEnabled()).toBe(true);
    await page.getByRole("button", { name: "Start" }).click();
    await page.getByRole("link", { name: "Run in the browser" }).click();
    await expect.poll(() => page.getByTestId("engine").textContent()).toMatch(/^Ready/);
    for (const message of ["Hello there", "And then"]) {
      await page.getByLabel("Message").fill(message);
      await page.getByRole("button", { name: "Send" }).click();
      await expect.poll(() => page.locator(".answer").count()).toBe(message === "And then" ? 4 : 2);
      await expect.poll(() => page.getByTestId("engine").textContent()).toMatch(/tokens\/s/);
      await expect.poll(() => page.getByRole("button", { name: "New chat" }).isEnabled()).toBe(true);
    }
    const texts = await page.locator(".answer").allTextContents();
    expect(texts).toEqual(["You: Hello there", texts[1], "You: And then", texts[3]]);
    // a sampled answer may end at its first token, but hardly both
    expect(Math.max(texts[1]!.length, texts[3]!.length)).toBeGreaterThan("Model: ".length);
    await look("6-chat-in-the-tab");
  });

  it("stop a job, resume it, and delete it", async () => {
    await goTo("");
    await expect.poll(() => page.locator(".choice").count()).toBe(1);
    await page.getByText("More options").click();
    await page.getByLabel("Tokens to distill on").fill("20000000");
    await page
      .getByRole("radio")
      .nth((await page.locator(".choices > label").count()) - 1)
      .check(); // the smallest: it is cut
    await page.getByRole("button", { name: "Start" }).click();
    const state = page.getByTestId("state");
    await expect.poll(() => state.textContent()).toBe("running");
    await page.getByRole("button", { name: "Stop", exact: true }).first().click();
    await expect.poll(() => state.textContent()).toBe("cancelled");
    await look("7-job-cancelled");
    await page.getByRole("button", { name: "Resume" }).click();
    await expect.poll(() => state.textContent()).toMatch(/queued|running/);
    await page.getByRole("button", { name: "Stop", exact: true }).first().click();
    await expect.poll(() => state.textContent()).toBe("cancelled");
    page.once("dialog", (dialog) => dialog.accept());
    await page.getByRole("button", { name: "Delete" }).click();
    await expect.poll(heading).toBe("Jobs");
  });

  it("tell what a waiting job needs", async () => {
    const call = async (place: string, body?: unknown) => {
      const headers = { "content-type": "application/json" };
      const init = body === undefined ? {} : { method: "POST", headers, body: JSON.stringify(body) };
      return (await fetch(`${foundry.url}/v1/${place}`, init)).json() as Promise<{
        id: string;
        data: { id: string }[];
      }>;
    };
    const [[model], [dataset]] = [(await call("models")).data, (await call("datasets")).data];
    const requires = { device: "cuda", memory_bytes: 80_000_000_000, ranks: 4 };
    const { id } = await call("jobs", { model: model?.id, dataset: dataset?.id, device: "phone-4gb", requires });
    await goTo(`jobs/${id}`);
    await expect
      .poll(() => page.locator("dl.facts").textContent())
      .toContain("needs a worker withcuda, 74.5 GiB of memory, 4 processes");
    await page.getByRole("button", { name: "Stop" }).click();
    await expect.poll(() => page.getByTestId("state").textContent()).toBe("cancelled");
  });

  it("delete a job with its files and its model", async () => {
    await goTo("jobs");
    const link = page.getByRole("link", { name: "Tiny teacher for phone-4gb" });
    await expect.poll(() => link.count()).toBe(1);
    await look("8-jobs");
    await link.click();
    page.once("dialog", (dialog) => dialog.accept());
    await page.getByRole("button", { name: "Delete" }).click();
    await expect.poll(heading).toBe("Jobs");
    await expect.poll(() => link.count()).toBe(0);
    await goTo("models");
    const names = page.locator(".cards li strong");
    await expect.poll(() => names.allTextContents()).toEqual(["Model for phone-4gb", "Model", "Tiny teacher"]);
  });

  it("show errors where they occur, and keep nothing of a refused upload", async () => {
    await goTo("");
    const directory = temporaryDirectory();
    const file = path.join(directory, "broken.gguf");
    writeFileSync(file, "no model at all");
    problems.length = 0;
    await page.getByLabel("Upload a model").setInputFiles(file);
    await expect.poll(() => page.getByRole("alert").textContent()).toContain("broken.gguf is not a GGUF file");
    await page.getByRole("button", { name: "From the hub" }).click();
    await page.getByLabel("Model on the hub").fill("no such name");
    await page.getByLabel("Model on the hub").press("Enter");
    await expect.poll(() => page.getByRole("alert").textContent()).toContain("is not a hub id");
    await page.getByLabel("Context length, tokens").fill("1000000");
    await page.getByLabel("Context length, tokens").press("Tab");
    await expect.poll(() => page.getByRole("alert").last().textContent()).toMatch(/tokens at most/);
    expect(await page.getByRole("button", { name: "Start" }).isEnabled()).toBe(false);
    await look("9-new-job-refused");
    await goTo("models");
    await expect.poll(() => page.locator(".cards li strong").count()).toBe(3);
    expect(await page.locator(".cards").textContent()).not.toContain("broken");
    await look("10-models");
    await goTo("settings");
    await page.getByLabel(/^API key/).fill("not-a-key");
    await page.getByRole("button", { name: "Use" }).click();
    await expect
      .poll(() => page.getByRole("alert").or(page.getByRole("status")).allTextContents())
      .toContain(
        "Signed in as local of local.", // without keys, everyone on this machine has access
      );
    await look("11-settings");
    await goTo("bogus");
    await expect.poll(heading).toBe("Page not found");
    expect(await page.title()).toBe("Not found · Coppice foundry");
    await look("12-not-found");
    expect(problems.filter((problem) => !/status of (400|404|422)/.test(problem))).toEqual([]);
    problems.length = 0;
  });

  it("work by keyboard, have titles, and load nothing from elsewhere", async () => {
    const pages = { "": "New job", jobs: "Jobs", models: "Models", compare: "Compare", settings: "Settings" };
    for (const [place, title] of Object.entries(pages)) {
      await goTo(place);
      await expect.poll(heading).toBe(title);
      await expect.poll(() => page.title()).toBe(`${title} · Coppice foundry`);
    }
    await goTo("");
    await page.reload();
    await expect.poll(heading).toBe("New job");
    const focused = () => page.evaluate("document.activeElement?.textContent");
    for (let i = 0; i < 6 && (await focused()) !== "Jobs"; i++) await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await expect.poll(heading).toBe("Jobs");
    await page.goto(`${foundry.url}/docs`);
    await look("13-docs");
    expect(problems).toEqual([]);
  });

  it("ask for a key once there is one, and refuse a wrong one", async () => {
    const created = await page.request.post(`${foundry.url}/v1/keys`, {
      data: { tenant: "research", name: "laptop", role: "user" },
    });
    const { key } = (await created.json()) as { key: string };
    await goTo("jobs");
    await page.reload();
    await expect.poll(() => page.getByRole("alert").textContent()).toMatch(/key/);
    await goTo("settings");
    await page.getByLabel(/^API key/).fill("not-a-key");
    await page.getByRole("button", { name: "Use" }).click();
    await expect
      .poll(() => page.getByRole("alert").allTextContents())
      .toContain("Unknown key. To create one: coppice foundry keys add NAME");
    await look("14-wrong-key");
    await page.getByLabel(/^API key/).fill(key);
    await page.getByRole("button", { name: "Use" }).click();
    await expect.poll(() => page.getByRole("status").allTextContents()).toContain("Signed in as laptop of research.");
    await goTo("jobs");
    await expect.poll(() => page.locator("main").textContent()).toContain("No jobs yet");
    await look("15-jobs-none");
  });
});
