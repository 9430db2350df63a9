/* tools/llama_flags.c - the flags with which llama.cpp places a model as well as it can on a
 * machine, by the same arithmetic. Names as in llama.cpp of 2025: -ngl, --n-cpu-moe, -ot. */
#include "tools/plan_text.h"

#include <inttypes.h>

/* What a CUDA context and llama.cpp's buffers take: 0.7 GiB, and logits of a batch. */
static uint64_t gpu_room(const plan_view *v, uint64_t vram, uint32_t batch)
{
    uint64_t own = 700ull << 20, logits = (uint64_t)batch * v->src->shape->n_vocab * 4;
    return vram > own + logits ? vram - own - logits : 0;
}

static uint64_t layer_kv(const plan_view *v, uint32_t l)
{
    const sl_type_info *t = sl_type_get(v->choice->plan.kv_type);
    const sl_layer_shape *ls = &v->src->shape->layers[l];
    return ((uint64_t)ls->k_elems + ls->v_elems) * v->choice->plan.n_ctx / t->block_elems
         * t->block_bytes;
}

static uint64_t layer_dense(const sl_layer_shape *l)
{
    return l->qkv_bytes + l->post_bytes + l->router_bytes + l->ffn_bytes;
}

/* How many of the last layers have room whole, their experts included, behind `used` bytes. */
static uint32_t whole_layers(const plan_view *v, uint64_t room, uint64_t used)
{
    uint32_t n = 0;
    while (n < v->src->shape->n_layer) {
        const sl_layer_shape *l = &v->src->shape->layers[v->src->shape->n_layer - 1 - n];
        used += l->n_expert * l->expert_bytes;
        if (used > room) break;
        n++;
    }
    return n;
}

/* -ngl and where experts stay, for so much memory of a GPU. Returns the bytes that lie there. */
static uint64_t print_gpu(const plan_view *v, uint64_t vram, uint32_t batch)
{
    const sl_shape *s = v->src->shape;
    uint64_t room = gpu_room(v, vram, batch);
    uint64_t used = s->head_bytes ? s->head_bytes : s->embed_bytes;
    uint32_t n = 0;
    bool moe = false;
    for (uint32_t i = s->n_layer; i-- > 0; n++) {
        uint64_t more = layer_kv(v, i) + layer_dense(&s->layers[i]);
        if (used + more > room) break;
        used += more;
    }
    for (uint32_t i = 0; i < s->n_layer; i++) moe |= s->layers[i].n_expert > 0;
    if (n < s->n_layer) {
        printf(" -ngl %" PRIu32 "%s", n, n && moe ? " -ot \"exps=CPU\"" : "");
        return n ? used : 0;
    }
    uint32_t whole = whole_layers(v, room, used);
    printf(" -ngl 99");
    if (moe && whole < s->n_layer) printf(" --n-cpu-moe %" PRIu32, s->n_layer - whole);
    for (uint32_t i = s->n_layer - whole; i < s->n_layer; i++)
        used += s->layers[i].n_expert * s->layers[i].expert_bytes;
    return used;
}

void plan_print_llama_cpp(const plan_view *v)
{
    const sl_plan *p = &v->choice->plan;
    const sl_plan_params *q = &v->choice->params;
    uint64_t vram = v->vram_bytes;
    uint32_t rows = SL_MIN(SL_MAX(q->max_rows, 32), 2048);
    if (!vram && v->machine->n_gpus) vram = v->machine->gpu[0].vram_bytes;
    printf("llama-cli -m %s -c %" PRIu32 " -t %" PRIu32 " -b %" PRIu32 " -ub %" PRIu32,
           v->src->kind == SL_SOURCE_GGUF ? v->src->path : "MODEL.gguf", p->n_ctx, p->n_threads,
           SL_MAX(rows, 512), rows);
    if (p->kv_type != SL_F16)
        printf(" -fa on -ctk %s -ctv %s", cli_kv_name(p->kv_type), cli_kv_name(p->kv_type));
    uint64_t there = vram ? print_gpu(v, vram, rows) : 0;
    if (!vram) printf(" -ngl 0");
    uint64_t left = v->src->shape->total_bytes - SL_MIN(there, v->src->shape->total_bytes);
    bool fits = !q->ram_bytes || left + p->kv_bytes + p->scratch_bytes <= q->ram_bytes;
    if (fits && p->weights != SL_WEIGHTS_MAPPED) printf(" --no-mmap");
    putchar('\n');
    if (!fits)
        cli_note("it is larger than RAM: llama.cpp maps the file and has the system page it in, "
                 "which is slower than this forecast");
}
