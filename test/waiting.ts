import { expect, vi } from "vitest";

/**
 * Limits for what tests wait for: events that must come, however slow the machine is. Only a hang takes so long. Importing this file
 * sets the limit of the file's tests and hooks.
 */
export const WAIT_MILLISECONDS = 300_000;
vi.setConfig({ testTimeout: 3 * WAIT_MILLISECONDS, hookTimeout: WAIT_MILLISECONDS });

/** `expect.poll` with the limit above. */
export const until: typeof expect.poll = (probe, options) =>
  expect.poll(probe, { timeout: WAIT_MILLISECONDS, ...options });
