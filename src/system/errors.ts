/**
 * An error for the person who ran the command: its message says what was wrong, with the value and where it came from, and what
 * to do. The command line prints the message without a stack trace and exits with code 1.
 * @example
 * ```ts
 * import { CoppiceError, inspect } from "coppice";
 *
 * try {
 *   console.log(await inspect("./model"));
 * } catch (error) {
 *   if (!(error instanceof CoppiceError)) throw error;
 *   console.error(error.message); // says what was wrong and what to do
 * }
 * ```
 */
export class CoppiceError extends Error {
  override readonly name: string = "CoppiceError";
}

/** The command was called with wrong arguments (an unknown option, a malformed target): exit code 2. */
export class UsageError extends CoppiceError {
  override readonly name = "UsageError";
}

/** A file or response from outside is not what it claims to be. */
export class FormatError extends CoppiceError {
  override readonly name = "FormatError";
}

/** A job was stopped on request; what it has done is kept. */
export class InterruptedError extends CoppiceError {
  override readonly name = "InterruptedError";
}

/** Tensors do not fit by shape or type; the message names them. Thrown before anything reaches native code. */
export class ShapeError extends CoppiceError {
  override readonly name = "ShapeError";
}

/** The device has no kernel for something; thrown before it computes. */
export class MissingKernelError extends CoppiceError {
  override readonly name = "MissingKernelError";
}

/** Returns `value`. @throws CoppiceError with `message` when it is undefined or null */
export function required<T>(value: T | undefined | null, message: string): T {
  if (value === undefined || value === null) throw new CoppiceError(message);
  return value;
}
