import xterm, { type IBufferCell } from "@xterm/headless";

/** What a terminal wrote, and when. */
export interface Output {
  /** Seconds since the output before it. */
  readonly delay: number;
  readonly bytes: Uint8Array;
}

/** Text of one look. */
interface Run {
  readonly column: number;
  readonly text: string;
  readonly color: string;
  readonly isBold: boolean;
}

interface Frame {
  /** Seconds for which it is shown. */
  readonly seconds: number;
  readonly lines: readonly (readonly Run[])[];
}

export interface RecordingOptions {
  readonly columns: number;
  readonly rows: number;
  /** Waits are shortened to this. */
  readonly longestWait: number;
  /** Screens that are shown for less than this are left out. */
  readonly shortestFrame: number;
  /** For how long the last screen stays. */
  readonly lastSeconds: number;
}

/** The 16 colours of a terminal on a dark ground. */
const PALETTE = [
  "#484f58",
  "#ff7b72",
  "#3fb950",
  "#d29922",
  "#58a6ff",
  "#bc8cff",
  "#39c5cf",
  "#b1bac4",
  "#6e7681",
  "#ffa198",
  "#56d364",
  "#e3b341",
  "#79c0ff",
  "#d2a8ff",
  "#56d4dd",
  "#ffffff",
];
const [TEXT, GROUND] = ["#c9d1d9", "#0d1117"];
const [WIDTH, HEIGHT, MARGIN] = [8.4, 18, 16]; // of a character, and around them, in pixels

function colorOf(cell: IBufferCell): string {
  if (cell.isFgRGB()) return `#${cell.getFgColor().toString(16).padStart(6, "0")}`;
  const color = cell.isFgPalette() ? PALETTE[cell.getFgColor()] : undefined;
  return color ?? (cell.isDim() ? "#8b949e" : TEXT);
}

/** The screen as it stands: for each line its runs of cells that look alike, without what is blank. */
function screenOf(terminal: xterm.Terminal): Run[][] {
  const buffer = terminal.buffer.active;
  return Array.from({ length: terminal.rows }, (_, row) => {
    const runs: Run[] = [];
    const line = buffer.getLine(buffer.viewportY + row);
    for (let column = 0; column < terminal.cols; column++) {
      const cell = line?.getCell(column);
      const text = cell?.getChars() || " ";
      if (cell === undefined) break;
      const [color, isBold] = [colorOf(cell), cell.isBold() !== 0];
      const last = runs.at(-1);
      if (last !== undefined && last.color === color && last.isBold === isBold)
        runs[runs.length - 1] = { ...last, text: last.text + text };
      else runs.push({ column, text, color, isBold });
    }
    return runs.map((run) => ({ ...run, text: run.text.trimEnd() })).filter(({ text }) => text !== "");
  });
}

/** What the screen showed, one after the other. */
async function framesOf(outputs: readonly Output[], options: RecordingOptions): Promise<Frame[]> {
  const { columns, rows, longestWait, shortestFrame, lastSeconds } = options;
  const terminal = new xterm.Terminal({ cols: columns, rows, allowProposedApi: true, convertEol: true });
  const frames: Frame[] = [];
  let shown = 0;
  for (const { delay, bytes } of outputs) {
    shown += Math.min(delay, longestWait);
    if (shown >= shortestFrame) {
      frames.push({ seconds: shown, lines: screenOf(terminal) });
      shown = 0;
    }
    await new Promise<void>((resolve) => terminal.write(bytes, resolve));
  }
  return [...frames, { seconds: lastSeconds, lines: screenOf(terminal) }];
}

const escapeXml = (text: string): string =>
  text.replace(/[&<>"]/g, (one) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[one] ?? one);

function lineOf(runs: readonly Run[]): string {
  return runs
    .map(({ column, text, color, isBold }) => {
      const look = `${color === TEXT ? "" : ` fill="${color}"`}${isBold ? ' font-weight="bold"' : ""}`;
      const [x, length] = [(column * WIDTH).toFixed(1), ([...text].length * WIDTH).toFixed(1)];
      return `<text x="${x}" textLength="${length}"${look}>${escapeXml(text)}</text>`;
    })
    .join("");
}

/**
 * A terminal's output as an animated picture: all screens one below the other, moved past a window by CSS. Each line is there
 * once. Where animation is not wanted the last screen is shown.
 * @param title what the picture shows, for those who do not see it
 */
export async function recordingSvg(
  outputs: readonly Output[],
  title: string,
  options: RecordingOptions,
): Promise<string> {
  const frames = await framesOf(outputs, options);
  const [width, height] = [options.columns * WIDTH + 2 * MARGIN, options.rows * HEIGHT + 2 * MARGIN];
  const total = frames.reduce((sum, { seconds }) => sum + seconds, 0);
  const ids = new Map<string, number>();
  const uses: string[] = [];
  const steps: string[] = [];
  let time = 0;
  frames.forEach(({ seconds, lines }, frame) => {
    steps.push(`${((100 * time) / total).toFixed(2)}%{transform:translateY(${-frame * height}px)}`);
    time += seconds;
    lines.forEach((runs, row) => {
      if (runs.length === 0) return;
      const line = lineOf(runs);
      const id = ids.get(line) ?? ids.size;
      ids.set(line, id);
      uses.push(`<use href="#l${id}" x="${MARGIN}" y="${frame * height + MARGIN + (row + 0.75) * HEIGHT}"/>`);
    });
  });
  const definitions = [...ids].map(([line, id]) => `<g id="l${id}">${line}</g>`).join("\n");
  const still = `transform:translateY(${-(frames.length - 1) * height}px)`;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">
<title>${escapeXml(title)}</title>
<style>
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}
#screens{animation:play ${total.toFixed(1)}s step-end infinite}
@keyframes play{${steps.join("")}}
@media (prefers-reduced-motion:reduce){#screens{animation:none;${still}}}
</style>
<defs>
${definitions}
</defs>
<rect width="100%" height="100%" rx="8" fill="${GROUND}"/>
<g id="screens" fill="${TEXT}">
${uses.join("\n")}
</g>
</svg>
`;
}
