import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";

/** The one commit of every repository. */
export const COMMIT = "0123456789abcdef0123456789abcdef01234567";

export interface Repository {
  readonly files: ReadonlyMap<string, Buffer>;
  /** Without it, nothing of the repository is told. */
  readonly token?: string;
}

export interface TestHub {
  readonly endpoint: string;
  /** Methods and paths, as they were asked. */
  readonly requests: readonly string[];
  close(): Promise<void>;
}

/** A directory's files, by their names in it. */
export const filesOf = (directory: string): Map<string, Buffer> =>
  new Map(
    readdirSync(directory, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => path.join(entry.parentPath, entry.name))
      .map((file) => [path.relative(directory, file), readFileSync(file)]),
  );

/**
 * A real HTTP server that answers as a hub does.
 * @param repositories by kind and name, as in addresses: `models/org/name`, `datasets/org/name`
 */
export async function startHub(repositories: Readonly<Record<string, Repository>>): Promise<TestHub> {
  const requests: string[] = [];
  const server = createServer((request, response) => {
    const url = new URL(request.url ?? "/", "http://hub");
    requests.push(`${request.method} ${url.pathname}`);
    const json = (value: unknown, status = 200) => {
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
    };
    const [, kind = "models", name] =
      /^(?:\/api)?(?:\/(models|datasets))?\/([\w.-]+\/[\w.-]+)(?=\/|$)/.exec(url.pathname) ?? [];
    const repository = repositories[`${kind}/${name}`];
    if (repository === undefined) return json({ error: "not found" }, 404);
    const { files, token } = repository;
    if (token !== undefined && request.headers.authorization !== `Bearer ${token}`)
      return json({ error: "gated" }, 401);
    const entry = (file: string) => ({
      type: "file",
      path: file,
      size: files.get(file)?.length ?? 0,
      oid: createHash("sha1")
        .update(files.get(file) ?? "")
        .digest("hex"),
      lastCommit: { id: COMMIT, title: "x", date: "2026-01-01T00:00:00Z" },
    });
    if (url.pathname.includes("/revision/")) return json({ sha: COMMIT, id: name });
    if (url.pathname.includes("/tree/")) return json([...files.keys()].map(entry));
    if (url.pathname.includes("/paths-info/")) {
      const chunks: Buffer[] = [];
      request.on("data", (chunk) => chunks.push(chunk));
      request.on("end", () => json((JSON.parse(Buffer.concat(chunks).toString()).paths as string[]).map(entry)));
      return;
    }
    const [, file = ""] = /\/(?:resolve|raw)\/[\w.-]+\/(.+)$/.exec(url.pathname) ?? [];
    const body = files.get(file);
    if (body === undefined) return json({ error: "no such file" }, 404);
    const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
    const [from, to] =
      range === null ? [0, body.length - 1] : [Number(range[1]), Math.min(Number(range[2]), body.length - 1)];
    const headers = {
      etag: `"${entry(file).oid}"`,
      "content-range": `bytes ${from}-${to}/${body.length}`,
      "content-length": to - from + 1,
    };
    response.writeHead(range === null ? 200 : 206, headers).end(body.subarray(from, to + 1));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    close: () => new Promise((resolve) => void server.close(() => resolve())),
  };
}
