import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { gunzipSync } from "node:zlib";
import { afterAll, describe, expect, it } from "vitest";
import { PythonSandbox } from "../../src/evaluate/index.js";
import { temporaryDirectory } from "../temporary.js";

// more time than any program here needs, however busy the machine; one that never ends gets its own limit
const sandbox = new PythonSandbox({ seconds: 100, memoryBytes: 128 << 20 });
const impatient = new PythonSandbox({ seconds: 2, workers: 1 });
afterAll(() => {
  sandbox.close();
  impatient.close();
});
const directory = temporaryDirectory();

const HOSTILE: readonly (readonly [string, string, RegExp])[] = [
  ["fails", "assert 1 == 2", /AssertionError/],
  ["is not Python", "def f(:", /SyntaxError/],
  ["uses up all memory", "x = []\nwhile True: x.append(bytearray(1 << 20))", /MemoryError/],
  ["recurses forever", "def f(): return f()\nf()", /RecursionError|stack/],
  ["ends early", "import sys\nsys.exit(0)", /SystemExit/],
  ["ends the process", "import os\nos._exit(0)", /exit/],
  ["ends by a fault", "import ctypes\nctypes.string_at(1 << 30, 1 << 28)", /./],
  ["forks", "import os\nos.fork()", /not implemented/],
  ["starts programs", "import subprocess\nsubprocess.run(['id'])", /does not support processes/],
  ["starts threads", "import threading\nthreading.Thread(target=print).start()", /can't start new thread/],
  ["reads files", "open('/etc/hosts').read()", /FileNotFoundError/],
  ["reads this file", `open(${JSON.stringify(import.meta.filename)}).read()`, /FileNotFoundError/],
  ["opens sockets", "import socket\nsocket.create_connection(('127.0.0.1', 80))", /unreachable/],
  ["makes web requests", "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')", /unreachable/],
  ["reads input", "input()", /EOFError/],
  ["reaches for JavaScript", "import js\njs.process.exit()", /ModuleNotFoundError/],
  ["runs JavaScript", "from pyodide.code import run_js\nrun_js('1')", /ModuleNotFoundError/],
  ["pollutes prototypes", "import pyodide_js\npyodide_js.constructor.prototype.polluted = 1", /ModuleNotFoundError/],
  ["installs packages", "import micropip", /ModuleNotFoundError/],
  ["is interrupted", "raise KeyboardInterrupt", /KeyboardInterrupt/],
  ["looks for secrets", "import os\nassert 'PATH' in os.environ and len(os.environ['PATH']) > 20", /./],
];

describe("a Python program", () => {
  it("passes when it ends without an error", async () => {
    const program = "import re, math, collections\ndef f(x):\n  return x + 1\nassert f(1) == 2\nprint('x' * 100000)";
    expect(await sandbox.run(program)).toEqual({ passed: true, reason: "passed" });
  });

  it("keeps the blanks of its texts", async () => {
    expect(await sandbox.run("s = '''a\n   \nb'''\nassert s == 'a\\n   \\nb'")).toEqual({
      passed: true,
      reason: "passed",
    });
  });

  // all at once, as many at a time as there are cores
  const failing = HOSTILE.map(([, program]) => sandbox.run(program));

  it.each(HOSTILE.map(([does, , reason], i) => [does, reason, i] as const))(
    "that %s is a failed one",
    async (_, reason, i) => {
      const outcome = await failing[i]!;
      expect(outcome.passed).toBe(false);
      expect(outcome.reason).toMatch(reason);
    },
  );

  it("that never ends is a failed one", async () => {
    const outcome = await impatient.run("while True: pass");
    expect(outcome).toEqual({ passed: false, reason: "longer than 2 seconds" });
  });

  it("leaves nothing for the next, nor on the host", async () => {
    const file = path.join(directory, "written");
    await sandbox.run(
      `import os\nos.makedirs(${JSON.stringify(directory)})\nopen(${JSON.stringify(file)}, 'w').write('x')`,
    );
    expect(existsSync(file)).toBe(false);
    await sandbox.run("import builtins, sys\nbuiltins.len = lambda x: 42\nsys.modules['math'] = None");
    const program = `import math, os\nassert len([1]) == 1\nassert not os.path.exists(${JSON.stringify(file)})`;
    expect((await sandbox.run(program)).reason).toBe("passed");
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
  });

  it("that is far too long is not run", async () => {
    expect((await sandbox.run("x".repeat(2e6))).reason).toBe("the program is too long");
  });
});

const problems = path.resolve(import.meta.dirname, "../../../shared/data/benchmarks/HumanEval.jsonl.gz");
describe.skipIf(!existsSync(problems))("a real problem", () => {
  it("accepts its own solution and refuses another", async () => {
    const lines = gunzipSync(readFileSync(problems)).toString().trim().split("\n").slice(0, 4);
    const all = lines.map((line) => JSON.parse(line) as Record<string, string>);
    const outcomes = await Promise.all(
      all.flatMap(({ prompt, canonical_solution: solution, test, entry_point: name }) =>
        [solution, "    return None\n"].map((body) => sandbox.run(`${prompt}${body}\n${test}\ncheck(${name})`)),
      ),
    );
    expect(outcomes.map(({ passed }) => passed)).toEqual(all.flatMap(() => [true, false]));
  });
});
