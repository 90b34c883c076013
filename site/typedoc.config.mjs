import { Converter } from "typedoc";

const subpaths = [
  "checkpoint",
  "data",
  "devices",
  "distill",
  "evaluate",
  "foundry",
  "generate",
  "ggml",
  "models",
  "prune",
  "quantize",
  "serve",
  "tensor",
];

/** Calls the main module what it is imported by, not by its file's name. */
function nameMainModule(app) {
  app.converter.on(Converter.EVENT_RESOLVE_BEGIN, ({ project }) => {
    for (const module of project.children ?? []) if (module.name === "index") module.name = "coppice";
  });
}

export default {
  name: "API reference",
  plugin: ["typedoc-plugin-markdown", nameMainModule],
  tsconfig: "../tsconfig.build.json",
  entryPoints: ["../src/index.ts", ...subpaths.map((name) => `../src/${name}/index.ts`)],
  out: "pages/api",
  logLevel: "Warn",
  router: "module",
  readme: "none",
  entryFileName: "index",
  disableSources: true,
  excludePrivate: true,
  excludeExternals: true,
  hidePageHeader: true,
  hideBreadcrumbs: true,
  sanitizeComments: true,
  groupOrder: ["Functions", "Classes", "*"],
  pageTitleTemplates: { module: ({ name }) => (name === "coppice" ? name : `coppice/${name}`) },
  parametersFormat: "table",
  interfacePropertiesFormat: "table",
  typeDeclarationFormat: "table",
  // parts of the table that the type of the native functions is made from, C signatures that ggml's headers document
  intentionallyNotExported: ["TableOf", "Callable", "SIGNATURES", "LOADER_SIGNATURES", "DEQUANTIZE"],
  treatWarningsAsErrors: true,
};
