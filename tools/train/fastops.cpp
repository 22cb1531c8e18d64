// Training kernels for the small MoE language model: all float32, GEMMs from OpenBLAS, everything
// else fused and parallel over independent tasks.  Compiled on the fly by fast.py.
//   attention : RoPE + causal softmax attention inside document pieces (recomputed in backward)
//   moe       : grouped SwiGLU experts over tokens sorted by expert; the shared expert is a set of
//               extra tasks over contiguous tokens
//   rmsnorm, cross entropy with its gradient in place, AdamW
#include <cmath>
#include <omp.h>
#include <torch/extension.h>
#include <vector>
extern "C" {
void cblas_sgemm(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *,
                 int);
void openblas_set_num_threads(int);
}
using std::vector;
using torch::Tensor;
static int g_threads = 2;
static const int ROWS = 96; // query rows per attention block

struct OneThread { // single-threaded BLAS inside our own parallel loops
    OneThread()
    {
        openblas_set_num_threads(1);
    }
    ~OneThread()
    {
        openblas_set_num_threads(g_threads);
    }
};

static void gemm(bool ta, bool tb, int m, int n, int k, const float *a, int lda, const float *b, int ldb,
                 float *c, int ldc, float beta = 0.f)
{
    cblas_sgemm(101, ta ? 112 : 111, tb ? 112 : 111, m, n, k, 1.f, a, lda, b, ldb, beta, c, ldc);
}

void set_threads(int64_t n)
{
    g_threads = n;
    openblas_set_num_threads(n);
    omp_set_num_threads(n);
}

// ---------------------------------------------------------------- attention
// qkv (T, 3*H*D); pieces: int32 (P, 2) = first row, length; cs (maxlen, D) = cos | sin halves
static void rope_in(const float *src, int ld, int n, int D, const float *cs, float scale, float *dst)
{
    int h = D / 2;
    for (int i = 0; i < n; i++) {
        const float *x = src + (size_t)i * ld, *c = cs + i * D, *s = c + h;
        float *y = dst + i * D;
        for (int j = 0; j < h; j++) {
            y[j] = (x[j] * c[j] - x[j + h] * s[j]) * scale;
            y[j + h] = (x[j + h] * c[j] + x[j] * s[j]) * scale;
        }
    }
}
static void rope_out(const float *src, int n, int D, const float *cs, float scale, float *dst, int ld)
{
    int h = D / 2;
    for (int i = 0; i < n; i++) {
        const float *d = src + i * D, *c = cs + i * D, *s = c + h;
        float *y = dst + (size_t)i * ld;
        for (int j = 0; j < h; j++) {
            y[j] = (d[j] * c[j] + d[j + h] * s[j]) * scale;
            y[j + h] = (d[j + h] * c[j] - d[j] * s[j]) * scale;
        }
    }
}

vector<Tensor> attn_fwd(Tensor qkv, Tensor pieces, Tensor cs, int64_t H)
{
    int T = qkv.size(0), D = qkv.size(1) / 3 / H, P = pieces.size(0), ld = 3 * H * D, lo = H * D;
    auto out = torch::empty({T, lo}, qkv.options());
    auto lse = torch::empty({H, T}, qkv.options());
    const float *x = qkv.data_ptr<float>(), *c = cs.data_ptr<float>();
    const int *pp = pieces.data_ptr<int>();
    float *o = out.data_ptr<float>(), *ls = lse.data_ptr<float>();
    float scale = 1.f / std::sqrt((float)D);
    OneThread one;
#pragma omp parallel num_threads(g_threads)
    {
        vector<float> q, k, S;
#pragma omp for schedule(dynamic)
        for (int t = 0; t < P * (int)H; t++) {
            int p = t / H, h = t % H, a = pp[2 * p], n = pp[2 * p + 1];
            q.resize(n * D);
            k.resize(n * D);
            S.resize((size_t)n * ROWS);
            const float *base = x + (size_t)a * ld + h * D;
            rope_in(base, ld, n, D, c, scale, q.data());
            rope_in(base + lo, ld, n, D, c, 1.f, k.data());
            for (int r0 = 0; r0 < n;
                 r0 += ROWS) { // rows r0..r1 see keys 0..r1: half of the square is skipped
                int r1 = std::min(n, r0 + ROWS), nr = r1 - r0;
                gemm(false, true, nr, r1, D, q.data() + r0 * D, D, k.data(), D, S.data(), r1);
                for (int i = r0; i < r1; i++) {
                    float *r = S.data() + (size_t)(i - r0) * r1, m = -1e30f, s = 0;
                    for (int j = 0; j <= i; j++)
                        m = std::max(m, r[j]);
                    for (int j = 0; j <= i; j++) {
                        r[j] = expf(r[j] - m);
                        s += r[j];
                    }
                    float inv = 1.f / s;
                    for (int j = 0; j <= i; j++)
                        r[j] *= inv;
                    for (int j = i + 1; j < r1; j++)
                        r[j] = 0;
                    ls[(size_t)h * T + a + i] = m + std::log(s);
                }
                gemm(false, false, nr, D, r1, S.data(), r1, base + 2 * lo, ld,
                     o + (size_t)(a + r0) * lo + h * D, lo);
            }
        }
    }
    return {out, lse};
}

