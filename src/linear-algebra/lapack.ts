import { CoppiceError } from "../system/errors.js";
import koffi from "../system/ffi.js";

/** Where LAPACK may be: a part of macOS; on Linux and Windows OpenBLAS, or another, where it is installed. */
const LIBRARIES: Readonly<Partial<Record<NodeJS.Platform, readonly string[]>>> = {
  darwin: ["/System/Library/Frameworks/Accelerate.framework/Accelerate"],
  linux: ["libopenblas.so.0", "libopenblas.so", "liblapack.so.3", "libmkl_rt.so.2"],
  win32: ["libopenblas.dll", "openblas.dll"],
};

/** Computes eigenvalues (ascending) and replaces a symmetric matrix by its eigenvectors, row by row. */
export type SymmetricEigenRoutine = (matrix: Float64Array, size: number) => Promise<Float64Array>;

let found: { readonly routine: SymmetricEigenRoutine | undefined } | undefined;

/** LAPACK's divide and conquer, where the system has the library. */
export function lapackEigen(): SymmetricEigenRoutine | undefined {
  found ??= { routine: (LIBRARIES[process.platform] ?? []).map(load).find((routine) => routine !== undefined) };
  return found.routine;
}

function load(file: string): SymmetricEigenRoutine | undefined {
  try {
    const pointers = Array.from({ length: 9 }, () => "void *");
    return routineOf(koffi.load(file).func("dsyevd_", "void", ["const char *", "const char *", ...pointers]));
  } catch {
    return undefined;
  }
}

/** The routine by way of dsyevd_(jobz, uplo, n, a, lda, w, work, lwork, iwork, liwork, info). */
const routineOf =
  (dsyevd: ReturnType<ReturnType<typeof koffi.load>["func"]>): SymmetricEigenRoutine =>
  (matrix, size) => {
    const values = new Float64Array(size);
    // the least that the documentation of dsyevd asks for; sizes of 1 fit too
    const work = new Float64Array(1 + 6 * size + 2 * size ** 2);
    const integerWork = new Int32Array(3 + 5 * size);
    const [n, workSize, integerWorkSize] = [size, work.length, integerWork.length].map((value) => Int32Array.of(value));
    const info = new Int32Array(1);
    const vectors = [n, matrix, n, values, work, workSize, integerWork, integerWorkSize, info];
    return new Promise((resolve, reject) => {
      // the lower triangle of rows is the upper one of LAPACK's columns
      dsyevd.async("V", "U", ...vectors, (error: Error | null) => {
        if (error !== null) reject(error);
        else if (info[0] !== 0) reject(new CoppiceError(`LAPACK found no eigenvectors: dsyevd ended with ${info[0]}`));
        else resolve(values);
      });
    });
  };
