// node model.mjs PROGRAM.wasm MODEL.gguf PROMPT TOKENS: continues a text with the program made from model.c. In a web page
// the same lines work with the bytes from fetch().
import { readFile } from "node:fs/promises";

const [program, model, prompt, tokens] = process.argv.slice(2);
const { exports: l3 } = (await WebAssembly.instantiate(await readFile(program))).instance;
const bytes = await readFile(model);
const PAGE = 65536;
const ALIGN = 16;

function check(code) {
    if (code !== 0) throw new Error(`l3: status ${code}`);
}

const file = l3.heap();
const rest = Math.ceil((file + bytes.length) / ALIGN) * ALIGN;
const missing = rest - l3.memory.buffer.byteLength;
if (missing > 0) l3.memory.grow(Math.ceil(missing / PAGE));
new Uint8Array(l3.memory.buffer).set(bytes, file);

let code;
while ((code = l3.open(file, bytes.length, rest, l3.memory.buffer.byteLength - rest)) === -2) l3.memory.grow(16);
check(code);

// The prompt goes behind everything else.
const at = l3.memory.grow(1) * PAGE;
const { written } = new TextEncoder().encodeInto(prompt, new Uint8Array(l3.memory.buffer, at, 256));
check(l3.prompt(at, written));

const utf8 = new TextDecoder();
let text = prompt;
for (let i = 0; i < Number(tokens); i++) {
    check(l3.next());
    text += utf8.decode(new Uint8Array(l3.memory.buffer, l3.text_at(), l3.text_size()), { stream: true });
}
console.log(text);
