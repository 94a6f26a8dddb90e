"""peer_train.py - the model that l3-train trains, written once more as a plain PyTorch training loop: what l3-train is
compared with (tools/bench_train.sh), and a check that both compute the same.

    python3 tools/peer_train.py --check MODEL.gguf --batch IDS.i32 --shape B,T [--steps N]
    python3 tools/peer_train.py --data TEXT.tokens --alloc ALLOC.gguf --dim 192 --blocks 6 ... --lookup 1,3 [--bf16]
    python3 tools/peer_train.py --grow ALLOC.gguf --data TEXT.tokens --times 16 -o OUT.gguf

--check prints what l3-train --check prints. --grow makes a table larger by rows that the text never asks for; it needs numpy
alone. Everything else needs PyTorch, 1.13 or later: Debian's python3-torch, for example. That one has neither
scaled_dot_product_attention (attention is matrix products, mask and softmax there) nor torch.compile, and its F32 products
are OpenBLAS's, its bf16 products oneDNN's.

Sections: files, rows, model, lookup, training, command line."""
import argparse, json, math, mmap, os, resource, statistics, struct, sys, time
from types import SimpleNamespace

# numpy and torch are imported by main(): their BLAS reads its number of threads when it is loaded.

# ---- files ----

GGUF_TYPES = "BbHhIif?sAQqd"  # what struct calls value type 0, 1, ...; s is a string, A an array


def read_gguf(path):
    """(keys, {name: array}) of a GGUF file; F32 and I32 tensors alone, and no arrays of strings."""
    file = open(path, "rb")
    data, at = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), 8

    def take(form):
        nonlocal at
        value = struct.unpack_from("<" + form, data, at)[0]
        at += struct.calcsize("<" + form)
        return value

    def string():
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n:at].decode("utf-8", "replace")

    def value(kind):
        nonlocal at
        if kind == "s":
            return string()
        if kind != "A":
            return take(kind)
        item, n = GGUF_TYPES[take("I")], take("Q")
        if item == "s":
            for _ in range(n):
                at += struct.unpack_from("<Q", data, at)[0] + 8
            return None
        at += n * struct.calcsize("<" + item)
        return np.frombuffer(data, "<" + item, n, at - n * struct.calcsize("<" + item))

    if data[:4] != b"GGUF":
        sys.exit(f"{path}: this is no GGUF file")
    n_tensors, n_keys = take("Q"), take("Q")
    keys = {string(): value(GGUF_TYPES[take("I")]) for _ in range(n_keys)}
    tensors = []
    for _ in range(n_tensors):
        name = string()
        dims = [take("Q") for _ in range(take("I"))]
        tensors.append((name, dims[::-1], take("I"), take("Q")))
    align = keys.get("general.alignment", 32)
    start = (at + align - 1) // align * align
    arrays = {}
    for name, shape, kind, offset in tensors:
        if kind not in (0, 26):
            sys.exit(f"{path}: {name} is neither F32 nor I32")
        kind = "<f4" if kind == 0 else "<i4"
        arrays[name] = np.frombuffer(data, kind, math.prod(shape), start + offset).reshape(shape)
    return keys, arrays


def write_allocation(path, offsets):
    """An allocation as l3-alloc writes it: prefix sums of every token's rows."""

    def text(s):
        return struct.pack("<Q", len(s)) + s.encode()

    vocab, most = len(offsets) - 1, int(np.diff(offsets).max())
    keys = [text("general.architecture") + struct.pack("<I", 8) + text("l3"),
            text("general.type") + struct.pack("<I", 8) + text("allocation")]
    keys += [text(name) + struct.pack("<II", 4, n) for name, n in
             (("l3.vocab_size", vocab), ("l3.lookup.row_count", int(offsets[-1])), ("l3.lookup.rows_per_token_max", most))]
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys)
    head += text("blk.0.lookup_offsets") + struct.pack("<IQIQ", 1, vocab + 1, 26, 0)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32) + offsets.astype("<i4").tobytes())


