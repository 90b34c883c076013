import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { serveCommand } from "../../src/cli/serve.js";
import { MANAGEMENT } from "../../src/serve/api/management.js";

const root = path.resolve(import.meta.dirname, "../..");
const chart = path.join(root, "deploy/helm/coppice");
const read = (file: string) => readFileSync(path.join(root, file), "utf8");
const templates = readdirSync(path.join(chart, "templates"))
  .map((file) => readFileSync(path.join(chart, "templates", file), "utf8"))
  .join("\n");
const variables = serveCommand.options.map(({ envVar }) => envVar);
const hasHelm = spawnSync("helm", ["version"]).status === 0;
const helm = (...args: string[]) => spawnSync("helm", args, { encoding: "utf8" });

describe("the container and the chart", () => {
  it("set only options that serve has", () => {
    const named = [...`${templates}\n${read("Dockerfile")}`.matchAll(/COPPICE_SERVE_([A-Z_]+)/g)].map(([name]) => name);
    expect(named.length).toBeGreaterThan(5);
    for (const name of named) expect(variables).toContain(name);
  });

  it("probe endpoints that need no key", () => {
    const probed = [...`${templates}\n${read("Dockerfile")}`.matchAll(/\/v1\/health\/\w+/g)].map(([at]) => at);
    expect(new Set(probed)).toEqual(new Set(["/v1/health/live", "/v1/health/ready"]));
    for (const at of probed) expect(MANAGEMENT.find(({ path: endpoint }) => endpoint === at)?.open).toBe(true);
    expect(templates).toContain("/v1/metrics");
  });

  it("copy only files that exist, and run as an unprivileged user", () => {
    const dockerfile = read("Dockerfile");
    const copied = [...dockerfile.matchAll(/\/opt\/coppice\/([\w./-]+)(?= )/g)].map(([, file = ""]) => file);
    expect(copied.length).toBeGreaterThan(5);
    for (const file of copied) expect(existsSync(path.join(root, file)), file).toBe(true);
    expect(dockerfile).toMatch(/^USER 10001:10001$/m);
    expect(templates).toContain("runAsUser: 10001");
  });

  it.skipIf(!hasHelm)("render with every feature off and with every feature on (needs helm)", () => {
    const version = ["--kube-version", "1.31.0"];
    expect(helm("lint", "--strict", chart).status).toBe(0);
    const least = helm("template", "x", chart, ...version);
    expect(least.status).toBe(0);
    const kinds = [...least.stdout.matchAll(/^kind: (\w+)/gm)].map(([, kind]) => kind);
    expect(kinds.sort()).toEqual(["Deployment", "Service", "ServiceAccount"]);
    const on = ["ingress", "autoscaling", "podDisruptionBudget", "metrics.serviceMonitor"].map(
      (name) => `${name}.enabled=true`,
    );
    const secrets = ["apiKeysSecret=a", "tlsSecret=b", "hubTokenSecret=c", "modelsClaim=d", "cache.claim=e"];
    const most = helm("template", "x", chart, ...version, "--set", [...on, ...secrets].join());
    expect(most.status).toBe(0);
    expect(most.stdout.match(/^kind: /gm)).toHaveLength(7);
    expect(most.stdout).toContain("scheme: HTTPS");
    expect(helm("template", "x", chart, ...version, "--set", "replica=2").stderr).toContain("'replica' not allowed");
  });
});
