import { formatCount } from "../system/format.js";

/** Runs of fewer seconds than this get no forecast. */
const LONG_SECONDS = 600;
const HOUR_SECONDS = 3600;
/** Steps to measure after the first one, which also builds the graph. */
const MEASURED_STEPS = 2;

const formatDuration = (seconds: number): string => {
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.round(minutes / 6) / 10;
  return hours < 48 ? `${hours} h` : `${Math.round(hours / 24)} days`;
};

/**
 * Forecasts after a few steps how long a training run will take, and how many tokens an hour is enough for.
 * @param isWhole whether `--tokens` is the length of this run rather than of a larger whole
 * @returns a function to call after each step, with the tokens so far, the run's total and the time in seconds
 */
export function forecast(
  stage: string,
  note: (text: string) => void,
  isWhole = true,
): (tokens: number, total: number, seconds: number) => void {
  let first: { readonly tokens: number; readonly seconds: number } | undefined;
  let steps = 0;
  return (tokens, total, seconds) => {
    first ??= { tokens, seconds };
    if (steps++ !== MEASURED_STEPS) return;
    const rate = (tokens - first.tokens) / (seconds - first.seconds);
    const left = (total - tokens) / rate;
    if (!(rate > 0) || left < LONG_SECONDS) return;
    const shorter =
      isWhole && left > 1.5 * HOUR_SECONDS
        ? `; --tokens ${formatCount(rate * HOUR_SECONDS).replace(" ", "")} would take an hour`
        : "";
    note(`at ${formatCount(rate)} tokens/s ${stage} takes about ${formatDuration(left)}${shorter}`);
  };
}