def read_tokens(path):
    """Token IDs and the vocabulary of a shard (tools/shard.h), or of a file of int32, which does not say (0)."""
    with open(path, "rb") as f:
        head = f.read(48)
        if head[:4] != b"L3TK":
            return np.fromfile(path, "<i4"), 0
        return np.frombuffer(f.read(), "<u2" if head[12] == 2 else "<u4").astype(np.int32), struct.unpack_from("<I", head, 8)[0]


def read_offsets(path):
    keys, tensors = read_gguf(path)
    offsets = [a for name, a in tensors.items() if name.endswith(".lookup_offsets")]
    if not offsets:
        sys.exit(f"{path}: there is no allocation in it")
    return offsets[0].astype(np.int64)


# ---- rows ----

def zipf(n):
    """How often token 0, 1, ... comes (Mandelbrot's form of Zipf's law)."""
    p = 1 / (np.arange(n) + 2.7)
    return p / p.sum()


def offsets_of(counts):
    return np.concatenate([[0], np.cumsum(counts)])


def share_rows(weights, rows, most):
    """Rows for every token in proportion to its weight, at least 1 and at most `most`: (vocab + 1,) prefix sums."""
    low, high = 0.0, float(rows) * most
    for _ in range(200):  # the factor with which the sum is right
        factor = (low + high) / 2
        counts = np.clip(np.floor(weights * factor), 1, most).astype(np.int64)
        low, high = (factor, high) if counts.sum() <= rows else (low, factor)
    counts = np.clip(np.floor(weights * low), 1, most).astype(np.int64)
    return offsets_of(counts)


def grow(offsets, tokens, times):
    """The table `times` as large: rows for tokens that do not occur in `tokens`; all others keep theirs."""
    counts, unused = np.diff(offsets), np.ones(len(offsets) - 1, bool)
    unused[tokens] = False
    extra, ids = int(offsets[-1]) * (times - 1), np.flatnonzero(unused)
    if len(ids) == 0:
        sys.exit("every token occurs in the text: none can be given rows that it does not use")
    counts[ids] += extra // len(ids)
    counts[ids[:extra % len(ids)]] += 1
    return offsets_of(counts)


# ---- model ----

