import cliProgress from "cli-progress";
import type { ProgressEvent } from "../jobs/index.js";
import { formatBytes, formatCount } from "../system/format.js";
import { isLogging, logOf } from "../system/log.js";

const log = logOf("progress");

const REPORT_EVERY_MS = 5000;
/** In less time no rate can be measured. */
const RATE_SECONDS = 0.2;

/** Shows a job's progress on standard error: a bar per stage on a terminal, a line now and then elsewhere. */
export class ProgressDisplay {
  private stage: string | undefined;
  /** When the stage was first reported, and how much was done by then: how long that took is not known. */
  private started = 0;
  private before = 0;
  private reported = 0;
  private bar: cliProgress.SingleBar | undefined;
  private readonly noted = new Set<string>();

  /** @param terminal whether bars are drawn: a log would run into them */
  constructor(private readonly terminal: boolean = process.stderr.isTTY === true && !isLogging()) {}

  readonly update = (event: ProgressEvent): void => {
    const now = performance.now();
    if (event.stage !== this.stage) this.begin(event, now);
    const seconds = (now - this.started) / 1000;
    const rate = seconds >= RATE_SECONDS ? (event.done - this.before) / seconds : 0;
    const text = {
      stage: event.stage.padEnd(16),
      rate: rate > 0 ? `${number(event, rate)}${unitOf(event)}/s` : "",
      left: rate > 0 ? duration((event.total - event.done) / rate) : "?",
      detail: event.detail ?? "",
      amounts: amounts(event),
    };
    const finished = event.done >= event.total;
    log.trace("progress", { ...event });
    if (finished) log.debug("done", { stage: event.stage, seconds, total: event.total, unit: event.unit });
    if (this.bar !== undefined) this.bar.update(event.done, text);
    else if (finished || now - this.reported > REPORT_EVERY_MS) {
      this.reported = now;
      const share = ((100 * event.done) / Math.max(1, event.total)).toFixed(0).padStart(3);
      const parts = [text.amounts, text.rate, finished ? "done" : `${text.left} left`, text.detail];
      process.stderr.write(`${text.stage} ${share} %  ${parts.filter((part) => part !== "").join("  ")}\n`);
    }
  };

  /** Prints a note once, between the bars. */
  readonly note = (text: string): void => {
    if (this.noted.has(text)) return;
    this.noted.add(text);
    this.end();
    process.stderr.write(`note: ${text}\n`);
  };

  private begin(event: ProgressEvent, now: number): void {
    this.end();
    this.stage = event.stage;
    this.started = now;
    this.before = event.done;
    this.reported = now;
    if (!this.terminal) return;
    this.bar = new cliProgress.SingleBar(
      {
        stream: process.stderr,
        format: "{stage} {bar} {percentage} %  {amounts}  {rate}  {left} left  {detail}",
        barsize: 24,
        hideCursor: true,
        etaBuffer: 1,
      },
      cliProgress.Presets.shades_classic,
    );
    this.bar.start(event.total, 0, { stage: event.stage, rate: "", left: "", detail: "", amounts: "" });
  }

  /** Ends the bar that is shown, so that other text may follow. */
  end(): void {
    this.bar?.stop();
    this.bar = undefined;
    this.stage = undefined;
  }
}

/** `8 of 120 sequences`, `1.00 MiB of 2.00 MiB`. */
const amounts = (event: ProgressEvent): string =>
  `${number(event, event.done)} of ${number(event, event.total)}${unitOf(event, event.total)}`;

const number = ({ unit }: ProgressEvent, value: number): string => {
  if (unit === "bytes") return formatBytes(Math.round(value));
  return value < 10 ? threeDigits(value) : formatCount(value);
};

/** Bytes have their unit in the number. */
const unitOf = ({ unit }: ProgressEvent, count?: number): string =>
  unit === "bytes" ? "" : ` ${count === 1 ? unit.replace(/s$/, "") : unit}`;

/** 3, 0.25: a slow rate is not shown as 0. */
const threeDigits = (value: number): string => String(Number(value.toPrecision(3)));

function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
