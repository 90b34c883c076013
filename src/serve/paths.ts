/** Other paths at which clients look for endpoints. */

const ALIASES: Readonly<Record<string, string>> = {
  "/health": "/v1/health/ready",
  "/healthz": "/v1/health/live",
  "/livez": "/v1/health/live",
  "/readyz": "/v1/health/ready",
  "/ping": "/v1/health/live",
  "/v1/health": "/v1/health/ready",
  "/v1/tokenize": "/tokenize",
  "/v1/detokenize": "/detokenize",
  "/v1/openapi.json": "/openapi.json",
};

/**
 * The service's own form of a path: without repeated slashes or one at the end, and with one `/v1` where a client has it twice, under
 * another path (`/openai/v1`, `/api/v1`) or not at all.
 * @param isKnown whether a path has an endpoint
 */
export function canonicalPath(path: string, isKnown: (path: string) => boolean): string {
  const single = path.replace(/\/{2,}/g, "/").replace(/(?<=.)\/$/, "");
  const plain = single.replace(/^(?:\/(?:api|openai|anthropic))?(?:\/v1)+(?=\/)/, "/v1");
  if (isKnown(plain)) return plain;
  const unversioned = plain.replace(/^\/v1(?=\/)/, "");
  const candidates = [ALIASES[plain], ALIASES[unversioned], `/v1${plain}`, unversioned];
  return candidates.find((candidate) => candidate !== undefined && isKnown(candidate)) ?? plain;
}
