import cliProgress from "cli-progress";
import type { ProgressEvent } from "../jobs/index.js";
import { formatBytes, formatCount } from "../jobs/report.js";

const REPORT_EVERY_MS = 5000;

/** Shows how a job goes on standard error: a bar per stage on a terminal, a line now and then elsewhere. */
export class ProgressDisplay {
  private stage: string | undefined;
  private started = 0;
  private reported = 0;
  private bar: cliProgress.SingleBar | undefined;

  constructor(private readonly terminal: boolean = process.stderr.isTTY === true) {}

  readonly update = (event: ProgressEvent): void => {
    const now = performance.now();
    if (event.stage !== this.stage) this.begin(event, now);
    const rate = event.done / Math.max(1e-3, (now - this.started) / 1000);
    const left = (event.total - event.done) / Math.max(rate, 1e-9);
    const text = {
      stage: event.stage.padEnd(16),
      rate: `${amount(event, rate)}/s`,
      left: event.done === 0 ? "?" : duration(left),
      detail: event.detail ?? "",
      amounts: `${amount(event, event.done)} of ${amount(event, event.total)}`,
    };
    const finished = event.done >= event.total;
    if (this.bar !== undefined) this.bar.update(event.done, text);
    else if (finished || now - this.reported > REPORT_EVERY_MS) {
      this.reported = now;
      const share = ((100 * event.done) / Math.max(1, event.total)).toFixed(0).padStart(3);
      process.stderr.write(
        `${text.stage} ${share} %  ${text.amounts}  ${text.rate}  ${finished ? "done" : `${text.left} left`}  ${text.detail}\n`,
      );
    }
  };

  private begin(event: ProgressEvent, now: number): void {
    this.end();
    this.stage = event.stage;
    this.started = now;
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

  /** Says something on a line of its own. */
  readonly note = (text: string): void => {
    this.end();
    process.stderr.write(`note: ${text}\n`);
  };

  /** Ends the bar that is shown, so that other text may follow. */
  end(): void {
    this.bar?.stop();
    this.bar = undefined;
    this.stage = undefined;
  }
}

const amount = ({ unit }: ProgressEvent, value: number): string =>
  unit === "bytes" ? formatBytes(Math.round(value)) : `${formatCount(value)} ${unit}`;

function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
