"""peer_cuda.py - the models that l3-bench-cuda makes (--synthetic), written once more as plain PyTorch with random weights:
what it is compared with on the same card.

    python3 tools/peer_cuda.py --shape 0.8B --mode compiled --prompt 2048 --tokens 64
    build/l3-bench-cuda --synthetic 0.8B --compare "python3 tools/peer_cuda.py --shape 0.8B --prompt {prompt} --tokens {tokens} --type {type}"

The last line is tokens a second of a prompt (2048 tokens) and of decoding one sequence behind --depth tokens, medians of
--repeat measurements; what was measured goes to standard error. Tables are on the device.

    eager     operators one by one; a token's rows are a slice of the table, which the host looks up
    graph     the same step as one CUDA graph: KV cache of a fixed size, rows gathered and padded to the most that a token has
    compiled  torch.compile, decoding as a CUDA graph, too (PyTorch 2)
    matmul    the products of a prompt's dense weights and nothing else: what bounds it

A prompt reads rows in the paper's way: positions sorted by token, blocks of --block of them, and a block-diagonal mask. Which
rows a block needs is known from the tokens and not part of the time. Everything but the choice of the next token is computed:
tokens are given, as in l3-bench-cuda. PyTorch 1.13 or later; attention is scaled_dot_product_attention where there is one.
--device cpu is for trying it out with a small shape."""
import argparse, math, statistics, sys, time
from types import SimpleNamespace

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
except ImportError as e:
    sys.exit(f"peer_cuda.py: {e}; PyTorch and numpy are needed")

# What tools/synthetic.h calls these sizes: dim, blocks, ffn, heads, kv_heads, vocab, rows, k, d_emb, d_up, lookups after blocks.
SHAPES = {"0.8B": (1536, 18, 4096, 12, 12, 180000, 710000, 512, 512, 4096, "4,11"),
          "1.5B": (2048, 22, 5632, 16, 16, 180000, 710000, 512, 768, 4096, "4,13"),
          "2.6B": (2560, 27, 6912, 20, 20, 180000, 710000, 512, 1024, 4096, "4,16")}
SIZES = ("dim", "blocks", "ffn", "heads", "kv_heads", "vocab", "rows", "k", "d_emb", "d_up")
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}

# ---- rows ----


def share_rows(vocab, rows, most):
    """Prefix sums (vocab + 1,): token t has about scale / (t + 1) rows, from 1 to `most`; what is left goes to the first."""
    rank = np.arange(1, vocab + 1)
    counts = lambda scale: np.minimum(1 + np.floor(scale / rank), most).astype(np.int64)
    low, high = 0.0, float(vocab) * most
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if counts(middle).sum() <= rows else (low, middle)
    shares = counts(low)
    while shares.sum() < min(rows, vocab * most):
        shares[np.flatnonzero(shares < most)[:rows - shares.sum()]] += 1
    return np.concatenate([[0], np.cumsum(shares)])


def plan_blocks(tokens, offsets, size, device):
    """For a prompt: order of its positions, and for every block of them its rows and which of these a position may read."""
    order = np.argsort(tokens, kind="stable")
    plan = SimpleNamespace(order=torch.from_numpy(order).to(device), back=torch.from_numpy(np.argsort(order)).to(device),
                           blocks=[])
    for at in range(0, len(order), size):
        ids, owner = np.unique(tokens[order[at:at + size]], return_inverse=True)
        counts = offsets[ids + 1] - offsets[ids]
        rows = np.concatenate([np.arange(offsets[t], offsets[t + 1]) for t in ids])
        mask = owner[:, None] != np.repeat(np.arange(len(ids)), counts)
        plan.blocks.append((at, len(owner), torch.from_numpy(rows).to(device), torch.from_numpy(mask).to(device)))
    return plan


# ---- model ----