Tensor attn_bwd(Tensor dout, Tensor qkv, Tensor lse, Tensor pieces, Tensor cs, int64_t H)
{
    int T = qkv.size(0), D = qkv.size(1) / 3 / H, P = pieces.size(0), ld = 3 * H * D, lo = H * D;
    auto dqkv = torch::empty_like(qkv);
    const float *x = qkv.data_ptr<float>(), *c = cs.data_ptr<float>(), *go = dout.data_ptr<float>(),
                *ls = lse.data_ptr<float>();
    const int *pp = pieces.data_ptr<int>();
    float *g = dqkv.data_ptr<float>();
    float scale = 1.f / std::sqrt((float)D);
    OneThread one;
#pragma omp parallel num_threads(g_threads)
    {
        vector<float> q, k, S, dS, tmp, dk, dv;
#pragma omp for schedule(dynamic)
        for (int t = 0; t < P * (int)H; t++) {
            int p = t / H, h = t % H, a = pp[2 * p], n = pp[2 * p + 1];
            q.resize(n * D);
            k.resize(n * D);
            tmp.resize(n * D);
            dk.resize(n * D);
            dv.resize(n * D);
            S.resize((size_t)n * ROWS);
            dS.resize((size_t)n * ROWS);
            const float *base = x + (size_t)a * ld + h * D;
            const float *d = go + (size_t)a * lo + h * D;
            float *gb = g + (size_t)a * ld + h * D;
            rope_in(base, ld, n, D, c, scale, q.data());
            rope_in(base + lo, ld, n, D, c, 1.f, k.data());
            for (int r0 = 0; r0 < n; r0 += ROWS) {
                int r1 = std::min(n, r0 + ROWS), nr = r1 - r0;
                gemm(false, true, nr, r1, D, q.data() + r0 * D, D, k.data(), D, S.data(), r1);
                gemm(false, true, nr, r1, D, d + (size_t)r0 * lo, lo, base + 2 * lo, ld, dS.data(), r1);
                for (int i = r0; i < r1; i++) {
                    float *r = S.data() + (size_t)(i - r0) * r1, *e = dS.data() + (size_t)(i - r0) * r1,
                          L = ls[(size_t)h * T + a + i], dot = 0;
                    for (int j = 0; j <= i; j++) {
                        r[j] = expf(r[j] - L);
                        dot += r[j] * e[j];
                    }
                    for (int j = 0; j <= i; j++)
                        e[j] = r[j] * (e[j] - dot);
                    for (int j = i + 1; j < r1; j++) {
                        r[j] = 0;
                        e[j] = 0;
                    }
                }
                gemm(false, false, nr, D, r1, dS.data(), r1, k.data(), D, tmp.data() + r0 * D, D);
                // keys 0..r0 were reached before: add; keys r0..r1 are new: set
                if (r0) {
                    gemm(true, false, r0, D, nr, S.data(), r1, d + (size_t)r0 * lo, lo, dv.data(), D, 1.f);
                    gemm(true, false, r0, D, nr, dS.data(), r1, q.data() + r0 * D, D, dk.data(), D, 1.f);
                }
                gemm(true, false, nr, D, nr, S.data() + r0, r1, d + (size_t)r0 * lo, lo, dv.data() + r0 * D,
                     D);
                gemm(true, false, nr, D, nr, dS.data() + r0, r1, q.data() + r0 * D, D, dk.data() + r0 * D, D);
            }
            rope_out(tmp.data(), n, D, c, scale, gb, ld);
            rope_out(dk.data(), n, D, c, 1.f, gb + lo, ld);
            for (int i = 0; i < n; i++)
                memcpy(gb + (size_t)i * ld + 2 * lo, &dv[(size_t)i * D], D * 4);
        }
    }
    return dqkv;
}

// ---------------------------------------------------------------- mixture of experts
// wgu (E, 2I, H): gate rows then up rows; wd (E, H, I); the last expert is shared (weight 1).
struct Task {
    int e, start, n;
};
static const int CHUNK = 1024;

