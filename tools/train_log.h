/* train_log.h - what a run has been through: lines of a CSV file, and a picture of the curves.
 *
 * The CSV file grows line by line. A resumed run drops the lines that lie behind its checkpoint and goes on. */
#ifndef TRAIN_LOG_H
#define TRAIN_LOG_H

#include "cli.h"

typedef struct train_line {
    uint64_t step, tokens;
    double   seconds, lr, train_loss, grad_norm, tokens_per_second, valid_loss; /* NaN: not known */
} train_line;

typedef struct train_log {
    const char *path;
    FILE       *file;
    train_line *lines;
    size_t      n;
} train_log;

static const char train_log_head[] = "step,tokens,seconds,lr,train_loss,grad_norm,tok_s,valid_loss\n";

/* A number, or nothing when it is not known, and what follows it. */
static inline void train_log_field(FILE *f, const char *format, double v, char after) {
    if (cli_finite(v)) fprintf(f, format, v);
    fputc(after, f);
}

static inline void train_log_print(FILE *f, const train_line *l) {
    fprintf(f, "%" PRIu64 ",%" PRIu64 ",", l->step, l->tokens);
    train_log_field(f, "%.1f", l->seconds, ',');
    train_log_field(f, "%.6g", l->lr, ',');
    train_log_field(f, "%.5f", l->train_loss, ',');
    train_log_field(f, "%.4f", l->grad_norm, ',');
    train_log_field(f, "%.0f", l->tokens_per_second, ',');
    train_log_field(f, "%.5f", l->valid_loss, '\n');
}

/* The next field of a CSV line; NaN when it is empty. */
static inline double train_log_number(const char **at) {
    char        *end;
    const double v    = strtod(*at, &end);
    const bool   none = end == *at;
    *at               = *end == ',' ? end + 1 : end;
    return none ? NAN : v;
}

static inline void train_log_keep(train_log *g, train_line l) {
    g->lines         = (train_line *)cli_grow(g->lines, g->n, sizeof *g->lines);
    g->lines[g->n++] = l;
}

/* Lines up to `step` of an earlier run; none if there is no such file. */
static inline void train_log_read(train_log *g, uint64_t step) {
    FILE *f = cli_fopen(g->path, "rb");
    char  text[512];
    while (f && fgets(text, sizeof text, f)) {
        const char *at = text;
        train_line  l;
        if (*text < '0' || *text > '9') continue;
        l.step              = (uint64_t)train_log_number(&at);
        l.tokens            = (uint64_t)train_log_number(&at);
        l.seconds           = train_log_number(&at);
        l.lr                = train_log_number(&at);
        l.train_loss        = train_log_number(&at);
        l.grad_norm         = train_log_number(&at);
        l.tokens_per_second = train_log_number(&at);
        l.valid_loss        = train_log_number(&at);
        if (l.step <= step && (g->n == 0 || l.step > g->lines[g->n - 1].step)) train_log_keep(g, l);
    }
    if (f) fclose(f);
}

static inline void train_log_open(train_log *g, const char *path, bool resume, uint64_t step) {
    memset(g, 0, sizeof *g);
    g->path = path;
    if (resume) train_log_read(g, step);
    g->file = cli_fopen(path, "wb");
    if (!g->file) cli_fail("%s: cannot be written (%s)", path, strerror(errno));
    fputs(train_log_head, g->file);
    for (size_t i = 0; i < g->n; i++) train_log_print(g->file, &g->lines[i]);
}

static inline void train_log_flush(train_log *g) {
    if (fflush(g->file) != 0 || ferror(g->file)) cli_fail("%s: cannot be written (%s)", g->path, strerror(errno));
}

static inline void train_log_add(train_log *g, train_line l) {
    train_log_keep(g, l);
    train_log_print(g->file, &l);
    train_log_flush(g);
}

static inline void train_log_close(train_log *g) {
    fclose(g->file);
    free(g->lines);
}

/* ---- the picture ---- */

enum { LOG_WIDTH = 760, LOG_HEIGHT = 420, LOG_LEFT = 64, LOG_RIGHT = 20, LOG_TOP = 40, LOG_BOTTOM = 48 };

typedef struct log_frame {
    double x_max, y_min, y_max;
} log_frame;

static inline double log_x(const log_frame *f, double v) {
    return LOG_LEFT + v / f->x_max * (LOG_WIDTH - LOG_LEFT - LOG_RIGHT);
}
static inline double log_y(const log_frame *f, double v) {
    return LOG_TOP + (f->y_max - v) / (f->y_max - f->y_min) * (LOG_HEIGHT - LOG_TOP - LOG_BOTTOM);
}

