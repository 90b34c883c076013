import { describe, expect, it } from "vitest";
import { hideLaunch, launchOf } from "../../src/ranks/launch.js";
import { loadMpi } from "../../src/ranks/library.js";

describe("a launcher of MPI programs", () => {
  it("is known by what it sets in each process", () => {
    expect(launchOf({ OMPI_COMM_WORLD_RANK: "0", OMPI_COMM_WORLD_SIZE: "4" })?.library).toBe("Open MPI");
    expect(launchOf({ PMI_RANK: "3", PMI_SIZE: "4" })?.library).toBe("MPICH");
    expect(launchOf({ PMIX_RANK: "1", SLURM_STEP_NUM_TASKS: "2" })?.launcher).toBe("srun");
    expect(launchOf({ PMIX_RANK: "1" })?.launcher).toBe("srun"); // not all say how many there are
  });

  it("makes no ranks of a single process, nor of a batch script", () => {
    expect(launchOf({ OMPI_COMM_WORLD_RANK: "0", OMPI_COMM_WORLD_SIZE: "1" })).toBeUndefined();
    expect(launchOf({ SLURM_PROCID: "0", SLURM_NTASKS: "8" })).toBeUndefined();
    expect(launchOf({})).toBeUndefined();
  });

  it("is hidden from the processes that a rank starts", () => {
    const environment: NodeJS.ProcessEnv = { OMPI_COMM_WORLD_RANK: "1", PMIX_RANK: "1", PMI_SIZE: "2", PATH: "/bin" };
    hideLaunch(environment);
    expect(environment).toEqual({ PATH: "/bin" });
  });

  it("without its library is an error that says what to do, rather than several processes that do the same job", () => {
    process.env.COPPICE_MPI = "/nowhere/libmpi.so";
    try {
      expect(() => loadMpi({ launcher: "mpirun", library: "Open MPI" })).toThrow(
        /mpirun started this process as one of several, .*tried \/nowhere\/libmpi\.so.*COPPICE_MPI/,
      );
    } finally {
      delete process.env.COPPICE_MPI;
    }
  });
});