def shape_of_gguf(keys, tensors):
    arch = keys["general.architecture"]
    get = lambda key, default=None: keys.get(f"{arch}.{key}", default)
    look = lambda key, default=None: keys.get(f"l3.lookup.{key}", default)
    s = SimpleNamespace(dim=get("embedding_length"), blocks=get("block_count"), heads=get("attention.head_count"),
                        ffn=get("feed_forward_length"), context=get("context_length"))
    s.kv_heads = get("attention.head_count_kv", s.heads)
    s.head_dim = get("attention.key_length", s.dim // s.heads)
    s.rope_base, s.eps = get("rope.freq_base", 10000.0), get("attention.layer_norm_rms_epsilon")
    s.vocab = len(tensors["token_embd.weight"])
    s.lookups = [int(b) for b in look("block_indices", [])]
    s.tied, s.query_norm, s.score_scale = look("tied", False), look("query_norm", False), look("score_scale", 1.0)
    s.value = look("value_length", s.dim)
    s.lookup_eps, s.layer_norm = look("norm_epsilon", s.eps), look("norm_type", "rms") == "layer"
    s.residual = look("residual", True)
    if look("key_norm", False) or get("rope.dimension_count", s.head_dim) != s.head_dim:
        sys.exit("this file normalizes keys or rotates parts of heads: that is not written here")
    return s


def shape_of_arguments(a, vocab):
    s = SimpleNamespace(dim=a.dim, blocks=a.blocks, heads=a.heads, kv_heads=a.kv_heads or a.heads,
                        head_dim=a.dim // a.heads, ffn=a.ffn, context=a.context, vocab=vocab, rope_base=10000.0, eps=1e-5)
    s.lookups, s.tied, s.value = [int(b) for b in a.lookup.split(",") if b], not a.separate, a.value or a.dim
    s.query_norm, s.score_scale, s.lookup_eps, s.layer_norm, s.residual = True, 1.0, 1e-6, False, True
    s.up = a.up or 2 * a.dim
    return s


def new_weights(s, rows):
    """{name as in a GGUF file: tensor (outputs, inputs)}, initialized as l3-train does it."""
    q, kv, d, f, last = s.heads * s.head_dim, s.kv_heads * s.head_dim, s.dim, s.ffn, 1 / math.sqrt(2 * s.blocks)
    w = {}

    def matrix(name, outputs, inputs, factor=1.0):
        w[name] = torch.randn(outputs, inputs) * (factor * 0.55 / math.sqrt(inputs))

    matrix("token_embd.weight", s.vocab, d)
    w["output_norm.weight"] = torch.ones(d)
    for b in range(s.blocks):
        w[f"blk.{b}.attn_norm.weight"], w[f"blk.{b}.ffn_norm.weight"] = torch.ones(d), torch.ones(d)
        matrix(f"blk.{b}.attn_q.weight", q, d)
        matrix(f"blk.{b}.attn_k.weight", kv, d)
        matrix(f"blk.{b}.attn_v.weight", kv, d)
        matrix(f"blk.{b}.attn_output.weight", d, q, last)
        matrix(f"blk.{b}.ffn_gate.weight", f, d)
        matrix(f"blk.{b}.ffn_up.weight", f, d)
        matrix(f"blk.{b}.ffn_down.weight", d, f, last)
    for b in s.lookups:
        w[f"blk.{b}.lookup_query_norm.weight"], w[f"blk.{b}.lookup_up_norm.weight"] = torch.ones(d), torch.ones(s.up)
        matrix(f"blk.{b}.lookup_rows.weight", rows, d + (0 if s.tied else s.value), math.sqrt(1 if s.tied else 1 + s.value / d))
        matrix(f"blk.{b}.lookup_up.weight", s.up, s.value)
        matrix(f"blk.{b}.lookup_mix.weight", d, s.up + d, last)
    return w


def rms_norm(x, weight, eps):
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x if weight is None else x * weight


def rotary(s, t):
    """(t, 1, head_dim / 2) complex numbers of length 1."""
    angle = torch.outer(torch.arange(t, dtype=torch.float64),
                        s.rope_base ** (-2 * torch.arange(s.head_dim // 2, dtype=torch.float64) / s.head_dim))
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[:, None]


def rotate(x, by):
    """(b, t, heads, head_dim), adjacent pairs as complex numbers."""
    x = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(x * by).flatten(-2)


def attention(s, w, b, x, by, mask):
    n, t, _ = x.shape
    q = F.linear(x, w[f"blk.{b}.attn_q.weight"]).view(n, t, s.heads, s.head_dim)
    k = F.linear(x, w[f"blk.{b}.attn_k.weight"]).view(n, t, s.kv_heads, s.head_dim)
    v = F.linear(x, w[f"blk.{b}.attn_v.weight"]).view(n, t, s.kv_heads, s.head_dim)
    q, k, v = rotate(q, by).transpose(1, 2), rotate(k, by).transpose(1, 2), v.transpose(1, 2)
    if s.kv_heads < s.heads:
        k, v = (y.repeat_interleave(s.heads // s.kv_heads, 1) for y in (k, v))
    if hasattr(F, "scaled_dot_product_attention"):
        o = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
    else:
        q, k, v = (y.reshape(n * s.heads, t, s.head_dim) for y in (q, k, v))
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=s.head_dim ** -0.5)
        o = torch.bmm(scores.softmax(-1), v).view(n, s.heads, t, s.head_dim)
    return F.linear(o.transpose(1, 2).reshape(n, t, -1), w[f"blk.{b}.attn_output.weight"])


def feed_forward(w, b, x):
    h = F.silu(F.linear(x, w[f"blk.{b}.ffn_gate.weight"])) * F.linear(x, w[f"blk.{b}.ffn_up.weight"])
    return F.linear(h, w[f"blk.{b}.ffn_down.weight"])


def lookup(s, w, b, x, plan, sparse):
    """plan: which rows belong to which position, from one of the plan_ functions."""
    x = x.flatten(0, 1)
    get = lambda name: w.get(f"blk.{b}.lookup_{name}")
    q = rms_norm(x, get("query_norm.weight"), s.lookup_eps) if s.query_norm else x
    u = plan.read(plan, s, q if s.score_scale == 1 else q * s.score_scale, get("rows.weight"), sparse)
    if get("up.weight") is not None:
        u = F.linear(u, get("up.weight"))
    if s.layer_norm:
        u = F.layer_norm(u.float(), u.shape[-1:], get("up_norm.weight"), get("up_norm.bias"), s.lookup_eps)
    else:
        u = rms_norm(u.float(), get("up_norm.weight"), s.lookup_eps)
    y = F.linear(torch.cat([u, x], -1), get("mix.weight"))
    return x + y if s.residual else y


def forward(s, w, inputs, plan, sparse):
    """(b, t) token IDs to logits (b * t, vocab)."""
    n, t = inputs.shape
    by, mask = rotary(s, t), torch.full((t, t), -math.inf).triu(1)
    x = F.embedding(inputs, w["token_embd.weight"])
    for b in range(s.blocks):
        x = x + attention(s, w, b, rms_norm(x, w[f"blk.{b}.attn_norm.weight"], s.eps), by, mask)
        x = x + feed_forward(w, b, rms_norm(x, w[f"blk.{b}.ffn_norm.weight"], s.eps))
        if b in s.lookups:
            x = lookup(s, w, b, x, plan, sparse).view(n, t, -1)
    x = rms_norm(x, w["output_norm.weight"], s.eps).flatten(0, 1)
    return F.linear(x, w.get("output.weight", w["token_embd.weight"])).float()


# ---- lookup ----

# Three ways to read the rows of n positions. Each has a plan, made of the batch's tokens once for all lookup layers, and a
# function read(plan, shape, q (n, d), table, sparse) -> (n, e).

def parts(s, rows):
    return (rows, rows) if s.tied else rows.split([s.dim, s.value], -1)


def additive(allowed):
    return torch.from_numpy(np.where(allowed, np.float32(0), np.float32(-np.inf)))


def plan_gather(tokens, offsets, _):
    """Every position gets a copy of its token's rows, padded to the most that a token has."""
    first, counts = offsets[tokens], offsets[tokens + 1] - offsets[tokens]
    column = np.arange(counts.max())
    rows = first[:, None] + np.minimum(column, counts[:, None] - 1)
    return SimpleNamespace(read=read_gather, rows=torch.from_numpy(rows), mask=additive(column < counts[:, None])[:, None])


def read_gather(plan, s, q, table, sparse):
    keys, values = parts(s, F.embedding(plan.rows, table, sparse=sparse))
    scores = torch.baddbmm(plan.mask, q[:, None], keys.transpose(1, 2))
    return torch.bmm(scores.softmax(-1), values)[:, 0]


def ranges(first, n):
    """first[0] ... first[0] + n[0] - 1, first[1] ..."""
    return np.repeat(first - offsets_of(n)[:-1], n) + np.arange(n.sum())


def plan_blocks(tokens, offsets, size):
    """The paper's way: positions sorted by token, blocks of `size` of them; a block scores the rows of all its tokens, and a
    block-diagonal mask keeps each token's own."""
    order = np.argsort(tokens, kind="stable")
    plan = SimpleNamespace(read=read_blocks, order=torch.from_numpy(order), back=torch.from_numpy(np.argsort(order)), masks=[])
    rows, plan.positions = [], []
    for at in range(0, len(order), size):
        ids, owner = np.unique(tokens[order[at:at + size]], return_inverse=True)
        counts = offsets[ids + 1] - offsets[ids]
        rows.append(ranges(offsets[ids], counts))
        plan.masks.append(additive(owner[:, None] == np.repeat(np.arange(len(ids)), counts)))
        plan.positions.append(len(owner))
    plan.rows, plan.counts = torch.from_numpy(np.concatenate(rows)), [len(r) for r in rows]
    return plan


def read_blocks(plan, s, q, table, sparse):
    keys, values = parts(s, F.embedding(plan.rows, table, sparse=sparse))
    q = q.index_select(0, plan.order).split(plan.positions)
    blocks = zip(plan.masks, q, keys.split(plan.counts), values.split(plan.counts))
    return torch.cat([torch.addmm(mask, x, k.t()).softmax(-1) @ v for mask, x, k, v in blocks]).index_select(0, plan.back)


def plan_buckets(tokens, offsets, base):
    """Tokens with about as many positions and about as many rows (to a factor of `base`) go through one batched product."""
    order = np.argsort(tokens, kind="stable")
    ids, start, count = np.unique(tokens[order], return_index=True, return_counts=True)
    first, rows = offsets[ids], offsets[ids + 1] - offsets[ids]
    level = lambda x: np.ceil(np.log(x) / math.log(base) - 1e-9).astype(np.int64)
    bucket = level(count) * 64 + level(rows)
    plan = SimpleNamespace(read=read_buckets, buckets=[])
    positions, row_ids, slot, at = [], [], np.empty(len(tokens), np.int64), 0
    for key in np.unique(bucket):
        g = np.flatnonzero(bucket == key)
        i, j = np.arange(count[g].max()), np.arange(rows[g].max())
        i = np.minimum(i, count[g][:, None] - 1)
        p = order[start[g][:, None] + i]
        slot[p] = at + np.arange(len(g))[:, None] * i.shape[1] + i
        at += i.size
        positions.append(p.ravel())
        row_ids.append((first[g][:, None] + np.minimum(j, rows[g][:, None] - 1)).ravel())
        plan.buckets.append((len(g), i.shape[1], len(j), additive(j < rows[g][:, None])[:, None]))
    plan.positions, plan.rows = torch.from_numpy(np.concatenate(positions)), torch.from_numpy(np.concatenate(row_ids))
    plan.slot = torch.from_numpy(slot)
    return plan


def read_buckets(plan, s, q, table, sparse):
    rows = F.embedding(plan.rows, table, sparse=sparse).split([g * n for g, _, n, _ in plan.buckets])
    q = q.index_select(0, plan.positions).split([g * n for g, n, _, _ in plan.buckets])
    read = []
    for (g, n, d_t, mask), x, block in zip(plan.buckets, q, rows):
        keys, values = parts(s, block.view(g, d_t, -1))
        scores = torch.baddbmm(mask, x.view(g, n, -1), keys.transpose(1, 2))
        read.append(torch.bmm(scores.softmax(-1), values).flatten(0, 1))
    return torch.cat(read).index_select(0, plan.slot)


PLANS = {"gather": (plan_gather, 0), "blocks": (plan_blocks, 128), "buckets": (plan_buckets, 2)}

# ---- training ----

def trainable(w, a):
    """The optimizers: decay for matrices, none for norms, the embedding and table rows."""
    tables = [x for name, x in w.items() if "lookup_rows" in name]
    plain = [x for name, x in w.items() if x.dim() == 1 or name == "token_embd.weight"]
    others = [x for name, x in w.items() if x.dim() == 2 and name != "token_embd.weight" and "lookup_rows" not in name]
    groups = [{"params": others}, {"params": plain + ([] if a.sparse else tables), "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=a.weight_decay,
                                    **({"foreach": True} if a.foreach else {}))]
    if a.sparse and tables:
        optimizers.append(torch.optim.SparseAdam(tables, lr=a.lr, betas=(0.9, 0.95), eps=1e-8))
    return optimizers


def clip(w, most):
    """torch.nn.utils.clip_grad_norm_, which sparse gradients are nothing for."""
    grads = []
    for x in w.values():
        if x.grad.is_sparse:
            x.grad = x.grad.coalesce()
        grads.append(x.grad.values() if x.grad.is_sparse else x.grad)
    norm = torch.stack([g.norm() for g in grads]).norm()
    if norm > most:
        for g in grads:
            g.mul_(most / norm)
    return norm


def gradients(s, w, offsets, inputs, targets, a):
    """The mean loss of a step; its gradient in w's .grad, micro-batch by micro-batch."""
    plan, size = PLANS[a.rows_by]
    total = 0.0
    for at in range(0, len(inputs), a.micro_batch or len(inputs)):
        x, y = inputs[at:at + (a.micro_batch or len(inputs))], targets[at:at + (a.micro_batch or len(inputs))]
        p = plan(x.ravel(), offsets, a.size or size) if s.lookups else None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.bf16):
            logits = forward(s, w, torch.from_numpy(x), p, a.sparse)
        loss = F.cross_entropy(logits, torch.from_numpy(y).flatten(), reduction="sum") / targets.size
        loss.backward()
        total += loss.item()
    return total


def step(s, w, offsets, optimizers, inputs, targets, a):
    loss = gradients(s, w, offsets, inputs, targets, a)
    norm = clip(w, 1.0)
    for o in optimizers:
        o.step()
        o.zero_grad(set_to_none=True)
    return loss, float(norm)


def check(a):
    keys, tensors = read_gguf(a.check)
    s = shape_of_gguf(keys, tensors)
    w = {name: torch.from_numpy(x.copy()).requires_grad_() for name, x in tensors.items() if x.dtype == np.float32}
    offsets = [x.astype(np.int64) for name, x in tensors.items() if name.endswith("lookup_offsets")]
    b, t = (int(n) for n in a.shape.split(","))
    ids = np.fromfile(a.batch_file, "<i4").astype(np.int64).reshape(b, t)
    optimizers = trainable(w, a)
    for i in range(a.steps or 1):
        loss, norm = step(s, w, offsets[0] if offsets else None, optimizers, ids[:, :-1], ids[:, 1:], a)
        print(f"loss {loss:.9f}" + (f"\ngrad_norm {norm:.9f}" if i == 0 else ""))


def train(a):
    rng, offsets = np.random.default_rng(a.seed), None
    torch.manual_seed(a.seed)
    tokens, vocab = read_tokens(a.data) if a.data else (rng.choice(a.vocab, 1 << 20, p=zipf(a.vocab)), 0)
    s = shape_of_arguments(a, vocab or a.vocab)
    if s.lookups:
        offsets = read_offsets(a.alloc) if a.alloc else share_rows(zipf(s.vocab), a.rows, a.max_rows)
        if len(offsets) != s.vocab + 1 or np.diff(offsets).min() < 1:
            sys.exit("the allocation is for another vocabulary, or a token has no rows: that is not written here")
    w = {k: x.requires_grad_() for k, x in new_weights(s, int(offsets[-1]) if s.lookups else 0).items()}
    optimizers, seconds, losses, cpu = trainable(w, a), [], [], 0.0
    for i in range(a.warmup + (a.steps or 5)):
        start, cpu = time.perf_counter(), time.process_time() if i == a.warmup else cpu
        n = a.micro_batch if a.micro_batch and i < a.warmup else a.batch
        at = rng.integers(0, len(tokens) - s.context, n)
        targets = tokens[at[:, None] + np.arange(s.context)].astype(np.int64)
        inputs = np.concatenate([np.full((n, 1), a.bos), targets[:, :-1]], 1)
        loss, _ = step(s, w, offsets, optimizers, inputs, targets, a)
        if i >= a.warmup:
            seconds.append(time.perf_counter() - start)
        losses.append(loss)
        if not a.json:
            print(f"step {i + 1}  loss {loss:.4f}  {time.perf_counter() - start:.2f} s", file=sys.stderr)
    report(a, s, w, offsets, seconds, losses, time.process_time() - cpu)


def report(a, s, w, offsets, seconds, losses, cpu):
    n = a.batch * s.context
    result = {"tokens_per_second": n / statistics.median(seconds), "least": n / max(seconds), "most": n / min(seconds),
              "tokens_per_cpu_second": n * len(seconds) / cpu,
              "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "threads": a.threads,
              "parameters": sum(x.numel() for x in w.values()), "rows": int(offsets[-1]) if s.lookups else 0,
              "bf16": a.bf16, "rows_by": a.rows_by if s.lookups else "", "sparse": a.sparse, "micro_batch": a.micro_batch,
              "first_loss": losses[0], "last_loss": losses[-1], "torch": torch.__version__}
    if a.json:
        print(json.dumps(result))
    else:
        for key, v in result.items():
            print(f"{key:18} {v}")


# ---- command line ----

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, flag = p.add_argument, lambda name, text: p.add_argument(name, action="store_true", help=text)
    add("--check", metavar="MODEL.gguf", help="print the loss on a batch, as l3-train --check does; F32 models")
    add("--batch", default="48", metavar="N", help="sequences of a step (48); with --check the file of token IDs, int32")
    add("--shape", metavar="B,T", help="with --check: shape of the batch")
    add("--grow", metavar="ALLOC.gguf", help="write a larger allocation to -o: more rows for tokens that --data has not")
    add("--times", type=int, default=4, metavar="N", help="with --grow: so many times the rows (4)")
    add("-o", metavar="FILE", help="with --grow: the allocation goes there")
    add("--data", metavar="FILE", help="a shard of tokens, or int32 (Zipf-distributed ones)")
    add("--bos", type=int, default=1, metavar="ID", help="what every sequence begins with (1)")
    add("--alloc", metavar="FILE", help="rows of every token: an allocation or a model (shares by Zipf's law)")
    add("--rows", type=int, default=16384, metavar="V", help="without --alloc: rows of a table (16384)")
    add("--max-rows", type=int, default=64, metavar="K", help="without --alloc: rows of a token at most (64)")
    for name, value, text in (("dim", 192, "width"), ("blocks", 6, "decoder blocks"), ("heads", 6, "attention heads"),
                              ("kv-heads", 0, "key and value heads, 0: as many"), ("ffn", 512, "width of feed-forward layers"),
                              ("vocab", 4096, "tokens, where --data is no shard"), ("context", 256, "tokens of a sequence"),
                              ("value", 0, "with --separate: width of a row's value, 0: dim"),
                              ("up", 0, "width after lookup_up, 0: 2 dim")):
        add("--" + name, type=int, default=value, metavar="N", help=f"{text} ({value})")
    add("--lookup", default="", metavar="BLOCKS", help="blocks that a lookup layer follows, as 1,3 (none)")
    flag("--separate", "rows hold a key and a value (one vector that is both)")
    add("--rows-by", choices=PLANS, default="buckets", help="how rows are read (buckets)")
    add("--size", type=int, default=0, metavar="N", help="of a block (128); factor within a bucket (2)")
    flag("--sparse", "tables: sparse gradients and SparseAdam (dense AdamW)")
    flag("--foreach", "AdamW's foreach loops")
    flag("--bf16", "matrix products in bfloat16: torch.autocast (F32)")
    add("--micro-batch", type=int, default=0, metavar="N", help="sequences at once, 0: the whole batch (0)")
    add("--lr", type=float, default=2e-3, metavar="X", help="learning rate (2e-3)")
    add("--weight-decay", type=float, default=0.1, metavar="X", help="of matrices (0.1)")
    add("--steps", type=int, default=0, metavar="N", help="steps that are timed (5); with --check: steps (1)")
    add("--warmup", type=int, default=1, metavar="N", help="steps before that, of --micro-batch sequences (1)")
    add("--threads", type=int, default=1, metavar="N", help="(1)")
    add("--seed", type=int, default=1, metavar="N", help="(1)")
    flag("--json", "one line of JSON")
    a = p.parse_args()
    if a.check and not a.shape:
        p.error("--check needs --batch IDS.i32 and --shape B,T")
    if a.grow and not (a.data and a.o):
        p.error("--grow needs --data and -o")
    a.batch_file, a.batch = a.batch, 0 if a.check else int(a.batch)
    return a


def main():
    global np, torch, F
    a = arguments()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(a.threads)
    import numpy as np
    if a.grow:
        return write_allocation(a.o, grow(read_offsets(a.grow), read_tokens(a.data)[0], a.times))
    import torch, torch.nn.functional as F
    torch.set_num_threads(a.threads)
    check(a) if a.check else train(a)


main()
