import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";

/** A process that answers each line with a line: a contender in a benchmark, set up once and asked in turn with the others. */
export class Contender {
  private readonly lines: AsyncIterator<string>;
  private readonly process: ChildProcess;

  private constructor(
    readonly name: string,
    command: string,
    args: readonly string[],
  ) {
    this.process = spawn(command, [...args], { stdio: ["pipe", "pipe", "ignore"] });
    if (this.process.stdout === null) throw new Error(`${name} has no output`);
    this.lines = createInterface({ input: this.process.stdout })[Symbol.asyncIterator]();
  }

  /** Starts it and waits until it is ready. */
  static async start(name: string, command: string, args: readonly string[]): Promise<Contender> {
    const contender = new Contender(name, command, args);
    const first = await contender.lines.next();
    if (first.done === true || first.value !== "ready") throw new Error(`${name} (${command}) did not start`);
    return contender;
  }

  /** Asks for a number. */
  async ask(question: string): Promise<number> {
    this.process.stdin?.write(`${question}\n`);
    const answer = await this.lines.next();
    if (answer.done === true) throw new Error(`${this.name} ended`);
    return Number(answer.value);
  }

  stop(): void {
    this.process.stdin?.end();
  }
}

/** A table in Markdown. */
export function markdown(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const line = (cells: readonly (string | number)[]) => `| ${cells.join(" | ")} |`;
  return [line(head), line(head.map((_, i) => (i === 0 ? "---" : "---:"))), ...rows.map(line)].join("\n");
}
