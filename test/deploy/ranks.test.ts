import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { parseAllDocuments } from "yaml";
import { programFor } from "../../src/cli/program.js";

const root = path.resolve(import.meta.dirname, "../..");
const folder = path.join(root, "deploy/kubernetes");
const directory = mkdtempSync(path.join(root, "node_modules/.cache-deploy-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

interface Container {
  readonly args?: readonly string[];
}
interface Manifest {
  readonly kind: string;
  readonly spec: {
    readonly completions?: number;
    readonly template?: { readonly spec: { readonly containers: readonly Container[] } };
    readonly mpiReplicaSpecs?: Readonly<
      Record<string, { readonly template: { readonly spec: { readonly containers: readonly Container[] } } }>
    >;
  };
}
const manifests = (file: string): Manifest[] =>
  parseAllDocuments(readFileSync(path.join(folder, file), "utf8")).map((document) => document.toJS() as Manifest);

/** Fields of v2beta1 by the operator's types.go; the pods are Kubernetes' own. */
const MPI_JOB = `
interface ReplicaSpec { replicas?: number; restartPolicy?: "Always" | "OnFailure" | "Never" | "ExitCode"; template: IPodTemplateSpec }
interface MPIJob {
  apiVersion: "kubeflow.org/v2beta1"; kind: "MPIJob"; metadata: { name: string; namespace?: string; labels?: Record<string, string> };
  spec: {
    slotsPerWorker?: number; runLauncherAsWorker?: boolean; sshAuthMountPath?: string;
    launcherCreationPolicy?: "AtStartup" | "WaitForWorkersReady"; mpiImplementation?: "OpenMPI" | "Intel" | "MPICH";
    runPolicy?: { cleanPodPolicy?: "None" | "Running" | "All"; ttlSecondsAfterFinished?: number; activeDeadlineSeconds?: number; backoffLimit?: number; suspend?: boolean };
    mpiReplicaSpecs: { Launcher: ReplicaSpec; Worker?: ReplicaSpec };
  };
}`;

describe("the manifests of MPI jobs", () => {
  it("have the fields of their schemas, and no others", () => {
    const types: Readonly<Record<string, string>> = { Service: "IService", Job: "IJob", MPIJob: "MPIJob" };
    const all = readdirSync(folder)
      .filter((file) => file.endsWith(".yaml"))
      .flatMap(manifests);
    expect(all.map(({ kind }) => kind)).toEqual(["Service", "Job", "MPIJob"]);
    const source = [
      'import type { IJob } from "kubernetes-models/batch/v1/Job";',
      'import type { IPodTemplateSpec } from "kubernetes-models/v1/PodTemplateSpec";',
      'import type { IService } from "kubernetes-models/v1/Service";',
      MPI_JOB,
      ...all.map((manifest, i) => `export const m${i}: ${types[manifest.kind]} = ${JSON.stringify(manifest)};`),
    ].join("\n");
    const file = path.join(directory, "manifests.ts");
    const flags = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--types", "", "--ignoreConfig"];
    const check = (text: string) => {
      writeFileSync(file, text);
      return spawnSync(process.execPath, [path.join(root, "node_modules/typescript/bin/tsc"), ...flags, file], {
        encoding: "utf8",
      });
    };
    expect(check(source).stdout).toBe("");
    expect(check(source.replace('"completionMode"', '"completionmode"')).stdout).toMatch(/completionmode/);
    expect(check(source.replace('"slotsPerWorker":1', '"slotsPerWorker":"1"')).stdout).toMatch(/not assignable/);
  });

  it("call the command line as it is", async () => {
    const [, job] = manifests("distill-job.yaml");
    const [mpiJob] = manifests("distill-mpijob.yaml");
    const slurm = readFileSync(path.join(root, "deploy/slurm/distill.sbatch"), "utf8");
    const calls = [
      job?.spec.template?.spec.containers[0]?.args ?? [],
      mpiJob?.spec.mpiReplicaSpecs?.Launcher?.template.spec.containers[0]?.args ?? [],
      slurm.slice(slurm.indexOf("coppice distill")).replaceAll("\\\n", " ").replaceAll('"', "").split(/\s+/),
    ];
    for (const words of calls) {
      const args = words.slice(words.indexOf("coppice") + 1).filter((word) => word !== "");
      const program = await programFor("distill");
      const command = program.commands[0];
      command?.action(() => {});
      await program.parseAsync(args, { from: "user" });
      expect(command?.opts()).toMatchObject({ tokens: 1e9, batchSize: 64 });
    }
  });
});

const hasMpich = spawnSync("mpiexec.hydra", ["--version"]).error === undefined;

describe("the script that starts a rank in each pod", () => {
  it.skipIf(!hasMpich)("starts them without ssh, and passes on output and exit code (needs MPICH)", async () => {
    const shared = mkdtempSync(path.join(tmpdir(), "coppice-pods-"));
    const pod = async (index: number, id: string, command: readonly string[]) => {
      const env = {
        ...process.env,
        JOB_COMPLETION_INDEX: String(index),
        RANKS: "2",
        HOSTS: "127.0.0.1,127.0.0.2",
        SHARED: shared,
        JOB_ID: id,
      };
      const script = spawn("sh", [path.join(folder, "start-ranks.sh"), ...command], {
        env,
        stdio: ["ignore", "pipe", "ignore"],
      });
      let output = "";
      script.stdout.on("data", (chunk) => {
        output += chunk;
      });
      const [code] = await once(script, "close");
      return { code, output };
    };
    const pods = (id: string, ...command: readonly string[]) =>
      Promise.all([1, 0].map((index) => pod(index, id, command)));
    try {
      const [second, first] = await pods("a", "sh", "-c", "echo rank $PMI_RANK of $PMI_SIZE");
      expect(first?.output.trim().split("\n").sort()).toEqual(["rank 0 of 2", "rank 1 of 2"]);
      expect([first?.code, second?.code]).toEqual([0, 0]);
      // every pod of a failed job fails: one that ends well is not started again
      expect((await pods("b", "sh", "-c", "exit 3")).map(({ code }) => code)).toEqual([3, 3]);
      expect((await pods("b", "true")).map(({ code }) => code)).toEqual([0, 0]); // what the attempt before left is no matter
      expect(readdirSync(shared).sort()).toEqual([".ranks-a.exit", ".ranks-b.exit"]);
    } finally {
      rmSync(shared, { recursive: true, force: true });
    }
  });
});
