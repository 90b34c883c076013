import { existsSync } from "node:fs";
import path from "node:path";
import type { KoffiFunc } from "koffi";
import { CoppiceError } from "../system/errors.js";
import koffi from "../system/ffi.js";
import type { Launch } from "./launch.js";

type Library = ReturnType<typeof koffi.load>;
/** A handle or constant: a number in MPICH, an address elsewhere. All are passed as 64 bits. */
type Handle = bigint;

/** What differs between MPI's binary interfaces. */
interface Constants {
  readonly world: Handle;
  readonly float: Handle;
  readonly double: Handle;
  readonly byte: Handle;
  readonly sum: Handle;
  readonly ignoreStatus: Handle;
  /** MPI_THREAD_SERIALIZED: any thread may call, one at a time. */
  readonly serialized: number;
}

/** A family of MPI libraries with a common binary interface. */
interface Abi {
  readonly name: string;
  /** File names, without folder. */
  readonly files: readonly string[];
  readonly matches: (library: Library, file: string) => boolean;
  readonly constants: (library: Library) => Constants;
}

const has = (library: Library, symbol: string): boolean => {
  try {
    library.symbol(symbol);
    return true;
  } catch {
    return false;
  }
};

const addressOf = (library: Library, symbol: string): Handle => BigInt(library.symbol(symbol) as bigint);

/** Values by mpi.h of Open MPI 4, of MPICH's ABI initiative, and of the standard ABI (MPI 5.0, chapter 20). */
const ABIS: readonly Abi[] = [
  {
    name: "Open MPI",
    files: ["libmpi.so.40", "libmpi.so.80", "libmpi.40.dylib", "libmpi.so", "libmpi.dylib"],
    matches: (library) => has(library, "ompi_mpi_comm_world"),
    constants: (library) => ({
      world: addressOf(library, "ompi_mpi_comm_world"),
      float: addressOf(library, "ompi_mpi_float"),
      double: addressOf(library, "ompi_mpi_double"),
      byte: addressOf(library, "ompi_mpi_byte"),
      sum: addressOf(library, "ompi_mpi_op_sum"),
      ignoreStatus: 0n,
      serialized: 2,
    }),
  },
  {
    name: "the standard ABI",
    files: ["libmpi_abi.so.1", "libmpi_abi.so.0", "libmpi_abi.so", "libmpi_abi.dylib"],
    matches: (_library, file) => path.basename(file).includes("mpi_abi"),
    constants: () => ({
      world: 0x101n,
      float: 0x210n,
      double: 0x214n,
      byte: 0x247n,
      sum: 0x21n,
      ignoreStatus: 0n,
      serialized: 2048,
    }),
  },
  {
    name: "MPICH",
    files: ["libmpi.so.12", "libmpich.so.12", "libmpi.12.dylib", "libmpich.so"],
    matches: () => true,
    constants: () => ({
      world: 0x44000000n,
      float: 0x4c00040an,
      double: 0x4c00080bn,
      byte: 0x4c00010dn,
      sum: 0x58000003n,
      ignoreStatus: 1n,
      serialized: 2,
    }),
  },
];

const FUNCTIONS = {
  MPI_Init_thread: ["void *", "void *", "int", "_Out_ int *"],
  MPI_Get_library_version: ["void *", "_Out_ int *"],
  MPI_Comm_rank: ["intptr_t", "_Out_ int *"],
  MPI_Comm_size: ["intptr_t", "_Out_ int *"],
  MPI_Bcast: ["void *", "int", "intptr_t", "int", "intptr_t"],
  MPI_Reduce: ["void *", "void *", "int", "intptr_t", "intptr_t", "int", "intptr_t"],
  MPI_Allgather: ["void *", "int", "intptr_t", "void *", "int", "intptr_t", "intptr_t"],
  MPI_Send: ["void *", "int", "intptr_t", "int", "int", "intptr_t"],
  MPI_Recv: ["void *", "int", "intptr_t", "int", "int", "intptr_t", "uintptr_t"],
  MPI_Iprobe: ["int", "int", "intptr_t", "_Out_ int *", "uintptr_t"],
  MPI_Abort: ["intptr_t", "int"],
  MPI_Finalize: [],
} as const;
export type MpiFunction = keyof typeof FUNCTIONS;

/** An MPI library: its functions, by their names, and the values of its handles. */
export interface MpiLibrary {
  readonly file: string;
  /** The name of its binary interface. */
  readonly abi: string;
  readonly constants: Constants;
  readonly functions: Readonly<Record<MpiFunction, KoffiFunc<(...args: unknown[]) => number>>>;
}

/** Folders beside those of the launchers in the search path, for an MPI that the system's linker does not know. */
const folders = (): string[] =>
  (process.env.PATH ?? "")
    .split(path.delimiter)
    .filter((folder) => ["mpirun", "mpiexec"].some((name) => existsSync(path.join(folder, name))))
    .flatMap((folder) => ["lib", "lib64"].map((name) => path.join(folder, "..", name)));

/**
 * Loads an MPI library of the system: the one named by COPPICE_MPI, or else the first that is found, those of the launcher's kind first.
 * @throws CoppiceError saying where it was looked for
 */
export function loadMpi({ launcher, library: kind }: Launch): MpiLibrary {
  const named = process.env.COPPICE_MPI;
  const files = ABIS.toSorted((a, b) => Number(b.name === kind) - Number(a.name === kind)).flatMap((abi) => abi.files);
  const candidates = named
    ? [named]
    : files.flatMap((file) => [
        file,
        ...folders()
          .map((folder) => path.join(folder, file))
          .filter(existsSync),
      ]);
  for (const file of candidates) {
    let library: Library;
    try {
      library = koffi.load(file, { global: true, lazy: true });
    } catch {
      continue;
    }
    if (!has(library, "MPI_Init_thread")) continue;
    const abi = ABIS.find(({ matches }) => matches(library, file));
    if (abi === undefined) continue;
    const functions = Object.fromEntries(
      Object.entries(FUNCTIONS).map(([name, args]) => [name, library.func(name, "int", [...args])]),
    ) as unknown as MpiLibrary["functions"];
    return { file, abi: abi.name, constants: abi.constants(library), functions };
  }
  throw new CoppiceError(
    `${launcher} started this process as one of several, but no MPI library could be loaded (tried ${candidates.join(", ")}): name its file in COPPICE_MPI`,
  );
}
