import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import type { Context, Env, Hono } from "hono";
import { packageRoot } from "../system/package-root.js";
import { ApiError } from "./errors.js";

const TYPES: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".wasm": "application/wasm",
};

/** The path of a page's files, whose names change with their content. */
export const ASSETS = "/assets/:file{[\\w.-]+}";

/** Answers with a file of a page. @throws ApiError 404 where there is no such file */
export function sendFile<E extends Env>(c: Context<E>, file: string, headers: Readonly<Record<string, string>>) {
  const type = TYPES[path.extname(file)];
  if (type === undefined || !existsSync(file)) throw new ApiError(404, "there is no such file");
  return c.body(readFileSync(file), 200, { ...headers, "content-type": type });
}

/** Serves a page at `/` with the files that it loads, as Vite built them. @param name its folder in `web/` */
export function addPage<E extends Env>(app: Hono<E>, name: string, headers: Readonly<Record<string, string>>): void {
  const built = path.join(packageRoot, "dist/web");
  app.get("/", (c) => sendFile(c, path.join(built, name, "index.html"), { ...headers, "cache-control": "no-cache" }));
  app.get(ASSETS, (c) =>
    sendFile(c, path.join(built, "assets", c.req.param("file") ?? ""), {
      ...headers,
      "cache-control": "public, max-age=31536000, immutable",
    }),
  );
}
