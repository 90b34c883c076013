import path from "node:path";
import { defineConfig } from "vite";

const pageOf = (name: string) => path.join(import.meta.dirname, name, "index.html");

/** The chat and the foundry, each a page of its own. */
export default defineConfig({
  root: import.meta.dirname,
  build: {
    outDir: "../dist/web",
    emptyOutDir: true,
    target: "es2023",
    modulePreload: { polyfill: false },
    rolldownOptions: { input: { chat: pageOf("chat"), foundry: pageOf("foundry") } },
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
});
