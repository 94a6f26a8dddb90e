// Runs a WASI program under node, in the current directory: node --no-warnings run.mjs PROGRAM.wasm ARGUMENTS...
// It sees the files that this user sees, the environment, and its exit code is node's.
import { readFile } from "node:fs/promises";
import { WASI } from "node:wasi";

const [program] = process.argv.slice(2);
const wasi = new WASI({
    version: "preview1",
    args: process.argv.slice(2),
    env: process.env,
    preopens: { "/": "/", ".": process.cwd() },
    returnOnExit: true,
});
const { instance } = await WebAssembly.instantiate(await readFile(program), wasi.getImportObject());
process.exitCode = wasi.start(instance);