def rms_norm(x, weight, eps=1e-5):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(x, cos, sin):
    """(heads, t, width), adjacent pairs."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def attend(q, k, v, mask):
    """(heads, t, width) each; mask: True where it may look, or None for a prompt."""
    if k.shape[0] != q.shape[0]:
        k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], 0) for x in (k, v))
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q[None], k[None], v[None], mask, is_causal=mask is None)[0]
    if mask is None:
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril()
    scores = (q @ k.transpose(1, 2)).float() / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -math.inf).softmax(-1).to(q.dtype) @ v


class Model(torch.nn.Module):

    def __init__(self, s, offsets, context):
        super().__init__()
        self.s, self.context, self.offsets = s, context, offsets
        width = s.dim // s.heads
        kv = width * s.kv_heads

        def weight(name, rows, cols):
            x = torch.empty(rows, cols, dtype=s.dtype, device=s.device).uniform_(-1.7, 1.7).div_(math.sqrt(cols))
            self.register_buffer(name, x)

        def ones(name, n):
            self.register_buffer(name, torch.ones(n, dtype=s.dtype, device=s.device))

        weight("embedding", s.vocab, s.dim)
        weight("head", s.vocab, s.dim)
        ones("norm", s.dim)
        for b in range(s.blocks):
            ones(f"attn_norm{b}", s.dim)
            ones(f"ffn_norm{b}", s.dim)
            weight(f"qkv{b}", s.dim + 2 * kv, s.dim)
            weight(f"out{b}", s.dim, s.dim)
            weight(f"gate_up{b}", 2 * s.ffn, s.dim)
            weight(f"down{b}", s.dim, s.ffn)
            for name in ("k", "v"):
                self.register_buffer(f"{name}{b}", torch.zeros(s.kv_heads, context, width, dtype=s.dtype, device=s.device))
        for b in s.lookups:
            weight(f"table{b}", s.rows, s.dim + s.d_emb)
            ones(f"query_norm{b}", s.dim)
            ones(f"up_norm{b}", s.d_up)
            weight(f"up{b}", s.d_up, s.d_emb)
            weight(f"mix{b}", s.dim, s.d_up + s.dim)
        angle = torch.outer(torch.arange(context), 10000.0**(-torch.arange(0, width, 2) / width))
        self.register_buffer("cos", angle.cos().to(s.device))
        self.register_buffer("sin", angle.sin().to(s.device))
        self.register_buffer("first_row", torch.from_numpy(offsets).to(s.device))

    def w(self, name, b):
        return getattr(self, f"{name}{b}")

    def attention(self, b, x, position, mask):
        s = self.s
        width, t = s.dim // s.heads, x.shape[0]
        q, k, v = (y.unflatten(-1, (-1, width)).transpose(0, 1)
                   for y in F.linear(x, self.w("qkv", b)).split([s.dim, s.kv_heads * width, s.kv_heads * width], -1))
        cos, sin = self.cos.index_select(0, position), self.sin.index_select(0, position)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        self.w("k", b).index_copy_(1, position, k)
        self.w("v", b).index_copy_(1, position, v)
        if mask is not None:
            k, v = self.w("k", b), self.w("v", b)
        return F.linear(attend(q, k, v, mask).transpose(0, 1).reshape(t, s.dim), self.w("out", b))

    def mixed(self, b, x, a):
        u = rms_norm(F.linear(a, self.w("up", b)), self.w("up_norm", b))
        return F.linear(torch.cat([u, x], -1), self.w("mix", b))

    def forward(self, ids, position, mask, read):
        """Token IDs (t,) at these positions; read(b, q): what lookup layer b reads for queries (t, dim). Logits of the last."""
        x = F.embedding(ids, self.embedding)
        for b in range(self.s.blocks):
            x = x + self.attention(b, rms_norm(x, self.w("attn_norm", b)), position, mask)
            gate, up = F.linear(rms_norm(x, self.w("ffn_norm", b)), self.w("gate_up", b)).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, self.w("down", b))
            if b in self.s.lookups:
                x = x + self.mixed(b, x, read(b, rms_norm(x, self.w("query_norm", b))))
        return F.linear(rms_norm(x[-1:], self.norm), self.head).float()

    def decode(self, ids, position):
        """One token; rows padded to the most that a token has."""
        first, last = self.first_row.index_select(0, ids), self.first_row.index_select(0, ids + 1)
        row = first + torch.arange(self.s.k, device=ids.device)
        absent = row >= last
        row = torch.minimum(row, last - 1)

        def read(b, q):
            keys, values = self.w("table", b).index_select(0, row).split([self.s.dim, self.s.d_emb], -1)
            return (q @ keys.t()).float().masked_fill(absent, -math.inf).softmax(-1).to(q.dtype) @ values

        return self.forward(ids, position, self.allowed(position), read)

    def allowed(self, position):
        return (torch.arange(self.context, device=position.device) <= position)[None]

    def decode_eager(self, token, ids, position):
        """The same with the token known to the host."""

        def read(b, q):
            keys, values = self.w("table", b)[self.offsets[token]:self.offsets[token + 1]].split([self.s.dim, self.s.d_emb], -1)
            return (q @ keys.t()).float().softmax(-1).to(q.dtype) @ values

        return self.forward(ids, position, self.allowed(position), read)

    def block_reader(self, plan):
        """What a prompt's lookup layers read."""

        def read(b, q):
            q, parts = q.index_select(0, plan.order), []
            for at, n, rows, other in plan.blocks:
                keys, values = self.w("table", b).index_select(0, rows).split([self.s.dim, self.s.d_emb], -1)
                scores = (q[at:at + n] @ keys.t()).float().masked_fill(other, -math.inf)
                parts.append(scores.softmax(-1).to(q.dtype) @ values)
            return torch.cat(parts).index_select(0, plan.back)

        return read


