import { readdirSync } from "node:fs";
import path from "node:path";
import { defineConfig } from "vitepress";

const pages = path.resolve(import.meta.dirname, "../pages");

/** The API reference's pages, as typedoc wrote them: what `coppice` exports first, then its subpaths. */
const modules = readdirSync(path.join(pages, "api"), { withFileTypes: true })
  .map((entry) => (entry.isDirectory() ? `${entry.name}/` : entry.name.replace(/\.md$/, "")))
  .filter((name) => name !== "index" && name !== "coppice")
  .sort();

const page = (text: string, link: string) => ({ text, link: `/${link}` });

export default defineConfig({
  title: "Coppice",
  description:
    "Make language models smaller and keep them good: prune, distill, quantize and run, in TypeScript on ggml.",
  srcDir: "pages",
  outDir: "dist",
  base: process.env.SITE_BASE ?? "/",
  cleanUrls: true,
  vite: { build: { chunkSizeWarningLimit: 1500 } }, // kB: the search's index, which loads when someone searches
  // What a page links to within the site must be there: a dead link fails the build.
  ignoreDeadLinks: [/^http:\/\/localhost/], // an example of an address
  themeConfig: {
    search: { provider: "local" },
    outline: [2, 3],
    nav: [page("Guide", "installation"), page("Models", "models"), page("API", "api/coppice")],
    sidebar: [
      {
        text: "Start",
        items: [page("What Coppice is", ""), page("Installation", "installation"), page("Supported models", "models")],
      },
      {
        text: "Guide",
        items: [
          page("Commands and models", "commands"),
          page("Command line", "command-line"),
          page("GGUF and quantization", "gguf"),
          page("Benchmarks", "evaluation"),
          page("Serving", "serving"),
          page("Clients of the server", "clients"),
          page("The foundry", "foundry"),
          page("Larger than memory, devices", "scale"),
          page("As a library", "library"),
          page("Environment variables", "environment"),
        ],
      },
      { text: "Measured", items: [page("Figures", "figures"), page("The method's claims", "claims")] },
      { text: "Inside", items: [page("Design", "design"), page("Adding a model", "adding-a-model")] },
      {
        text: "API reference",
        collapsed: true,
        items: [
          page("coppice", "api/coppice"),
          ...modules.map((name) => page(`coppice/${name.replace("/", "")}`, `api/${name}`)),
        ],
      },
    ],
  },
});
