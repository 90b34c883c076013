import { cpSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { gunzipSync } from "node:zlib";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGguf } from "../../src/checkpoint/index.js";
import { type RunningFoundry, startFoundry } from "../../src/foundry/index.js";
import { browserPath, lookAt } from "../pages.js";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");

describe.skipIf(browserPath === undefined)("the foundry's pages in a browser", () => {
  let foundry: RunningFoundry;
  let browser: Browser;
  let page: Page;
  const problems: string[] = [];
  beforeAll(async () => {
    const options = { port: 0, workers: 1, device: "cpu", threads: 1, logLevel: "silent" } as const;
    foundry = await startFoundry({ data: temporaryDirectory(), ...options });
    browser = await chromium.launch({ executablePath: browserPath ?? "", args: ["--no-sandbox"] });
    page = await (await browser.newContext({ acceptDownloads: true })).newPage();
    page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
    page.on("pageerror", (error) => problems.push(`${error}`));
    page.on("request", (request) => {
      const url = request.url();
      if (!url.startsWith(foundry.url) && !/^(blob|data):/.test(url)) problems.push(url);
    });
  }, 60_000);
  afterAll(async () => {
    await browser?.close();
    await foundry?.close();
  });
  const look = (name: string) => lookAt(page, `foundry/${name}`);
  const goTo = (place: string) => page.goto(`${foundry.url}/#/${place}`);
  const heading = () => page.getByRole("heading", { level: 1 }).textContent();

  it("make a smaller model of the embedded one for a phone, which then writes in the tab", async () => {
    await page.goto(foundry.url);
    await expect
      .poll(() =>
        page
          .getByLabel(/^Model/)
          .locator("option:checked")
          .textContent(),
      )
      .toContain("Tiny teacher");
    const stories = gunzipSync(readFileSync(path.join(root, "examples/corpus/stories.txt.gz")));
    const corpus = path.join(temporaryDirectory(), "my stories.txt");
    writeFileSync(corpus, stories);
    await page.getByLabel("Send data").setInputFiles(corpus);
    await expect
      .poll(() => page.getByLabel(/^Data/).locator("option:checked").textContent())
      .toContain("my stories.txt");
    await page.getByLabel(/^Device/).selectOption("phone-4gb");
    await expect.poll(() => page.locator(".chart .point").count()).toBeGreaterThan(20);
    // of those that nothing beats by keyboard, another one in the chart
    const chosen = page.getByRole("radio", { checked: true });
    await chosen.focus();
    const before = await page.locator(".choice").textContent();
    await page.keyboard.press("ArrowUp");
    await expect.poll(() => page.locator(".choice").textContent()).not.toBe(before);
    const cut = page.locator(".point", { hasText: /^6\d\d K parameters \(7\d %\) as q8_0/ }).first();
    const { x, y, width, height } = (await cut.boundingBox()) as {
      x: number;
      y: number;
      width: number;
      height: number;
    };
    await page.mouse.click(x + width / 2, y + height / 2);
    await expect.poll(() => page.locator(".choice").textContent()).toMatch(/6\d\d K parameters \(7\d %\) as q8_0/);
    await expect.poll(() => chosen.count()).toBe(1);
    await page.getByText("More").click();
    await page.getByLabel("Tokens to distil on").fill("20000");
    await look("1-new-job");
    await page.getByRole("button", { name: "Start" }).click();
    await expect.poll(() => page.getByTestId("state").textContent()).toMatch(/queued|running/);
    await expect.poll(() => page.getByLabel(/^Loss by tokens/).count(), { timeout: 60_000 }).toBe(1);
    await look("2-job-running");
    await expect.poll(() => page.getByTestId("state").textContent(), { timeout: 90_000 }).toBe("done");
    await expect.poll(() => page.getByRole("rowheader", { name: "student" }).count()).toBe(1);
    expect(await page.locator("article").textContent()).toMatch(/writes about \d+ tokens a second, as predicted/);
    // the delivered file as well, and the curve's values under the pointer
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

    await page.getByRole("link", { name: "Run it here" }).click();
    await expect.poll(() => page.getByTestId("engine").textContent(), { timeout: 60_000 }).toMatch(/^Ready/);
    const asked: string[] = [];
    page.on("request", (request) => asked.push(request.url()));
    await page.getByLabel("Text to go on with").fill("Once upon a time");
    await page.getByRole("button", { name: "Write" }).click();
    await expect
      .poll(() => page.getByTestId("engine").textContent(), { timeout: 60_000 })
      .toMatch(/tokens\/s on this device/);
    expect((await page.getByTestId("answer").textContent())?.length).toBeGreaterThan("Once upon a time".length + 20);
    expect(asked.filter((url) => url.startsWith("http"))).toEqual([]); // nothing leaves the device
    await look("4-run-here");
  }, 240_000);

  it("have teacher and student answer side by side", async () => {
    await page.goto(`${foundry.url}/#/models`);
    await page.getByRole("link", { name: "Compare" }).nth(1).click();
    await expect.poll(() => page.getByLabel(/^One/).locator("option").count()).toBe(2);
    await page.getByRole("button", { name: "Ask both" }).click();
    const answers = page.locator(".two .answer");
    const prompt = "Tom had a red";
    await expect
      .poll(async () => Math.min(...(await answers.allTextContents()).map((text) => text.length)), { timeout: 30_000 })
      .toBeGreaterThan(prompt.length + 20);
    await look("5-compare");
  });

  it("take a model that is sent, and talk with one that was made for it", async () => {
    const directory = temporaryDirectory();
    cpSync(path.join(root, "examples/tiny-teacher"), directory, { recursive: true });
    const settings = path.join(directory, "tokenizer_config.json");
    const template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}assistant:";
    const known = JSON.parse(readFileSync(settings, "utf8")) as object;
    writeFileSync(settings, JSON.stringify({ ...known, chat_template: template }));
    await page.goto(`${foundry.url}/#/`);
    await page
      .getByLabel("Send a model")
      .setInputFiles(readdirSync(directory).map((name) => path.join(directory, name)));
    await expect.poll(() => page.locator(".choice").textContent()).toContain("Nothing needs to be cut");
    await expect.poll(() => page.getByRole("button", { name: "Start" }).isEnabled()).toBe(true);
    await page.getByRole("button", { name: "Start" }).click();
    await page.getByRole("link", { name: "Run it here" }).click({ timeout: 60_000 });
    await expect.poll(() => page.getByTestId("engine").textContent(), { timeout: 60_000 }).toMatch(/^Ready/);
    for (const message of ["Hello there", "And then"]) {
      await page.getByLabel("Message").fill(message);
      await page.getByRole("button", { name: "Send" }).click();
      await expect.poll(() => page.locator(".answer").count()).toBe(message === "And then" ? 4 : 2);
      await expect.poll(() => page.getByTestId("engine").textContent(), { timeout: 60_000 }).toMatch(/tokens\/s/);
      await expect.poll(() => page.getByRole("button", { name: "Begin anew" }).isEnabled()).toBe(true);
    }
    const said = await page.locator(".answer").allTextContents();
    expect(said).toHaveLength(4);
    expect([said[0], said[2]]).toEqual(["You: Hello there", "You: And then"]);
    expect(Math.min(said[1]!.length, said[3]!.length)).toBeGreaterThan("The model: ".length);
    await look("6-chat-in-the-tab");
  });

  it("stop a job, and go on with it", async () => {
    await goTo("");
    await expect.poll(() => page.locator(".choice").count()).toBe(1);
    await page.getByText("More").click();
    await page.getByLabel("Tokens to distil on").fill("20000000");
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
    await page.getByRole("button", { name: "Go on" }).click();
    await expect.poll(() => state.textContent()).toMatch(/queued|running/);
    await page.getByRole("button", { name: "Stop", exact: true }).first().click();
    await expect.poll(() => state.textContent()).toBe("cancelled");
    page.once("dialog", (dialog) => dialog.accept());
    await page.getByRole("button", { name: "Forget" }).click();
    await expect.poll(heading).toBe("Jobs");
  });

  it("forget a job, its files and its model when told to", async () => {
    await page.goto(`${foundry.url}/#/jobs`);
    const link = page.getByRole("link", { name: "Tiny teacher for phone-4gb" });
    await expect.poll(() => link.count()).toBe(1);
    await look("8-jobs");
    await link.click();
    page.once("dialog", (dialog) => dialog.accept());
    await page.getByRole("button", { name: "Forget" }).click();
    await expect.poll(() => page.getByRole("heading", { level: 1 }).textContent()).toBe("Jobs");
    await expect.poll(() => link.count()).toBe(0);
    await page.goto(`${foundry.url}/#/models`);
    const names = page.locator(".cards li strong");
    await expect.poll(() => names.allTextContents()).toEqual(["Model for phone-4gb", "Model", "Tiny teacher"]);
  });

  it("say what is wrong where it is, and keep nothing of what was refused", async () => {
    await goTo("");
    const directory = temporaryDirectory();
    const file = path.join(directory, "broken.gguf");
    writeFileSync(file, "no model at all");
    problems.length = 0;
    await page.getByLabel("Send a model").setInputFiles(file);
    await expect.poll(() => page.getByRole("alert").textContent()).toContain("broken.gguf is no GGUF file");
    await page.getByRole("button", { name: "From the hub" }).click();
    await page.getByLabel("Model on the hub").fill("no such name");
    await page.getByLabel("Model on the hub").press("Enter");
    await expect.poll(() => page.getByRole("alert").textContent()).toContain("is no id of the hub");
    await page.getByLabel("Context, tokens").fill("1000000");
    await page.getByLabel("Context, tokens").press("Tab");
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
        "You are local of local.", // without keys, everybody of this machine may ask
      );
    await look("11-settings");
    await goTo("bogus");
    await expect.poll(heading).toBe("There is no such page");
    expect(await page.title()).toBe("Not found · Coppice foundry");
    await look("12-not-found");
    expect(problems.filter((problem) => !/status of (400|404|422)/.test(problem))).toEqual([]);
    problems.length = 0;
  });

  it("are worked by keyboard, with a title for each, and ask for nothing from elsewhere", async () => {
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

  it("ask for a key once there is one, and say that a wrong one is", async () => {
    const made = await page.request.post(`${foundry.url}/v1/keys`, {
      data: { tenant: "research", name: "laptop", role: "user" },
    });
    const { key } = (await made.json()) as { key: string };
    await goTo("jobs");
    await page.reload();
    await expect.poll(() => page.getByRole("alert").textContent()).toMatch(/key/);
    await goTo("settings");
    await page.getByLabel(/^API key/).fill("not-a-key");
    await page.getByRole("button", { name: "Use" }).click();
    await expect
      .poll(() => page.getByRole("alert").allTextContents())
      .toContain("That key is not known here: coppice foundry keys add NAME makes one.");
    await look("14-wrong-key");
    await page.getByLabel(/^API key/).fill(key);
    await page.getByRole("button", { name: "Use" }).click();
    await expect.poll(() => page.getByRole("status").allTextContents()).toContain("You are laptop of research.");
    await goTo("jobs");
    await expect.poll(() => page.locator("main").textContent()).toContain("There are none yet");
    await look("15-jobs-none");
  });
});
