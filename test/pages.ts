import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import type { Page } from "playwright-core";
import { expect } from "vitest";

/** Tests of pages need a browser: `apt-get install chromium`. */
export const browserPath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(
  existsSync,
);

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** Where pictures of the pages are left to look at. */
const pictures = path.resolve(import.meta.dirname, "../test-results");

const SIZES = { wide: { width: 1280, height: 900 }, phone: { width: 360, height: 800 } } as const;

interface Violation {
  readonly id: string;
  readonly help: string;
  readonly nodes: readonly { readonly target: readonly string[] }[];
}

/**
 * Looks at a page as it stands: it fits a wide window and a phone, in light and dark, no rule of accessibility is broken, and a
 * picture of each is left.
 */
export async function lookAt(page: Page, name: string): Promise<void> {
  const file = path.join(pictures, `${name}.png`);
  mkdirSync(path.dirname(file), { recursive: true });
  for (const [size, viewport] of Object.entries(SIZES))
    for (const colorScheme of ["light", "dark"] as const) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize(viewport);
      const where = `${name}, ${size}, ${colorScheme}`;
      await expect
        .poll(() => page.evaluate("document.documentElement.scrollWidth"), { message: `${where}: fits` })
        .toBeLessThanOrEqual(viewport.width);
      await page.evaluate(axe);
      const { violations } = (await page.evaluate("axe.run()")) as { violations: readonly Violation[] };
      const found = violations.map(
        ({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ target }) => target).join(" | ")}`,
      );
      expect(found, where).toEqual([]);
      await page.screenshot({ path: file.replace(/\.png$/, `-${size}-${colorScheme}.png`), fullPage: true });
    }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize(SIZES.wide);
}
