# experiments.awk - docs/experiments.csv as a Markdown table, or with svg=1 as a picture, for one scale: awk -F, -v scale=tiny -f ...
# Perplexities are exp of the mean loss of the seeds; the difference to the dense model is paired seed by seed, with its standard error.
$1 == scale {
    if (!($2 in n)) order[++variants] = $2
    n[$2]++; sum[$2] += $8; loss[$2, $3] = $8; seeds[$3] = 1
    all[$2] = $4; tables[$2] = $5; active[$2] = $6; tokens[$2] = $7; seconds[$2] += $9
}
function difference(v,   s, d, m, q, c) { # to dense, over the seeds that both have: sets mean and error
    m = q = c = 0
    for (s in seeds) if ((v, s) in loss && ("dense", s) in loss) { d = loss[v, s] - loss["dense", s]; m += d; q += d * d; c++ }
    if (c == 0) { mean = error = 0; return }
    mean = m / c
    error = c > 1 ? sqrt((q / c - mean * mean > 0 ? q / c - mean * mean : 0) / (c - 1)) : 0
}
function table(   i, v) {
    printf "Scale `%s`: %.2f M tokens a run.\n\n", scale, tokens[order[1]] / 1e6
    print "| variant | parameters | in tables | active | seeds | perplexity | loss against dense | seconds a run |"
    print "|---|---|---|---|---|---|---|---|"
    for (i = 1; i <= variants; i++) {
        v = order[i]; difference(v)
        printf "| %s | %.2f M | %.2f M | %.2f M | %d | %.2f | %s | %.0f |\n", v, all[v], tables[v], active[v], n[v], exp(sum[v] / n[v]),
            v == "dense" ? "" : (n[v] > 1) ? sprintf("%+.4f ± %.4f", mean, error) : sprintf("%+.4f", mean), seconds[v] / n[v]
    }
    print ""
}
function picture(   i, v, low, high, x, y, width) {
    width = 700
    for (i = 1; i <= variants; i++) { difference(order[i]); if (mean - error < low) low = mean - error; if (mean + error > high) high = mean + error }
    low -= 0.01; high += 0.01
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\">\n", width, 70 + 24 * variants
    print "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
    printf "<text x=\"20\" y=\"24\" font-size=\"15\">Validation loss against a dense model of the same active size (scale %s)</text>\n", scale
    printf "<path stroke=\"#999\" d=\"M%.1f 36V%d\"/>\n", at(0, low, high, width), 44 + 24 * variants
    for (i = 1; i <= variants; i++) {
        v = order[i]; difference(v); y = 34 + 24 * i; x = at(mean, low, high, width)
        printf "<text x=\"130\" y=\"%d\" text-anchor=\"end\">%s</text><circle cx=\"%.1f\" cy=\"%d\" r=\"4\" fill=\"#c30\"/>", y + 4, v, x, y
        printf "<path stroke=\"#c30\" d=\"M%.1f %dH%.1f\"/>", at(mean - error, low, high, width), y, at(mean + error, low, high, width)
        printf "<text x=\"%.1f\" y=\"%d\">%s</text>\n", x + 12, y - 5, v == "dense" ? "" : sprintf("%+.3f", mean)
    }
    printf "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">nats a token; lines: standard error of the paired difference</text>\n</svg>\n", width / 2, 62 + 24 * variants
}
function at(v, low, high, width) { return 150 + (v - low) / (high - low) * (width - 210) }
END { if (svg) picture(); else table() }
