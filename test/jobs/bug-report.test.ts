import { homedir } from "node:os";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { bugReport } from "../../src/jobs/bug-report.js";
import { diagnose } from "../../src/jobs/diagnosis.js";

const diagnosis = await diagnose({ device: "cpu" });

describe("a bug report", () => {
  it("tells no secret, whatever its variable is called", () => {
    const secrets = {
      HF_TOKEN: "hf_s3cret",
      OPENAI_API_KEY: "sk-s3cret",
      AWS_SECRET_ACCESS_KEY: "s3cret",
      COPPICE_FOUNDRY_SECRET: "s3cret",
      DATABASE_URL: "postgres://me:s3cret@db/foundry",
      COPPICE_SERVE_API_KEYS: "/etc/s3cret",
      COPPICE_FOUNDRY_STORAGE: "https://me:s3cret@storage/x",
      MY_OWN: "s3cret",
    };
    const { environment } = bugReport(diagnosis, { ...secrets, COPPICE_THREADS: "3" });
    expect(JSON.stringify(environment)).not.toContain("s3cret");
    expect(environment).toMatchObject({ COPPICE_THREADS: "3", HF_TOKEN: "(set, not shown)" });
    expect(Object.keys(environment)).not.toContain("MY_OWN");
  });

  it("has ~ for the home directory, everywhere", () => {
    const cache = path.join(homedir(), "models", "cache");
    const report = bugReport({ ...diagnosis, cache }, { COPPICE_CACHE: cache });
    expect(report.diagnosis.cache).toBe(path.join("~", "models", "cache"));
    expect(JSON.stringify(report)).not.toContain(homedir());
  });

  it("says what is installed and in use", () => {
    const report = bugReport(diagnosis, {});
    expect(report.versions.node).toBe(process.versions.node);
    expect(report.diagnosis.ggml.version).toMatch(/^\d/);
    expect(report.diagnosis.kernels.available).toEqual(diagnosis.kernels.available);
  });
});