def not_compiled(function):
    """Blocks of rows have other shapes in every prompt: they are not compiled."""
    disable = getattr(getattr(torch, "compiler", None), "disable", None)
    return disable(function) if disable else function


# ---- measuring ----


def seconds_of(work, device):
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def compiled(function, mode):
    if mode != "compiled":
        return function
    if not hasattr(torch, "compile"):
        sys.exit("peer_cuda.py: --mode compiled needs PyTorch 2; there is " + torch.__version__)
    return torch.compile(function)


def stepper(model, a):
    """A function of the host's token, its ID and its position, on the device: one token more."""
    if a.mode == "eager":
        return model.decode_eager
    step, device = compiled(model.decode, a.mode), model.s.device
    ids, position = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
    if device == "cpu":
        return lambda token, i, p: step(i, p)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(ids, position)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(ids, position)

    def replay(token, i, p):
        ids.copy_(i)
        position.copy_(p)
        graph.replay()

    return replay


def measure_decode(model, tokens, a):
    step, device = stepper(model, a), model.s.device
    ids = torch.from_numpy(tokens).to(device).split(1)
    position = torch.arange(model.context, device=device).split(1)
    for i in range(a.depth):  # the cache is filled in the same way
        step(tokens[i], ids[i], position[i])

    def work():
        for i in range(a.depth, a.depth + a.tokens):
            step(tokens[i], ids[i], position[i])

    work()
    return [a.tokens / seconds_of(work, device) for _ in range(a.repeat)]


def measure_prefill(model, tokens, offsets, a):
    device, run = model.s.device, compiled(model.forward, a.mode)
    tokens = tokens[:a.prompt]
    read = not_compiled(model.block_reader(plan_blocks(tokens, offsets, a.block, device)))
    ids, position = torch.from_numpy(tokens).to(device), torch.arange(a.prompt, device=device)
    for _ in range(2):
        run(ids, position, None, read)
    return [a.prompt / seconds_of(lambda: run(ids, position, None, read), device) for _ in range(a.repeat)]


