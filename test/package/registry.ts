import { createHash } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";

export interface PublishedPackage {
  readonly tarball: string;
  readonly manifest: { readonly name: string; readonly version: string };
}

export interface Registry {
  readonly url: string;
  readonly close: () => void;
}

const NPM = process.env.npm_config_registry ?? "https://registry.npmjs.org/";

/**
 * A registry that has only these packages of ours and hands on npm's answers about all others. Verdaccio would do, but its
 * release 6.10 asks for versions that npm does not have.
 */
export async function startRegistry(packages: readonly PublishedPackage[]): Promise<Registry> {
  const server = createServer(async (request, response) => {
    const name = decodeURIComponent((request.url ?? "/").slice(1));
    const file = packages.find(({ tarball }) => name === `-/${path.basename(tarball)}`);
    const own = packages.find(({ manifest }) => manifest.name === name);
    if (file !== undefined) response.end(readFileSync(file.tarball));
    else if (own !== undefined) response.end(JSON.stringify(packument(own, url)));
    else if (name === "coppice" || name.startsWith("@coppice/")) response.writeHead(404).end("{}");
    else await handOn(request.url ?? "/", request.headers.accept, response);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { url, close: () => server.close() };
}

async function handOn(
  pathname: string,
  accept: string | undefined,
  response: import("node:http").ServerResponse,
): Promise<void> {
  try {
    const answer = await fetch(new URL(pathname, NPM), { headers: { accept: accept ?? "application/json" } });
    response.writeHead(answer.status, { "content-type": answer.headers.get("content-type") ?? "application/json" });
    response.end(Buffer.from(await answer.arrayBuffer()));
  } catch (error) {
    response.writeHead(502).end(JSON.stringify({ error: String(error) }));
  }
}

/** What npm asks of a package: its versions, and where their files are. */
function packument({ tarball, manifest }: PublishedPackage, url: string): object {
  const integrity = `sha512-${createHash("sha512").update(readFileSync(tarball)).digest("base64")}`;
  const dist = { tarball: `${url}/-/${path.basename(tarball)}`, integrity };
  return {
    name: manifest.name,
    "dist-tags": { latest: manifest.version },
    versions: { [manifest.version]: { ...manifest, dist } },
  };
}
