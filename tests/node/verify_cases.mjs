// Runs docs/verify/verify.ts over cases that stand in a JSON file, all in one process; prints what became of each.
import { readFileSync } from "node:fs";
import ts from "typescript";

const source = process.argv[2];
const text = ts.transpileModule(readFileSync(source, "utf-8"), {
  compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
}).outputText;
const { verify } = await import(`data:text/javascript;base64,${Buffer.from(text).toString("base64")}`);

const { cases, seconds } = JSON.parse(readFileSync(0, "utf-8"));
const at = (time) => (time === null ? null : new Date(time));
const run = async ({ text, keys, now, fingerprint, last_seen }) => {
  try {
    return { said: await verify(text, keys, at(now), fingerprint, at(last_seen)) };
  } catch (error) {
    return { reason: error.reason ?? String(error) };
  }
};

if (seconds) { // how many a second, and of them how many that do nothing but verify the signature
  const [one] = cases;
  const raw = (part) => Buffer.from(part, "base64url");
  const [head, payload, signature] = one.text.split(".");
  const key = await crypto.subtle.importKey("raw", raw(one.keys.keys[0].public_key), "Ed25519", false, ["verify"]);
  const parts = [raw(signature), Buffer.from(`${head}.${payload}`)];
  const rate = async (act) => {
    let count = 0;
    const began = performance.now();
    for (; performance.now() - began < seconds * 1000; count++) await act();
    return (count * 1000) / (performance.now() - began);
  };
  const alone = () => crypto.subtle.verify("Ed25519", key, ...parts);
  await rate(() => run(one));
  console.log(JSON.stringify({ verified: await rate(() => run(one)), alone: await rate(alone) }));
} else {
  const found = [];
  for (const one of cases) found.push(await run(one));
  console.log(JSON.stringify(found));
}
