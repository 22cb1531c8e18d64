#include "model/fit.h"

#include <math.h>

static const float ones[FIT_MAX] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* Nearest whole number, halves upwards, clamped. A cast after an offset, because calls of roundf do not
 * vectorise. */
static int nearest(float v, int low, int high)
{
    float x = v < (float)low ? (float)low : v > (float)high ? (float)high : v;

    return (int)(x - (float)low + 0.5f) + low;
}

int mdl_fit_nearest(float x, float d, float m, int low, int high)
{
    if (d == 0)
        return low > 0 ? low : 0;
    return nearest((x - m) / d, low, high);
}

double mdl_fit_error(const float *x, const float *weights, int n, float d, float m, int low, int high)
{
    const float *w = weights ? weights : ones;
    const float inverse = d != 0 ? 1 / d : 0;
    double sum = 0;

    for (int i = 0; i < n; i++) {
        float rest = x[i] - m - d * (float)nearest((x[i] - m) * inverse, low, high);

        sum += (double)(w[i] * rest) * rest;
    }
    return sum;
}

/* ---- a scale
 * -------------------------------------------------------------------------------------------------------- */

/* With q the nearest numbers to x * inverse, d = sum(w x q) / sum(w q q) leaves the least error, and the
 * error falls as gain = sum(w x q)^2 / sum(w q q) grows. */
static double gain(const float *x, const float *w, int n, float inverse, int low, int high, float *d)
{
    float xq = 0, qq = 0;

    for (int i = 0; i < n; i++) {
        float q = (float)nearest(x[i] * inverse, low, high);

        xq += w[i] * x[i] * q;
        qq += w[i] * q * q;
    }
    *d = qq > 0 ? xq / qq : 0;
    return qq > 0 ? (double)xq * *d : 0;
}

/* The number of largest magnitude goes near either end of the range, clipped or not; then from the best of
 * these on the way that least squares show. */
float mdl_fit_scale(const float *x, const float *weights, int n, int low, int high)
{
    const float *w = weights ? weights : ones;
    float top = 0, best = 0, d;
    double most = 0, g;

    for (int i = 0; i < n; i++)
        top = fabsf(x[i]) > fabsf(top) ? x[i] : top;
    if (top == 0 || !isfinite(1 / top)) /* the largest subnormals: one step of them */
        return top / (float)low;
    for (int end = 0; end < 2; end++)
        for (int t = -8; t <= 10; t++) {
            float at = end ? (float)high : (float)-low;

            at += 0.1f * (float)t * (at > 8 ? at / 8 : 1);
            if (at <= 0)
                continue;
            g = gain(x, w, n, (end ? at : -at) / top, low, high, &d);
            if (g > most) {
                most = g;
                best = d;
            }
        }
    for (int round = 0; round < 4 && best != 0; round++) {
        g = gain(x, w, n, 1 / best, low, high, &d);
        if (g <= most)
            break;
        most = g;
        best = d;
    }
    return best != 0 ? best : top / (float)low;
}

/* ---- a range
 * ----------------------------------------------------------------------------------------------------- */

struct range {
    float d, m;
    double error;
};

/* The line through (q, x) with the least error; q: nearest to (x - m) * inverse. */
static struct range line(const float *x, const float *w, int n, float inverse, float m, int high, bool down)
{
    double sw = 0, sx = 0, sq = 0, sqq = 0, sxq = 0, sxx = 0, det;
    struct range r = {0, m, HUGE_VAL};

    for (int i = 0; i < n; i++) {
        float q = (float)nearest((x[i] - m) * inverse, 0, high), wx = w[i] * x[i], wq = w[i] * q;

        sw += w[i];
        sx += wx;
        sq += wq;
        sqq += (double)wq * q;
        sxq += (double)wx * q;
        sxx += (double)wx * x[i];
    }
    det = sw * sqq - sq * sq;
    if (det <= 0)
        return r;
    r.d = (float)((sw * sxq - sx * sq) / det);
    r.m = (float)((sqq * sx - sq * sxq) / det);
    if (down && r.m > 0) {
        r.m = 0;
        r.d = sqq > 0 ? (float)(sxq / sqq) : 0;
    }
    if (r.d <= 0)
        return (struct range){0, m, HUGE_VAL};
    r.error = sxx - 2 * r.d * sxq - 2 * r.m * sx + (double)r.d * r.d * sqq + 2 * (double)r.d * r.m * sq +
              (double)r.m * r.m * sw;
    return r;
}

void mdl_fit_range(const float *x, const float *weights, int n, int high, bool down, float *d, float *m)
{
    const float *w = weights ? weights : ones;
    struct range best = {0, 0, HUGE_VAL}, r;
    float low = x[0], top = x[0];

    for (int i = 1; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        top = x[i] > top ? x[i] : top;
    }
    if (down && low > 0)
        low = 0;
    *d = 0;
    *m = low;
    if (!(top > low) || !isfinite((float)high / (top - low)))
        return;
    for (int t = -10; t <= 10; t++) {
        float steps = (float)high + 0.1f * (float)t * (high > 8 ? (float)high / 8 : 1);

        if (steps <= 0)
            continue;
        r = line(x, w, n, steps / (top - low), low, high, down);
        if (r.error < best.error)
            best = r;
    }
    for (int round = 0; round < 4 && best.d > 0; round++) {
        r = line(x, w, n, 1 / best.d, best.m, high, down);
        if (!(r.error < best.error))
            break;
        best = r;
    }
    if (best.d > 0) {
        *d = best.d;
        *m = best.m;
    } else {
        *d = (top - low) / (float)high;
    }
}
