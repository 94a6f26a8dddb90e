// Runs a WASI program under node: node --no-warnings run.mjs PROGRAM.wasm ARGUMENTS...
// It has this user's files and environment, and its exit code is node's. To WASI's C library a name without "/" in front is
// one in the root, so arguments that name files are made absolute.
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { WASI } from "node:wasi";

const args = process.argv.slice(2);
const wasi = new WASI({
    version: "preview1",
    args: args.map((arg) => (existsSync(arg) ? resolve(arg) : arg)),
    env: process.env,
    preopens: { "/": "/" },
    returnOnExit: true,
});
const { instance } = await WebAssembly.instantiate(await readFile(args[0]), wasi.getImportObject());
process.exitCode = wasi.start(instance);
