export { Cholesky } from "./cholesky.js";
export { block, diagonalOf, keepRows, readElements, writeElements } from "./device.js";
export { inverseOfBlock } from "./diagonal-block.js";
export { type EigenOptions, type SymmetricEigen, symmetricEigen } from "./eigen.js";
export type { CholeskyOptions } from "./factor.js";
export { type Matrix, meanDiagonal, meanOf, symmetric, transpose, zeroMatrix } from "./matrix.js";
export { type MultiplyOptions, multiply } from "./multiply.js";
