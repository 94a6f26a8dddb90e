# stack.awk - worst-case stack of every public call, in bytes, from the call graph that gcc -fcallgraph-info=su writes (a .ci file):
#     awk -f tests/stack.awk l3.h l3_model.h unit.ci
# prints "name bytes", the deepest last. Functions outside the object (libc's, the compiler's) and the caller's own callbacks count
# as nothing. What a call through a pointer may reach is told by its source text: `reach` below; a call that is not known there
# is an error. There is no recursion, which is checked.
# POSIX awk.

BEGIN {
    none = "^$"
    types = "_(f32|f16|bf16|q8_0|q4_0|q6_k)$"
    # By the whole expression that is called, or by its last name.
    reach["map"] = reach["read"] = reach["start"] = reach["wait"] = reach["hint"] = none # the caller's source,
    reach["write"] = reach["w->config.progress"] = none                                  # and other callbacks
    reach["l3.h piece"] = reach["jobs->run"] = "^l3__(matmul|pack|attend|attend_groups|positions)_piece$"
    reach["j->one"] = "^l3__(norm|residual|swiglu)_one$|^l3__rope_and_store$"
    reach["l3_model.h piece"] = "^l3__(hash|crc|copy)_piece$"
    reach["v->key"] = "^l3__alignment_key$"
    reach["v->string"] = "^l3__alignment_string$"
    reach["v->tensor"] = "^l3__on_tensor$"
    reach["v->data"] = "^l3__on_data$"
    reach["a->inner->key"] = "^l3__on_key$"
    reach["a->inner->string"] = "^l3__on_string$"
    reach["unpack"] = reach["l3__unpacker"] = "^l3__unpack" types
    reach["pack"] = "^l3__pack(_row)?" types
    reach["rows"] = "^l3__fixed_rows" types
    reach["->pack"] = "^l3__fixed_pack$"
    reach["s->work.kernels->pack"] = "^l3_pack$"
    reach["panel"] = reach["times"] = none # of vector levels, which do without
    reach["->unpack"] = "^l3__unpack_row$"
    reach["matmul"] = reach["scores"] = "^l3__matmul" types
    split("dot add_scaled scale normalize swiglu rotate softmax_tile weigh_rows", kernel, " ")
    for (i in kernel) reach[kernel[i]] = "^l3__" kernel[i] "$"
}

FILENAME ~ /\.h$/ {
    file = FILENAME
    sub(/.*\//, "", file)
    line[file, FNR] = $0
    next
}

function base(name) { # of a function, without the file before it and what gcc adds behind
    sub(/^.*:/, "", name)
    sub(/[.].*/, "", name)
    return name
}

# gcc's names of places: path:line:column
function target_of(label,    part, n, file, text, last) {
    n = split(label, part, ":")
    file = part[n - 2]
    sub(/.*\//, "", file)
    text = substr(line[file, part[n - 1]], part[n])
    match(text, /^[A-Za-z0-9_.>-]+/)
    text = substr(text, 1, RLENGTH)
    last = text
    sub(/.*(->|[.])/, "", last)
    if (text in reach) return reach[text]
    if ((file " " text) in reach) return reach[file " " text]
    if (text != last && ("->" last) in reach) return reach["->" last]
    if (last in reach) return reach[last]
    print "stack.awk: what " file ":" part[n - 1] " calls through a pointer, " text ", is not known" | "cat >&2"
    failed = 1
    return none
}

/^node:/ && / bytes \(/ {
    name = $4
    gsub(/"/, "", name)
    text = $0
    sub(/ bytes \(.*/, "", text)
    sub(/.*\\n/, "", text)
    frame[name] = text + 0
    if ($0 !~ /\((static|dynamic,bounded)\)/) {
        print "stack.awk: the frame of " name " is not bounded" | "cat >&2"
        failed = 1
    }
}

/^edge:/ {
    from = $4
    to = $6
    gsub(/"/, "", from)
    gsub(/"/, "", to)
    calls[from] = calls[from] " " to
    if (to == "__indirect_call") {
        label = $8
        gsub(/"/, "", label)
        through[from] = through[from] "\n" target_of(label)
    }
}

# The deepest path from a function on.
function depth(name,    n, i, list, most, patterns, m, k) {
    if (name in known) return known[name]
    if (name in open) {
        print "stack.awk: " name " calls itself" | "cat >&2"
        failed = 1
        return 0
    }
    open[name] = 1
    n = split(calls[name], list, " ")
    for (i = 1; i <= n; i++)
        if (list[i] in frame && depth(list[i]) > most) most = depth(list[i])
    m = split(through[name], patterns, "\n")
    for (k = 1; k <= m; k++)
        if (patterns[k] != "")
            for (i in frame)
                if (base(i) ~ patterns[k] && depth(i) > most) most = depth(i)
    delete open[name]
    return known[name] = frame[name] + most
}

END {
    for (name in frame)
        if (name ~ /^l3_[a-z]/) print base(name), depth(name) | "sort -k2n -k1"
    close("sort -k2n -k1")
    exit failed
}