static vector<Task> plan(const Tensor &idx, int T, int K, int E, vector<int> &slot_tok, vector<int> &slot_src,
                         vector<int> &where)
{
    int R = E - 1;
    const int64_t *ix = idx.data_ptr<int64_t>();
    vector<int> off(R + 1, 0);
    for (int i = 0; i < T * K; i++)
        off[ix[i] + 1]++;
    for (int e = 0; e < R; e++)
        off[e + 1] += off[e];
    vector<Task> tasks;
    int base = T * K;
    for (int s = 0; s < T; s += CHUNK)
        tasks.push_back({R, base + s, std::min(CHUNK, T - s)});
    for (int e = 0; e < R; e++)
        if (off[e + 1] > off[e])
            tasks.push_back({e, off[e], off[e + 1] - off[e]});
    slot_tok.resize(T * (K + 1));
    slot_src.resize(T * K);
    where.resize(T * K);
    vector<int> at(off.begin(), off.end());
    for (int i = 0; i < T * K; i++) {
        int s = at[ix[i]]++;
        slot_tok[s] = i / K;
        slot_src[s] = i;
        where[i] = s;
    }
    for (int t = 0; t < T; t++)
        slot_tok[base + t] = t;
    return tasks;
}

vector<Tensor> moe_fwd(Tensor x, Tensor idx, Tensor w, Tensor wgu, Tensor wd)
{
    int T = x.size(0), H = x.size(1), K = idx.size(1), E = wgu.size(0), I = wd.size(2);
    vector<int> tok, src, where;
    auto tasks = plan(idx, T, K, E, tok, src, where);
    int N = T * (K + 1);
    auto gu = torch::empty({N, 2 * I}, x.options());
    auto y = torch::empty({N, H}, x.options());
    auto out = torch::empty({T, H}, x.options());
    const float *px = x.data_ptr<float>(), *pw = w.data_ptr<float>(), *pg = wgu.data_ptr<float>(),
                *pd = wd.data_ptr<float>();
    float *G = gu.data_ptr<float>(), *Y = y.data_ptr<float>(), *O = out.data_ptr<float>();
    OneThread one;
#pragma omp parallel num_threads(g_threads)
    {
        vector<float> X, A;
#pragma omp for schedule(dynamic)
        for (int t = 0; t < (int)tasks.size(); t++) {
            auto k = tasks[t];
            X.resize((size_t)k.n * H);
            A.resize((size_t)k.n * I);
            const float *in = X.data();
            if (k.e == E - 1)
                in = px + (size_t)(k.start - T * K) * H;
            else
                for (int i = 0; i < k.n; i++)
                    memcpy(&X[(size_t)i * H], px + (size_t)tok[k.start + i] * H, H * 4);
            float *g = G + (size_t)k.start * 2 * I;
            gemm(false, true, k.n, 2 * I, H, in, H, pg + (size_t)k.e * 2 * I * H, H, g, 2 * I);
            for (int i = 0; i < k.n; i++) {
                const float *a = g + (size_t)i * 2 * I, *u = a + I;
                float *o = &A[(size_t)i * I];
                for (int j = 0; j < I; j++)
                    o[j] = a[j] / (1.f + expf(-a[j])) * u[j];
            }
            gemm(false, true, k.n, H, I, A.data(), I, pd + (size_t)k.e * H * I, I, Y + (size_t)k.start * H,
                 H);
        }
#pragma omp for schedule(static)
        for (int t = 0; t < T; t++) {
            float *o = O + (size_t)t * H;
            memcpy(o, Y + (size_t)(T * K + t) * H, H * 4);
            for (int k = 0; k < K; k++) {
                const float *r = Y + (size_t)where[t * K + k] * H;
                float c = pw[t * K + k];
                for (int j = 0; j < H; j++)
                    o[j] += c * r[j];
            }
        }
    }
    return {out, gu};
}

