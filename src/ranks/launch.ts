/** How MPI's launchers tell a process that it is one of several, and which library goes with them. */
interface Launcher {
  readonly name: string;
  /** Set in every process that it starts. */
  readonly rank: string;
  /** The number of processes; not all launchers tell. */
  readonly size?: string | undefined;
  readonly library: "Open MPI" | "MPICH";
}

const LAUNCHERS: readonly Launcher[] = [
  { name: "mpirun", rank: "OMPI_COMM_WORLD_RANK", size: "OMPI_COMM_WORLD_SIZE", library: "Open MPI" },
  { name: "mpiexec", rank: "PMI_RANK", size: "PMI_SIZE", library: "MPICH" },
  { name: "srun", rank: "PMIX_RANK", size: "SLURM_STEP_NUM_TASKS", library: "Open MPI" },
];

/** That this process was started as one of several. */
export interface Launch {
  readonly launcher: string;
  /** The library that most likely belongs to the launcher. */
  readonly library: Launcher["library"];
  /** How many processes it started, where it tells. */
  readonly count?: number | undefined;
}

/**
 * Whether a launcher of MPI programs started this process together with others. Variables of a batch script (SLURM_PROCID) do not
 * count: the script itself is a single process.
 */
export function launchOf(environment: NodeJS.ProcessEnv): Launch | undefined {
  for (const { name, rank, size, library } of LAUNCHERS) {
    if (environment[rank] === undefined) continue;
    const told = size === undefined ? undefined : environment[size];
    const count = told === undefined ? undefined : Number(told);
    if (count === undefined || count > 1) return { launcher: name, library, count };
  }
  return undefined;
}

/** What launchers set. Processes that this one starts are no ranks, and must not take themselves for some. */
const LAUNCHER_VARIABLES = /^(OMPI_|PMI_|PMIX_|PRTE_|HYDRA_|MPI_LOCAL|MPIR_)/;

/** Removes what a launcher told this process, so that its children do not see it. */
export function hideLaunch(environment: NodeJS.ProcessEnv): void {
  for (const name of Object.keys(environment)) if (LAUNCHER_VARIABLES.test(name)) delete environment[name];
}
