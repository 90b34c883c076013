import { isIP } from "node:net";
import { hostname as machineName } from "node:os";
import { ApiError } from "./errors.js";

/** By which names and from which pages a service may be asked. */
export interface SiteOptions {
  /** The address that the service listens on. */
  readonly host: string;
  /** More names by which it is reached: through a proxy, in a cluster. `*` for any; `.example.org` for all below. */
  readonly allowedHosts: readonly string[];
  /** Origins whose pages may ask. */
  readonly corsOrigins: readonly string[];
}

export interface AskedFrom {
  readonly method: string;
  readonly host: string | undefined;
  readonly origin: string | undefined;
  /** Sec-Fetch-Site, which browsers set. */
  readonly site: string | undefined;
}

/**
 * A service without keys answers whoever reaches it, and web pages of strangers reach it through their readers' browsers. A name of
 * theirs that is made to lead here (DNS rebinding) shows in the header Host, a request from their page in Origin.
 * @returns what checks a request. @throws ApiError 403
 */
export function siteCheck({ host, allowedHosts, corsOrigins }: SiteOptions): (asked: AskedFrom) => void {
  const names = allowedHosts.map((one) => one.toLowerCase()).filter((one) => one !== "*");
  const anyName = names.length < allowedHosts.length;
  const isListed = (name: string): boolean =>
    names.some((one) => one === name || (one.startsWith(".") && name.endsWith(one)));
  const isOwnName = (name: string): boolean =>
    anyName || isLoopback(name) || name === host.toLowerCase() || (!isLoopback(host) && isNear(name)) || isListed(name);
  const isOwnPage = (origin: string, asked: string | undefined): boolean => {
    if (corsOrigins.includes("*") || corsOrigins.includes(origin)) return true;
    const [, place] = /^https?:\/\/(.+)$/.exec(origin.toLowerCase()) ?? [];
    if (place === undefined) return false;
    return place === asked?.toLowerCase() || isListed(nameIn(place) ?? "");
  };
  return ({ method, host: asked, origin, site }) => {
    const name = asked === undefined ? undefined : nameIn(asked);
    if (asked !== undefined && (name === undefined || !isOwnName(name)))
      throw refused(`this service is not called ${JSON.stringify(asked.slice(0, 256))}: if it is, use --allowed-hosts`);
    const isForeign = origin === undefined ? method !== "GET" && site === "cross-site" : !isOwnPage(origin, asked);
    if (isForeign) throw refused("pages of other sites may not ask this service: allow them with --cors");
  };
}

const refused = (why: string): ApiError => new ApiError(403, why, { code: "foreign_site" });

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

/** Names that always mean the machine itself, or the one that a container runs on: nobody else can have them. */
const isLoopback = (name: string): boolean =>
  name === "localhost" ||
  name.endsWith(".localhost") ||
  name.endsWith(".internal") ||
  name === "::1" ||
  /^127\.\d+\.\d+\.\d+$/.test(name);

/** Names within a network: addresses, and what no public name server answers for. */
const isNear = (name: string): boolean =>
  isIP(name) !== 0 || !name.includes(".") || name.endsWith(".local") || name === machineName().toLowerCase();
