/**
 * Tests the claims of docs/claims.md: all of them, or one by its name, with that program's own options.
 *
 *     npm run claims -- [pruning|starts|rounds|teacher-targets] [options]
 */
import { spawnSync } from "node:child_process";
import path from "node:path";

const CLAIMS = ["pruning", "starts", "rounds", "teacher-targets"];

const [first, ...rest] = process.argv.slice(2);
const isNamed = first !== undefined && !first.startsWith("-");
if (isNamed && !CLAIMS.includes(first)) {
  console.error(`there is no claim "${first}"; there are: ${CLAIMS.join(", ")}`);
  process.exit(1);
}
if (!isNamed && first !== undefined) {
  console.error(`options belong to one claim: npm run claims -- ${CLAIMS[0]} ${first} ...`);
  process.exit(1);
}
for (const name of isNamed ? [first] : CLAIMS) {
  const program = path.join(import.meta.dirname, `${name}.ts`);
  const { status } = spawnSync(process.execPath, ["--import", "tsx", program, ...rest], { stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}