/* 1, 2 or 5 times a power of ten, so that about `n` steps of it make up the range. */
static inline double log_tick(double range, double n) {
    const double raw = range / n, power = pow(10, floor(log10(raw))), x = raw / power;
    return power * (x < 1.5 ? 1 : x < 3.5 ? 2 : x < 7.5 ? 5 : 10);
}

static inline void log_curve(cli_output *out, const train_log *g, const log_frame *f, bool valid, const char *style) {
    cli_print(out, "<polyline fill=\"none\" %s points=\"", style);
    for (size_t i = 0; i < g->n; i++) {
        const double v = valid ? g->lines[i].valid_loss : g->lines[i].train_loss;
        if (cli_finite(v))
            cli_print(out, "%.1f,%.1f ", log_x(f, (double)g->lines[i].tokens), log_y(f, v < f->y_max ? v : f->y_max));
    }
    cli_print(out, "\"/>\n");
}

static inline log_frame log_range(const train_log *g) {
    log_frame f = {1, INFINITY, 0};
    for (size_t i = 0; i < g->n; i++) {
        const double both[] = {g->lines[i].train_loss, g->lines[i].valid_loss};
        if ((double)g->lines[i].tokens > f.x_max) f.x_max = (double)g->lines[i].tokens;
        for (int j = 0; j < 2; j++)
            if (cli_finite(both[j])) {
                if (both[j] < f.y_min) f.y_min = both[j];
                if (i >= g->n / 50 && both[j] > f.y_max)
                    f.y_max = both[j]; /* the fall of the first steps would hide the rest */
            }
    }
    if (!cli_finite(f.y_min)) f.y_min = 0;
    if (f.y_max <= f.y_min) f.y_max = f.y_min + 1;
    return f;
}

static inline void log_axes(cli_output *out, const log_frame *f) {
    const double dx = log_tick(f->x_max, 6), dy = log_tick(f->y_max - f->y_min, 6);
    for (double y = ceil(f->y_min / dy) * dy; y <= f->y_max; y += dy)
        cli_print(out,
                "<path stroke=\"#ddd\" d=\"M%d %.1fH%d\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                LOG_LEFT, log_y(f, y), LOG_WIDTH - LOG_RIGHT, LOG_LEFT - 8, log_y(f, y) + 4, y);
    for (double x = 0; x <= f->x_max * 1.0001; x += dx)
        cli_print(out,
                "<path stroke=\"#ddd\" d=\"M%.1f %dV%d\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n",
                log_x(f, x), LOG_TOP, LOG_HEIGHT - LOG_BOTTOM, log_x(f, x), LOG_HEIGHT - LOG_BOTTOM + 18, x * 1e-6);
}

/* Both losses over the tokens seen. title: for people. */
static inline void train_log_draw(const train_log *g, const char *path, const char *title) {
    const log_frame f = log_range(g);
    cli_output      out;
    if (g->n < 2) return;
    cli_output_open(&out, path);
    cli_print(&out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" "
            "font-size=\"12\">\n",
            LOG_WIDTH, LOG_HEIGHT);
    cli_print(&out, "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n<text x=\"%d\" y=\"22\" font-size=\"15\">",
            LOG_LEFT);
    for (const char *c = title; *c; c++)
        cli_print(&out, "%s", *c == '<' ? "&lt;" : *c == '&' ? "&amp;" : (unsigned char)*c < 0x20 ? " " : (char[]){*c, 0});
    cli_print(&out, "</text>\n");
    log_axes(&out, &f);
    log_curve(&out, g, &f, false, "stroke=\"#8aa\" stroke-width=\"1\"");
    log_curve(&out, g, &f, true, "stroke=\"#c30\" stroke-width=\"2\"");
    cli_print(&out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">million tokens</text>\n", LOG_WIDTH / 2,
            LOG_HEIGHT - 10);
    cli_print(&out,
            "<text transform=\"translate(18 %d) rotate(-90)\" text-anchor=\"middle\">loss (nats a token)</text>\n",
            LOG_HEIGHT / 2);
    cli_print(&out,
            "<text x=\"%d\" y=\"22\" text-anchor=\"end\"><tspan fill=\"#c30\">validation</tspan>  <tspan "
            "fill=\"#588\">training</tspan></text>\n</svg>\n",
            LOG_WIDTH - LOG_RIGHT);
    cli_output_close(&out);
}

#endif /* TRAIN_LOG_H */