// writes the weight gradients straight into dwgu / dwd, returns dx, dw
vector<Tensor> moe_bwd(Tensor dout, Tensor x, Tensor idx, Tensor w, Tensor wgu, Tensor wd, Tensor gu,
                       Tensor dwgu, Tensor dwd)
{
    int T = x.size(0), H = x.size(1), K = idx.size(1), E = wgu.size(0), I = wd.size(2);
    vector<int> tok, src, where;
    auto tasks = plan(idx, T, K, E, tok, src, where);
    int N = T * (K + 1), nsh = (T + CHUNK - 1) / CHUNK;
    auto dxs = torch::empty({N, H}, x.options());
    auto dx = torch::empty({T, H}, x.options());
    auto dw = torch::empty({T, K}, x.options());
    auto shg = torch::empty({nsh, 2 * I, H}, x.options());
    auto shd = torch::empty({nsh, H, I}, x.options());
    const float *px = x.data_ptr<float>(), *pw = w.data_ptr<float>(), *pg = wgu.data_ptr<float>(),
                *pd = wd.data_ptr<float>();
    const float *G = gu.data_ptr<float>(), *go = dout.data_ptr<float>();
    float *DX = dxs.data_ptr<float>(), *O = dx.data_ptr<float>(), *DW = dw.data_ptr<float>();
    float *Dg = dwgu.data_ptr<float>(), *Dd = dwd.data_ptr<float>(), *Sg = shg.data_ptr<float>(),
          *Sd = shd.data_ptr<float>();
    vector<char> used(E, 0);
    for (auto &k : tasks)
        used[k.e] = 1;
    for (int e = 0; e < E - 1; e++)
        if (!used[e]) {
            memset(Dg + (size_t)e * 2 * I * H, 0, 8 * I * H);
            memset(Dd + (size_t)e * I * H, 0, 4 * I * H);
        }
    OneThread one;
#pragma omp parallel num_threads(g_threads)
    {
        vector<float> X, D, A, dA, dG;
#pragma omp for schedule(dynamic)
        for (int t = 0; t < (int)tasks.size(); t++) {
            auto k = tasks[t];
            bool shared = k.e == E - 1;
            X.resize((size_t)k.n * H);
            D.resize((size_t)k.n * H);
            A.resize((size_t)k.n * I);
            dA.resize((size_t)k.n * I);
            dG.resize((size_t)k.n * 2 * I);
            const float *in = X.data(), *d = D.data();
            if (shared) {
                in = px + (size_t)(k.start - T * K) * H;
                d = go + (size_t)(k.start - T * K) * H;
            } else
                for (int i = 0; i < k.n; i++) {
                    size_t r = (size_t)tok[k.start + i] * H;
                    memcpy(&X[(size_t)i * H], px + r, H * 4);
                    memcpy(&D[(size_t)i * H], go + r, H * 4);
                }
            gemm(false, false, k.n, I, H, d, H, pd + (size_t)k.e * H * I, I, dA.data(), I);
            for (int i = 0; i < k.n; i++) {
                const float *a = G + (size_t)(k.start + i) * 2 * I, *u = a + I;
                float *o = &A[(size_t)i * I], *da = &dA[(size_t)i * I], *g = &dG[(size_t)i * 2 * I], dot = 0;
                float c = shared ? 1.f : pw[src[k.start + i]];
                for (int j = 0; j < I; j++) {
                    float s = 1.f / (1.f + expf(-a[j])), si = a[j] * s, act = si * u[j], e = da[j];
                    dot += e * act;
                    e *= c;
                    o[j] = act * c;
                    g[j] = e * u[j] * (s + si * (1.f - s));
                    g[j + I] = e * si;
                }
                if (!shared)
                    DW[src[k.start + i]] = dot;
            }
            float *og =
                shared ? Sg + (size_t)t * 2 * I * H : Dg + (size_t)k.e * 2 * I * H; // shared tasks come first
            float *od = shared ? Sd + (size_t)t * H * I : Dd + (size_t)k.e * H * I;
            gemm(true, false, H, I, k.n, d, H, A.data(), I, od, I);
            gemm(true, false, 2 * I, H, k.n, dG.data(), 2 * I, in, H, og, H);
            gemm(false, false, k.n, H, 2 * I, dG.data(), 2 * I, pg + (size_t)k.e * 2 * I * H, H,
                 DX + (size_t)k.start * H, H);
        }
#pragma omp for schedule(static)
        for (int t = 0; t < T; t++) {
            float *o = O + (size_t)t * H;
            memcpy(o, DX + (size_t)(T * K + t) * H, H * 4);
            for (int k = 0; k < K; k++) {
                const float *r = DX + (size_t)where[t * K + k] * H;
                for (int j = 0; j < H; j++)
                    o[j] += r[j];
            }
        }
    }
    for (int j = 0; j < 2 * I * H; j++) {
        float s = 0;
        for (int c = 0; c < nsh; c++)
            s += Sg[(size_t)c * 2 * I * H + j];
        Dg[(size_t)(E - 1) * 2 * I * H + j] = s;
    }
    for (int j = 0; j < I * H; j++) {
        float s = 0;
        for (int c = 0; c < nsh; c++)
            s += Sd[(size_t)c * I * H + j];
        Dd[(size_t)(E - 1) * I * H + j] = s;
    }
    return {dx, dw};
}

