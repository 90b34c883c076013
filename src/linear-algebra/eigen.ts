import { createRequire } from "node:module";
import { Worker } from "node:worker_threads";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import { lapackEigen, type SymmetricEigenRoutine } from "./lapack.js";
import { checkSquare, type Matrix, zeroMatrix } from "./matrix.js";

export interface SymmetricEigen {
  /** Descending. */
  readonly values: Float64Array;
  /** Orthonormal; row i belongs to value i. */
  readonly vectors: Matrix;
}

export interface EigenOptions {
  /** What computes it; LAPACK where the system has it, by default. */
  readonly library?: "lapack" | "ml-matrix" | undefined;
}

/**
 * Eigenvalues and eigenvectors of a symmetric matrix, in f64 on the CPU, off the event loop: by LAPACK where the system has it
 * (macOS does, Linux and Windows where OpenBLAS is installed), or else by ml-matrix in a thread, which is far slower.
 * Reads the lower triangle only. Takes 24 n² bytes while it works and 4 n² for the result.
 * @throws ShapeError when a is not square, CoppiceError when it holds numbers that are not finite, or the library that was
 * asked for is not there
 */
export async function symmetricEigen(a: Matrix, { library }: EigenOptions = {}): Promise<SymmetricEigen> {
  checkSquare("the matrix of which eigenvectors are wanted", a);
  const size = a.rows;
  const lapack = lapackEigen();
  if (library === "lapack" && lapack === undefined)
    throw new CoppiceError("no LAPACK was found: install OpenBLAS (on Debian: apt-get install libopenblas0)");
  const routine = library === "ml-matrix" || lapack === undefined ? inThread : lapack;
  const vectors = symmetrized(a);
  const values = await routine(vectors, size);
  const descending = zeroMatrix(size, size);
  for (let i = 0; i < size; i++)
    descending.data.set(vectors.subarray((size - 1 - i) * size, (size - i) * size), i * size);
  return { values: values.reverse(), vectors: descending };
}

/** Both triangles from the lower one, in f64. */
function symmetrized({ rows: size, data }: Matrix): Float64Array {
  const full = new Float64Array(size * size);
  for (let i = 0; i < size; i++)
    for (let j = 0; j <= i; j++) {
      const value = elementAt(data, i * size + j);
      if (!Number.isFinite(value))
        throw new CoppiceError(`a matrix with ${value} in row ${i}, column ${j} (from 0) has no eigenvectors`);
      full[i * size + j] = value;
      full[j * size + i] = value;
    }
  return full;
}

/** The thread's program; it finds ml-matrix by the path that it is started with. */
const PROGRAM = `
const { parentPort, workerData } = require("node:worker_threads");
const { EigenvalueDecomposition, Matrix } = require(workerData.library);
const { matrix, size } = workerData;
const full = new Matrix(size, size);
for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) full.set(i, j, matrix[i * size + j]);
const { eigenvectorMatrix, realEigenvalues } = new EigenvalueDecomposition(full, { assumeSymmetric: true });
for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) matrix[i * size + j] = eigenvectorMatrix.get(j, i);
parentPort.postMessage(Float64Array.from(realEigenvalues));
`;

const inThread: SymmetricEigenRoutine = (matrix, size) =>
  new Promise((resolve, reject) => {
    const library = createRequire(import.meta.url).resolve("ml-matrix");
    const shared = new Float64Array(new SharedArrayBuffer(matrix.byteLength));
    shared.set(matrix);
    const worker = new Worker(PROGRAM, { eval: true, workerData: { library, matrix: shared, size } });
    worker.once("message", (values: Float64Array) => {
      matrix.set(shared);
      resolve(values);
    });
    worker.once("error", reject);
    worker.once("exit", (code) => reject(new CoppiceError(`the thread that computes eigenvectors ended with ${code}`)));
  });
