import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { type Browser, chromium, type Page } from "playwright-core";
import { expect } from "vitest";

/** Tests of pages need a browser: `apt-get install chromium`. */
export const browserPath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(
  existsSync,
);

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** Directory of the screenshots. */
const pictures = path.resolve(import.meta.dirname, "../test-results");

/** As long as other tests wait (vitest.config.ts): only a hang takes so long. */
const TIMEOUT_MILLISECONDS = 300_000;

const WIDE = { width: 1280, height: 900 };
/** Colors do not depend on the size, nor places on the colors. */
const LOOKS = [
  { size: "wide", viewport: WIDE, colorScheme: "light" },
  { size: "phone", viewport: { width: 360, height: 800 }, colorScheme: "dark" },
] as const;

interface Violation {
  readonly id: string;
  readonly help: string;
  readonly nodes: readonly { readonly target: readonly string[] }[];
}

export interface OpenedPage {
  readonly browser: Browser;
  readonly page: Page;
  /** Console errors, exceptions, and requests to other places than the server. */
  readonly problems: string[];
}

/** Opens an empty page in a new browser. @param serverUrl the only place it may send requests to */
export async function openPage(serverUrl: string): Promise<OpenedPage> {
  const browser = await chromium.launch({
    executablePath: browserPath ?? "",
    args: ["--no-sandbox"],
    timeout: TIMEOUT_MILLISECONDS,
  });
  const context = await browser.newContext({ acceptDownloads: true });
  context.setDefaultTimeout(TIMEOUT_MILLISECONDS);
  const page = await context.newPage();
  const problems: string[] = [];
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(`${error}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(serverUrl) && !/^(blob|data):/.test(url)) problems.push(url);
  });
  return { browser, page, problems };
}

/**
 * Checks a page as it is: it fits a wide window in light colors and a phone in dark ones, and breaks no accessibility rule. A screenshot
 * of each is kept.
 */
export async function lookAt(page: Page, name: string): Promise<void> {
  const file = path.join(pictures, `${name}.png`);
  mkdirSync(path.dirname(file), { recursive: true });
  await page.evaluate(axe);
  for (const { size, viewport, colorScheme } of LOOKS) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize(viewport);
    const where = `${name}, ${size}, ${colorScheme}`;
    const width = () => page.evaluate("document.documentElement.scrollWidth");
    await expect.poll(width, { message: `${where}: width` }).toBeLessThanOrEqual(viewport.width);
    const { violations } = (await page.evaluate("axe.run()")) as { violations: readonly Violation[] };
    const broken = violations.map(
      ({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ target }) => target).join(" | ")}`,
    );
    expect(broken, where).toEqual([]);
    await page.screenshot({ path: file.replace(/\.png$/, `-${size}-${colorScheme}.png`), fullPage: true });
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize(WIDE);
}