// ---------------------------------------------------------------- rmsnorm
Tensor rms_fwd(Tensor x, Tensor w, double eps)
{
    int T = x.size(0), H = x.size(1);
    auto y = torch::empty_like(x);
    const float *X = x.data_ptr<float>(), *W = w.data_ptr<float>();
    float *Y = y.data_ptr<float>();
#pragma omp parallel for num_threads(g_threads)
    for (int t = 0; t < T; t++) {
        const float *a = X + (size_t)t * H;
        float *o = Y + (size_t)t * H;
        float s = 0;
        for (int j = 0; j < H; j++)
            s += a[j] * a[j];
        float r = 1.f / std::sqrt(s / H + (float)eps);
        for (int j = 0; j < H; j++)
            o[j] = a[j] * r * W[j];
    }
    return y;
}
vector<Tensor> rms_bwd(Tensor dy, Tensor x, Tensor w, double eps)
{
    int T = x.size(0), H = x.size(1);
    auto dx = torch::empty_like(x);
    auto dw = torch::zeros({g_threads, H}, x.options());
    const float *X = x.data_ptr<float>(), *W = w.data_ptr<float>(), *G = dy.data_ptr<float>();
    float *O = dx.data_ptr<float>(), *DW = dw.data_ptr<float>();
#pragma omp parallel num_threads(g_threads)
    {
        float *my = DW + (size_t)omp_get_thread_num() * H;
#pragma omp for
        for (int t = 0; t < T; t++) {
            const float *a = X + (size_t)t * H, *g = G + (size_t)t * H;
            float *o = O + (size_t)t * H, s = 0, d = 0;
            for (int j = 0; j < H; j++) {
                s += a[j] * a[j];
                d += g[j] * W[j] * a[j];
            }
            float r = 1.f / std::sqrt(s / H + (float)eps), c = d * r * r / H;
            for (int j = 0; j < H; j++) {
                o[j] = r * (g[j] * W[j] - a[j] * c);
                my[j] += g[j] * a[j] * r;
            }
        }
    }
    return {dx, dw.sum(0)};
}

// ---------------------------------------------------------------- cross entropy, gradient in place
Tensor ce_(Tensor logits, Tensor label, double scale)
{
    int T = logits.size(0), V = logits.size(1);
    auto loss = torch::empty({T}, logits.options());
    float *X = logits.data_ptr<float>(), *L = loss.data_ptr<float>();
    const int64_t *y = label.data_ptr<int64_t>();
    float sc = scale;
#pragma omp parallel for num_threads(g_threads)
    for (int t = 0; t < T; t++) {
        float *a = X + (size_t)t * V, m = -1e30f, s = 0, target = a[y[t]];
        for (int j = 0; j < V; j++)
            m = std::max(m, a[j]);
        for (int j = 0; j < V; j++) {
            a[j] = expf(a[j] - m);
            s += a[j];
        }
        L[t] = std::log(s) + m - target;
        float inv = sc / s;
        for (int j = 0; j < V; j++)
            a[j] *= inv;
        a[y[t]] -= sc;
    }
    return loss;
}

// ---------------------------------------------------------------- AdamW over a flat range
void adamw(Tensor p, Tensor g, Tensor m, Tensor v, double lr, double b1, double b2, double eps, double wd,
           int64_t step, double gscale)
{
    int64_t n = p.numel();
    float *P = p.data_ptr<float>(), *M = m.data_ptr<float>(), *V = v.data_ptr<float>();
    const float *G = g.data_ptr<float>();
    float c1 = 1 - std::pow(b1, step), c2 = 1 - std::pow(b2, step), a = lr / c1, ic2 = 1.f / std::sqrt(c2),
          dec = 1 - lr * wd;
    float B1 = b1, B2 = b2, e = eps, gs = gscale;
#pragma omp parallel for num_threads(g_threads)
    for (int64_t i = 0; i < n; i++) {
        float x = G[i] * gs;
        M[i] = B1 * M[i] + (1 - B1) * x;
        V[i] = B2 * V[i] + (1 - B2) * x * x;
        P[i] = P[i] * dec - a * M[i] / (std::sqrt(V[i]) * ic2 + e);
    }
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m)
{
    m.def("set_threads", &set_threads);
    m.def("attn_fwd", &attn_fwd);
    m.def("attn_bwd", &attn_bwd);
    m.def("moe_fwd", &moe_fwd);
    m.def("moe_bwd", &moe_bwd);
    m.def("rms_fwd", &rms_fwd);
    m.def("rms_bwd", &rms_bwd);
    m.def("ce_", &ce_);
    m.def("adamw", &adamw);
}