def measure_matmul(s, a):
    kv = s.dim // s.heads * s.kv_heads
    shapes = [(s.dim, s.dim), (kv, s.dim), (kv, s.dim), (s.dim, s.dim), (s.ffn, s.dim), (s.ffn, s.dim), (s.dim, s.ffn)]
    weights = [torch.randn(n, k, device=s.device, dtype=s.dtype) for n, k in shapes]
    x = {k: torch.randn(a.prompt, k, device=s.device, dtype=s.dtype) for k in (s.dim, s.ffn)}

    def work():
        for _ in range(s.blocks):
            for w in weights:
                F.linear(x[w.shape[1]], w)

    work()
    return [a.prompt / seconds_of(work, s.device) for _ in range(a.repeat)]


def say(what, speeds):
    print(f"{what}: {statistics.median(speeds):.1f} tokens/s ({min(speeds):.1f} to {max(speeds):.1f})", file=sys.stderr)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="0.8B", help="size (0.8B); what follows replaces a part of it")
    for name in SIZES:
        p.add_argument("--" + name.replace("_", "-"), type=int, metavar="N")
    p.add_argument("--lookup", metavar="BLOCKS", help="blocks that a lookup layer follows, as 4,11; none: a dense model")
    p.add_argument("--type", choices=TYPES, default="f16", help="of weights, rows and KV cache (f16)")
    p.add_argument("--mode", choices=("eager", "graph", "compiled", "matmul"), default="compiled", help="(compiled)")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(cuda)")
    for name, value, text in (("prompt", 2048, "tokens of the prompt"), ("tokens", 64, "tokens to decode"),
                              ("depth", 128, "... behind so many"), ("block", 128, "positions of a prompt's block"),
                              ("repeat", 5, "measurements"), ("seed", 1, "of weights and tokens")):
        p.add_argument("--" + name, type=int, default=value, metavar="N", help=f"{text} ({value})")
    a = p.parse_args()
    s = SimpleNamespace(device=a.device, dtype=TYPES[a.type])
    for name, value in zip(SIZES, SHAPES[a.shape]):
        given = getattr(a, name)
        setattr(s, name, value if given is None else given)
    lookups = SHAPES[a.shape][-1] if a.lookup is None else a.lookup
    s.lookups = [int(b) for b in lookups.split(",")] if lookups not in ("", "none") else []
    if s.lookups and not (s.vocab <= s.rows <= s.vocab * s.k and max(s.lookups) < s.blocks):
        p.error("--rows is from one to --k for each token, and --lookup names blocks that there are")
    return a, s


def main():
    a, s = arguments()
    if s.device == "cuda" and not torch.cuda.is_available():
        sys.exit("peer_cuda.py: PyTorch finds no CUDA device here")
    torch.manual_seed(a.seed)
    offsets = share_rows(s.vocab, s.rows, s.k)
    zipf = 1 / np.arange(1, s.vocab + 1)  # rows are allotted by it, too
    tokens = np.random.default_rng(a.seed).choice(s.vocab, max(a.prompt, a.depth + a.tokens), p=zipf / zipf.sum())
    if a.mode == "matmul":
        speeds = measure_matmul(s, a)
        say(f"prompt of {a.prompt}, its products alone", speeds)
        print(f"{statistics.median(speeds):.1f} 0")
        return
    with torch.no_grad():
        model = Model(s, offsets, max(a.prompt, 1))
        prefill = measure_prefill(model, tokens, offsets, a)
        del model
        if s.device == "cuda":
            torch.cuda.empty_cache()
        model = Model(s, offsets, a.depth + a.tokens)
        decode = measure_decode(model, tokens, a)
    name = torch.cuda.get_device_name() if s.device == "cuda" else "CPU"
    print(f"PyTorch {torch.__version__}, {name}, {a.mode}, {a.type}, lookups after {s.lookups or 'none'}", file=sys.stderr)
    say(f"prompt of {a.prompt}", prefill)
    say(f"decode, {a.tokens} behind {a.depth}", decode)
    print(f"{statistics.median(prefill):.1f} {statistics.median(decode):.1f}")


main()
