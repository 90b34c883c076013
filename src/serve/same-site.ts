import { isIP } from "node:net";
import { hostname as machineName } from "node:os";
import { ApiError } from "./errors.js";

/** Which names and pages a service answers to. */
export interface SiteOptions {
  /** The address that the service listens on. */
  readonly host: string;
  /** Other names by which it is reached, through a proxy or in a cluster. `*` for any; `.example.org` for all subdomains. */
  readonly allowedHosts: readonly string[];
  /** Origins whose pages may call it; `*` for any. */
  readonly corsOrigins: readonly string[];
}

/** Where a request comes from, by its headers. */
export interface RequestOrigin {
  readonly method: string;
  readonly host: string | undefined;
  readonly origin: string | undefined;
  /** Sec-Fetch-Site, set by browsers. */
  readonly site: string | undefined;
}

/**
 * A service without keys answers everyone who reaches it, and any web page reaches it through its reader's browser. A foreign name that
 * was made to resolve to this machine (DNS rebinding) shows in the header Host, a request from a foreign page in Origin.
 * @returns a check of requests, which throws ApiError 403 for those that are foreign
 */
export function siteCheck({ host, allowedHosts, corsOrigins }: SiteOptions): (request: RequestOrigin) => void {
  const allowed = allowedHosts.map((pattern) => pattern.toLowerCase()).filter((pattern) => pattern !== "*");
  const anyName = allowed.length < allowedHosts.length;
  const isListed = (name: string): boolean =>
    allowed.some((pattern) => pattern === name || (pattern.startsWith(".") && name.endsWith(pattern)));
  const isOwnName = (name: string): boolean =>
    anyName || isLoopback(name) || name === host.toLowerCase() || (!isLoopback(host) && isNear(name)) || isListed(name);
  const isOwnPage = (origin: string, hostHeader: string | undefined): boolean => {
    if (corsOrigins.includes("*") || corsOrigins.includes(origin)) return true;
    const [, place] = /^https?:\/\/(.+)$/.exec(origin.toLowerCase()) ?? [];
    if (place === undefined) return false;
    return place === hostHeader?.toLowerCase() || isListed(nameIn(place) ?? "");
  };
  return ({ method, host: hostHeader, origin, site }) => {
    const name = hostHeader === undefined ? undefined : nameIn(hostHeader);
    if (hostHeader !== undefined && (name === undefined || !isOwnName(name)))
      throw foreignSite(
        `this service does not answer to the name ${JSON.stringify(hostHeader.slice(0, 256))}: allow it with --allowed-hosts`,
      );
    const isForeign = origin === undefined ? method !== "GET" && site === "cross-site" : !isOwnPage(origin, hostHeader);
    if (isForeign) throw foreignSite("pages of other sites may not call this service: allow them with --cors");
  };
}

/** Sites whose pages may read answers, as CORS's headers name them. @param origins those of --cors, of which `*` means all */
export const allowedOrigins = (origins: readonly string[]): "*" | string[] =>
  origins.includes("*") ? "*" : [...origins];

const foreignSite = (why: string): ApiError => new ApiError(403, why, { code: "foreign_site" });

/** The name in `name:port`. */
const nameIn = (place: string): string | undefined => {
  try {
    return new URL(`http://${place}`).hostname
      .replace(/^\[(.*)\]$/, "$1")
      .replace(/\.$/, "")
      .toLowerCase();
  } catch {
    return undefined;
  }
};

/** Names that always mean this machine, or the one that a container runs on: nobody else can register them. */
const isLoopback = (name: string): boolean =>
  name === "localhost" ||
  name.endsWith(".localhost") ||
  name.endsWith(".internal") ||
  name === "::1" ||
  /^127\.\d+\.\d+\.\d+$/.test(name);

/** Names within a network: addresses, and names that no public name server resolves. */
const isNear = (name: string): boolean =>
  isIP(name) !== 0 || !name.includes(".") || name.endsWith(".local") || name === machineName().toLowerCase();
